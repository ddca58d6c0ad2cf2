//! Driver of the VMM's test device.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use ve_apf_testdev::{
    CommandPage, DATA_SIZE, Loss, Mark, Mmu, Nmi, Op, PAGE_SIZE, PORT, PolicyArgs, Run, VERSION,
    push_run,
};

use crate::sys::{self, Pages};

/// The device. Clones share the command page.
#[derive(Clone)]
pub struct Device {
    page: Arc<Mutex<(Pages, u32)>>,
}

/// Where the pager stands.
#[derive(Debug, Clone, Copy)]
pub struct PagerState {
    /// Pages somebody waits for.
    pub pending: u64,
    /// Pages evicted and not delivered.
    pub missing: u64,
    /// Requests so far.
    pub faults: u64,
}

impl Device {
    /// Finds the device; `None` under a VMM that has none.
    pub fn open() -> Result<Option<Device>> {
        permit(true).context("ioperm (CONFIG_X86_IOPL_IOPERM)")?;
        let pages = Pages::anonymous(1)?;
        pages.keep_from_children()?;
        let frame = u32::try_from(pages.frames().context("CONFIG_PROC_PAGE_MONITOR")?[0])?;
        let device = Device { page: Arc::new(Mutex::new((pages, frame))) };
        let mut hello = CommandPage::new(Op::Hello);
        device.exchange(&mut hello);
        match (hello.status(), hello.args()[0]) {
            (0, _) => Ok(None),
            (1, VERSION) => Ok(Some(device)),
            (status, version) => {
                bail!("test device: status {status}, version {version}, expected {VERSION}")
            }
        }
    }

    /// These frames may be evicted.
    pub fn declare(&self, frames: &[u64]) -> Result<()> {
        self.with_frames(Op::Declare, frames, [0; 4])
    }

    /// Policy of these frames, or of all if there are none. Replaces what was.
    pub fn set_policy(&self, frames: &[u64], policy: PolicyArgs) -> Result<()> {
        self.with_frames(Op::SetPolicy, frames, policy.to_args())
    }

    /// Takes pages away; the pattern of `round` comes back.
    pub fn evict(&self, frames: &[u64], round: u64) -> Result<()> {
        self.with_frames(Op::Evict, frames, [round, 0, 0, 0])
    }

    /// Takes pages away; what they hold comes back.
    pub fn evict_keep(&self, frames: &[u64]) -> Result<()> {
        self.with_frames(Op::Evict, frames, [0, 1, 0, 0])
    }

    /// The host loses these pages, or they are back; what they held then is there.
    pub fn lose(&self, frames: &[u64], how: Loss) -> Result<()> {
        self.with_frames(Op::Lose, frames, [how as u64, 0, 0, 0])
    }

    /// The pager dies, or a new one takes over.
    pub fn run_pager(&self, run: bool) -> Result<()> {
        let mut page = CommandPage::new(Op::PagerRun);
        page.set_args([run.into(), 0, 0, 0]);
        self.call(&mut page).map(drop)
    }

    /// Delivers all missing pages now.
    pub fn restore_all(&self) -> Result<u64> {
        Ok(self.call(&mut CommandPage::new(Op::Restore))?[0])
    }

    /// Starts counting under this label.
    pub fn stats_begin(&self, label: &str) -> Result<()> {
        self.labelled(Op::StatsBegin, label, 0).map(drop)
    }

    /// Stops counting; the VMM joins the difference to the report of this label. Returned too, if it fits a page.
    pub fn stats_end(&self, label: &str) -> Result<Value> {
        let page = self.labelled(Op::StatsEnd, label, 0)?;
        Ok(serde_json::from_slice(page.data()).unwrap_or(Value::Null))
    }

