//! Device side of the test device: see `ve-apf-testdev` for the layout.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ve_apf_testdev::{
    CommandPage, Loss, Op, PAGE_SIZE, PolicyArgs, Run, RunIter, VERSION, push_run,
};
use vm_memory::{Bytes, GuestAddress};

use crate::counters::{Counters, lock};
use crate::mark::Marks;
use crate::memory::Ram;
use crate::mmu::Mmu;
use crate::nmi::NmiSource;
use crate::pager::{Pager, PagerThread};
use crate::report::Reporter;
use crate::sys;
use crate::trace::Recorder;

/// What the vCPU does after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Enters the guest again.
    Resume,
    /// The guest is done, with this code.
    Exit(u8),
}

/// Its state.
#[derive(Serialize, Deserialize)]
pub struct DeviceState {
    /// As words of [`Run`]s.
    declared: Vec<u64>,
    text: Vec<u8>,
}

/// The device.
pub struct TestDevice {
    ram: Arc<Ram>,
    pager: Arc<Pager>,
    pager_thread: Arc<PagerThread>,
    counters: Arc<Counters>,
    reporter: Reporter,
    recorder: Recorder,
    nmis: NmiSource,
    mmu: Mmu,
    marks: Marks,
    mem_mib: u32,
    vcpus: u8,
    declared: Mutex<BTreeSet<u64>>,
    text: Mutex<Vec<u8>>,
    /// Snapshots the machine went on from, those to come, and when it went on.
    snapshots: [AtomicU64; 3],
}

/// Longest report.
const MAX_TEXT: usize = 16 << 20;

impl TestDevice {
    /// A device for this machine.
    pub fn new(
        vm: Arc<VmFd>,
        ram: Arc<Ram>,
        pager_thread: Arc<PagerThread>,
        counters: Arc<Counters>,
        reporter: Reporter,
        mem_mib: u32,
        vcpus: u8,
    ) -> TestDevice {
        let pager = pager_thread.pager().clone();
        let nmis = NmiSource::new(vm.clone(), ram.clone());
        let mmu = Mmu::new(vm, ram.clone(), pager.clone());
        let marks = Marks::new(ram.clone());
        let (recorder, declared, text) = (Recorder::default(), Mutex::default(), Mutex::default());
        TestDevice {
            ram,
            pager,
            pager_thread,
            counters,
            reporter,
            recorder,
            nmis,
            mmu,
            marks,
            mem_mib,
            vcpus,
            declared,
            text,
            snapshots: Default::default(),
        }
    }

    /// The scheduling recorder, which the vCPU threads tell their ids.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Marks the frames that the guest named for it, and makes pages come again by themselves; returns those frames.
    pub fn reset(&self) -> anyhow::Result<Vec<Run>> {
        let runs = self.marks.fill().map_err(std::io::Error::from_raw_os_error)?;
        self.pager.policies.set(&[], PolicyArgs::fixed(0));
        self.pager.restore(&[])?;
        Ok(runs)
    }

    /// What [`Op::Snapshots`] answers.
    pub fn set_snapshots(&self, restored: u32, left: u32) {
        for (to, value) in self.snapshots.iter().zip([restored.into(), left.into(), sys::now_ns()])
        {
            to.store(value, Ordering::SeqCst);
        }
    }

    /// Reads the state. NMIs that are sent at intervals are not among it.
    pub fn save(&self) -> anyhow::Result<DeviceState> {
        ensure!(!self.nmis.is_sending(), "NMIs are being sent to the guest");
        let mut runs: Vec<Run> = Vec::new();
        for gfn in lock(&self.declared).iter() {
            if let Some(run) = push_run(runs.last_mut(), *gfn) {
                runs.push(run);
            }
        }
        let declared = runs.into_iter().map(Run::to_word).collect();
        Ok(DeviceState { declared, text: lock(&self.text).clone() })
    }

    /// Puts it back.
    pub fn load(&self, state: &DeviceState) {
        let frames = state.declared.iter().flat_map(|word| Run::from_word(*word).frames());
        *lock(&self.declared) = frames.collect();
        lock(&self.text).clone_from(&state.text);
    }

    /// Carries out the command in frame `pfn`. A frame that is not guest memory is ignored: there is nowhere to answer.
    pub fn command(&self, pfn: u32) -> Next {
        let at = GuestAddress(u64::from(pfn) * PAGE_SIZE as u64);
        let mut bytes = [0; PAGE_SIZE];
        if self.ram.mem.read_slice(&mut bytes, at).is_err() {
            return Next::Resume;
        }
        let mut page = CommandPage::from_bytes(bytes);
        let result = match page.op() {
            Some(Op::Exit) => return Next::Exit(u8::try_from(page.args()[0]).unwrap_or(u8::MAX)),
            Some(op) => self.carry_out(op, &mut page),
            None => Err(libc::ENOSYS),
        };
        page.set_status(match result {
            Ok(()) => 1,
            Err(errno) => -errno,
        });
        // The frame was readable a moment ago and memory does not shrink.
        let _ = self.ram.mem.write_slice(page.as_bytes(), at);
        Next::Resume
    }