    /// Prints a record outside, with the counters of this label.
    pub fn report(&self, label: &str, record: &Value) {
        let text = record.to_string();
        let chunks: Vec<&[u8]> = text.as_bytes().chunks(DATA_SIZE).collect();
        // One report at a time: the VMM puts the chunks together.
        static WHOLE: Mutex<()> = Mutex::new(());
        let _whole = WHOLE.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, chunk) in chunks.iter().enumerate() {
            let mut page = CommandPage::new(Op::Report);
            page.set_label(label);
            page.set_data(chunk);
            page.set_args([u64::from(i + 1 == chunks.len()), 0, 0, 0]);
            if let Err(error) = self.call(&mut page) {
                println!("l2-init: report: {error:#}");
                return;
            }
        }
    }

    /// Tells the VMM our clock, for a common time axis.
    pub fn sync_clock(&self) -> Result<()> {
        let mut page = CommandPage::new(Op::SyncClock);
        page.set_args([sys::now_ns(), 0, 0, 0]);
        self.call(&mut page).map(drop)
    }

    /// Starts or ends the VMM's own recording.
    pub fn trace(&self, label: &str, on: bool) -> Result<()> {
        self.labelled(Op::Trace, label, on.into()).map(drop)
    }

    /// Where the pager stands.
    pub fn pager_state(&self) -> Result<PagerState> {
        let [pending, missing, faults, _] = self.call(&mut CommandPage::new(Op::PagerState))?;
        Ok(PagerState { pending, missing, faults })
    }

    /// Does something to the VM's MMU, see [`Mmu`]; returns the walks before and after it, and what it counted.
    pub fn mmu(&self, what: Mmu, args: [u64; 2], frames: &[u64]) -> Result<Value> {
        let words: Vec<u8> =
            runs(frames).iter().flat_map(|run| run.to_word().to_le_bytes()).collect();
        let mut page = CommandPage::new(Op::Mmu);
        if page.set_data(&words) < words.len() {
            bail!("too many runs for one command");
        }
        page.set_args([what as u64, args[0], args[1], 0]);
        self.call(&mut page).with_context(|| format!("{what:?}"))?;
        serde_json::from_slice(page.data()).with_context(|| format!("{what:?}"))
    }

    /// NMIs to vCPU 0, see [`Nmi`], every `period_us`; `counter` is the guest-physical address of the word that counts
    /// them. Returns how many were sent since the last start.
    pub fn nmi(&self, what: Nmi, period_us: u64, counter: u64) -> Result<u64> {
        let mut page = CommandPage::new(Op::Nmi);
        page.set_args([what as u64, 0, period_us, counter]);
        Ok(self.call(&mut page)?[0])
    }

    /// Memory that nobody should write any more, see [`Mark`]; returns bytes changed, and frames looked at.
    pub fn mark(&self, what: Mark, frames: &[u64]) -> Result<[u64; 2]> {
        let words: Vec<u8> =
            runs(frames).iter().flat_map(|run| run.to_word().to_le_bytes()).collect();
        let mut page = CommandPage::new(Op::Mark);
        page.set_data(&words);
        page.set_args([what as u64, 0, 0, 0]);
        let [changed, frames, ..] = self.call(&mut page)?;
        Ok([changed, frames])
    }

    /// Missing frames that were asked for since the last call, the first 500 of them.
    pub fn fault_log(&self) -> Result<Vec<u64>> {
        let mut page = CommandPage::new(Op::FaultLog);
        self.call(&mut page)?;
        let words = page.data().chunks_exact(8);
        Ok(words.map(|word| word.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b))).collect())
    }

    /// Snapshots that the VMM went on from so far, and those that it is still to take.
    pub fn snapshots(&self) -> Result<(u64, u64)> {
        let [restored, left, ..] = self.call(&mut CommandPage::new(Op::Snapshots))?;
        Ok((restored, left))
    }

    /// By the VMM's clock, the time since it went on from a snapshot, and pages that came from it so far.
    pub fn since_restore(&self) -> Result<(Duration, u64)> {
        let [_, _, ns, pages] = self.call(&mut CommandPage::new(Op::Snapshots))?;
        Ok((Duration::from_nanos(ns), pages))
    }

    /// Guest memory in MiB.
    pub fn memory_mib(&self) -> Result<u64> {
        Ok(self.call(&mut CommandPage::new(Op::Hello))?[1])
    }

    /// Frame of the command page.
    pub fn frame(&self) -> u64 {
        self.page.lock().unwrap_or_else(PoisonError::into_inner).1.into()
    }

    /// Ends the VM.
    pub fn exit(&self, code: u8) {
        let mut page = CommandPage::new(Op::Exit);
        page.set_args([code.into(), 0, 0, 0]);
        self.exchange(&mut page);
    }

    fn labelled(&self, op: Op, label: &str, arg: u64) -> Result<CommandPage> {
        let mut page = CommandPage::new(op);
        page.set_label(label);
        page.set_args([arg, 0, 0, 0]);
        self.call(&mut page)?;
        Ok(page)
    }

    fn with_frames(&self, op: Op, frames: &[u64], args: [u64; 4]) -> Result<()> {
        let words: Vec<u8> =
            runs(frames).iter().flat_map(|run| run.to_word().to_le_bytes()).collect();
        if words.len() > DATA_SIZE && op == Op::SetPolicy {
            // Each command makes a policy with a queue of its own.
            bail!("too many runs for one policy");
        }
        let mut rest = &words[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(DATA_SIZE / 8 * 8));
            let mut page = CommandPage::new(op);
            page.set_args(args);
            page.set_data(now);
            self.call(&mut page)?;
            rest = later;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn call(&self, page: &mut CommandPage) -> Result<[u64; 4]> {
        let op = page.op();
        self.exchange(page);
        match page.status() {
            1 => Ok(page.args()),
            status => bail!("test device: {op:?}: {}", std::io::Error::from_raw_os_error(-status)),
        }
    }

    fn exchange(&self, page: &mut CommandPage) {
        let shared = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let (pages, frame) = *shared;
        if let Err(error) = permit(true) {
            println!("l2-init: ioperm: {error}");
        }
        for (i, word) in page.as_bytes().chunks_exact(8).enumerate() {
            pages.write(0, i, word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        }
        // SAFETY: the port is ours (ioperm); the VMM reads and writes only the command page, whose words are accessed
        // volatile and which the lock keeps ours. `asm!` without nomem is a compiler barrier.
        unsafe {
            std::arch::asm!("out dx, eax", in("dx") PORT, in("eax") frame, options(nostack, preserves_flags))
        };
        let mut bytes = [0; PAGE_SIZE];
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&pages.read(0, i).to_le_bytes());
        }
        *page = CommandPage::from_bytes(bytes);
    }
}

/// The calling thread has nothing to say to the device, or not soon: a task with a map of permitted ports takes longer to
/// switch to, which no task of a real guest has.
pub fn forbid_port() {
    if let Err(error) = permit(false) {
        println!("l2-init: ioperm: {error}");
    }
}

/// May the calling thread, and threads that it makes, access the device's port?
fn permit(on: bool) -> std::io::Result<()> {
    // SAFETY: takes plain integers.
    match unsafe { libc::ioperm(PORT.into(), 4, on.into()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn runs(frames: &[u64]) -> Vec<Run> {
    let mut sorted = frames.to_vec();
    sorted.sort_unstable();
    let mut out: Vec<Run> = Vec::new();
    for gfn in sorted {
        if let Some(run) = push_run(out.last_mut(), gfn) {
            out.push(run);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_frames_become_runs() {
        assert_eq!(runs(&[7, 5, 6, 9]), [Run { first: 5, count: 3 }, Run { first: 9, count: 1 }]);
    }
}