    fn carry_out(&self, op: Op, page: &mut CommandPage) -> Result<(), i32> {
        let args = page.args();
        match op {
            Op::Hello => page.set_args([VERSION, self.mem_mib.into(), self.vcpus.into(), 0]),
            Op::Declare => {
                let runs = self.runs(page)?;
                self.pager.register().map_err(log_io)?;
                lock(&self.declared).extend(runs.iter().flat_map(|run| run.frames()));
            }
            Op::SetPolicy => {
                let policy = PolicyArgs::from_args(args).ok_or(libc::EINVAL)?;
                let ranges: Vec<_> = self.runs(page)?.iter().map(|run| run.frames()).collect();
                self.pager.policies.set(&ranges, policy);
            }
            Op::Evict => {
                let runs = self.runs(page)?;
                self.check_declared(&runs)?;
                self.pager.evict(&runs, (args[1] == 0).then_some(args[0])).map_err(log_io)?;
            }
            Op::Restore => {
                let delivered = self.pager.restore(&self.runs(page)?).map_err(log_io)?;
                page.set_args([delivered, 0, 0, 0]);
            }
            Op::StatsBegin => self
                .counters
                .begin(page.label(), self.pager.values())
                .map_err(|e| log_io(e.into()))?,
            Op::StatsEnd => {
                let diff = self
                    .counters
                    .end(page.label(), self.pager.values())
                    .map_err(|e| log_io(e.into()))?;
                page.set_data(diff.ok_or(libc::ENOENT)?.to_string().as_bytes());
            }
            Op::Report => self.report(page)?,
            Op::SyncClock => {
                let now = sys::now_ns();
                self.reporter.print_value("clock", json!({"l2_ns": args[0], "l1_ns": now}));
                page.set_args([now, 0, 0, 0]);
            }
            Op::PagerState => {
                let state = self.pager.state();
                page.set_args([state.pending, state.missing, state.faults, state.delivered]);
            }
            Op::Trace if args[0] != 0 => self.recorder.start().map_err(|e| log_io(e.into()))?,
            Op::Trace => {
                let lines = self.recorder.stop().map_err(|e| log_io(e.into()))?;
                let record = json!({"where": "l1", "label": page.label(), "lines": lines});
                self.reporter.print_value("trace", record);
            }
            Op::FaultLog => {
                let log = self.pager.take_log();
                let words: Vec<u8> = log.iter().flat_map(|gfn| gfn.to_le_bytes()).collect();
                page.set_args([log.len() as u64, 0, 0, 0]);
                page.set_data(&words);
            }
            Op::Mmu => {
                let runs = self.runs(page)?;
                self.check_declared(&runs)?;
                let answer = self.mmu.command(args, &runs).map_err(log_io)?;
                page.set_data(answer.to_string().as_bytes());
            }
            Op::Lose => {
                let runs = self.runs(page)?;
                self.check_declared(&runs)?;
                let how = Loss::from_u64(args[0]).ok_or(libc::EINVAL)?;
                self.pager.lose(&runs, how).map_err(log_io)?;
            }
            Op::Mark => {
                let results = self.marks.command(args[0], &self.runs(page)?)?;
                page.set_args(results);
            }
            Op::PagerRun => match args[0] {
                0 => self.pager_thread.stop().map_err(|e| log_io(e.into()))?,
                1 => self.pager_thread.start().map_err(log_io)?,
                _ => return Err(libc::EINVAL),
            },
            Op::Nmi => page.set_args([self.nmis.command(args)?, 0, 0, 0]),
            Op::Snapshots => {
                let [restored, left, since] =
                    self.snapshots.each_ref().map(|n| n.load(Ordering::SeqCst));
                let ns = sys::now_ns().saturating_sub(since);
                page.set_args([restored, left, ns, self.pager.state().restored]);
            }
            Op::Exit => {}
        }
        Ok(())
    }

    fn report(&self, page: &CommandPage) -> Result<(), i32> {
        let mut text = lock(&self.text);
        if text.len() + page.data().len() > MAX_TEXT {
            text.clear();
            return Err(libc::E2BIG);
        }
        text.extend_from_slice(page.data());
        if page.args()[0] & 1 != 0 {
            let text = std::mem::take(&mut *text);
            self.reporter.print_guest(&text, self.counters.take(page.label()));
        }
        Ok(())
    }

    /// The page's runs, all inside guest memory.
    fn runs(&self, page: &CommandPage) -> Result<Vec<Run>, i32> {
        let runs: Vec<Run> = RunIter::new(page.data()).collect();
        let inside = |run: &Run| self.ram.hva(run.first + run.count - 1).is_some();
        if runs.iter().all(inside) { Ok(runs) } else { Err(libc::EFAULT) }
    }

    /// A mistake in a workload must not take the guest kernel's own pages away.
    fn check_declared(&self, runs: &[Run]) -> Result<(), i32> {
        let declared = lock(&self.declared);
        let known = runs.iter().flat_map(|run| run.frames()).all(|gfn| declared.contains(&gfn));
        if known { Ok(()) } else { Err(libc::EPERM) }
    }
}

fn log_io(error: anyhow::Error) -> i32 {
    eprintln!("ve-apf-vmm: test device: {error:#}");
    libc::EIO
}
