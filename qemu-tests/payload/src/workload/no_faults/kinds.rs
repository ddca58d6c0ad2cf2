//! What is done, and how often in the workload.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::FileExt;
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, bail, ensure};
use ve_apf_testdev::PORT;

use crate::sys::{PAGE, Pages};

/// Does it.
pub(super) type Once = fn(&mut Things) -> Result<()>;

/// One of them.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// How often it is in the workload.
    pub(super) times: u32,
    pub(super) once: Once,
}

/// All of them: ten of each make the workload, with a hundred system calls that do next to nothing. What creates processes is not
/// among them: no two times it takes as many instructions.
pub(super) const KINDS: [Kind; 10] = [
    Kind { name: "system call", times: 100, once: system_call },
    Kind { name: "signal to itself", times: 10, once: signal },
    Kind { name: "futex wake", times: 10, once: futex_wake },
    Kind { name: "futex wait, too late", times: 10, once: futex_wait },
    Kind { name: "futex to another task and back", times: 10, once: hand_over },
    Kind { name: "pipe to another task and back", times: 10, once: there_and_back },
    Kind { name: "page fault", times: 10, once: page_fault },
    Kind { name: "file, 4 KiB written and read", times: 10, once: file },
    Kind { name: "exit to KVM", times: 10, once: exit_to_kvm },
    Kind { name: "exit to the VMM", times: 10, once: exit_to_vmm },
];

/// What that needs.
pub(super) struct Things {
    to: PipeWriter,
    from: PipeReader,
    echo: JoinHandle<()>,
    turn: Arc<AtomicU32>,
    partner: JoinHandle<()>,
    file: File,
    page: Box<[u8; PAGE]>,
    word: AtomicU32,
    fresh: Pages,
}

impl Things {
    pub(super) fn new() -> Result<Things> {
        let (to, from, echo) = echo_task()?;
        let (turn, partner) = partner_task()?;
        let path = std::env::temp_dir().join("ve-apf-no-faults");
        let mut options = File::options();
        options.create(true).truncate(true).read(true).write(true);
        let file = options.open(&path).with_context(|| path.display().to_string())?;
        std::fs::remove_file(&path)?;
        // SAFETY: the handler does nothing.
        if unsafe { libc::signal(libc::SIGUSR2, on_signal as *const () as libc::sighandler_t) }
            == libc::SIG_ERR
        {
            return Err(std::io::Error::last_os_error().into());
        }
        let (page, word) = (Box::new([7; PAGE]), AtomicU32::new(1));
        Ok(Things { to, from, echo, turn, partner, file, page, word, fresh: Pages::volatile()? })
    }

    pub(super) fn end(self) -> Result<()> {
        drop(self.to);
        self.turn.store(OVER, Ordering::SeqCst);
        futex(&self.turn, libc::FUTEX_WAKE, 1);
        if self.echo.join().is_err() || self.partner.join().is_err() {
            bail!("another task panicked");
        }
        Ok(())
    }
}

extern "C" fn on_signal(_: libc::c_int) {}

/// The time that timing takes.
pub(super) fn nothing(_: &mut Things) -> Result<()> {
    Ok(())
}

fn system_call(_: &mut Things) -> Result<()> {
    // SAFETY: takes nothing, changes nothing.
    unsafe { libc::syscall(libc::SYS_getppid) };
    Ok(())
}

fn signal(_: &mut Things) -> Result<()> {
    // SAFETY: takes plain integers; the handler is set.
    let rc = unsafe { libc::raise(libc::SIGUSR2) };
    ensure!(rc == 0, "raise: {rc}");
    Ok(())
}

fn futex(word: &AtomicU32, op: i32, value: u32) -> libc::c_long {
    let (op, forever) = (op | libc::FUTEX_PRIVATE_FLAG, null::<libc::timespec>());
    // SAFETY: the word lives through the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, value, forever) }
}

fn futex_wake(things: &mut Things) -> Result<()> {
    let woken = futex(&things.word, libc::FUTEX_WAKE, 1);
    ensure!(woken == 0, "woke {woken}");
    Ok(())
}

/// The word is not what it expects any more.
fn futex_wait(things: &mut Things) -> Result<()> {
    let expected = things.word.load(Ordering::Relaxed) + 1;
    let rc = futex(&things.word, libc::FUTEX_WAIT, expected);
    ensure!(rc == -1, "waited");
    Ok(())
}

/// Whose turn it is: who sleeps until it is his is woken by the other.
const MINE: u32 = 0;
const THEIRS: u32 = 1;
/// Nobody's.
const OVER: u32 = 2;

fn hand_over(things: &mut Things) -> Result<()> {
    things.turn.store(THEIRS, Ordering::SeqCst);
    futex(&things.turn, libc::FUTEX_WAKE, 1);
    while things.turn.load(Ordering::SeqCst) == THEIRS {
        futex(&things.turn, libc::FUTEX_WAIT, THEIRS);
    }
    Ok(())
}

/// A task that hands back each turn that it gets, until nobody has one.
fn partner_task() -> Result<(Arc<AtomicU32>, JoinHandle<()>)> {
    let turn = Arc::new(AtomicU32::new(MINE));
    let shared = turn.clone();
    let body = move || {
        loop {
            match shared.compare_exchange(THEIRS, MINE, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => futex(&shared, libc::FUTEX_WAKE, 1),
                Err(OVER) => return,
                Err(_) => futex(&shared, libc::FUTEX_WAIT, MINE),
            };
        }
    };
    let task =
        Builder::new().name("partner".to_owned()).spawn(body).context("cannot start a task")?;
    Ok((turn, task))
}

fn there_and_back(things: &mut Things) -> Result<()> {
    let mut byte = [7];
    things.to.write_all(&byte)?;
    Ok(things.from.read_exact(&mut byte)?)
}

/// Of a page that its host has.
fn page_fault(things: &mut Things) -> Result<()> {
    things.fresh.write(0, 0, 1);
    Ok(things.fresh.forget()?)
}

fn file(things: &mut Things) -> Result<()> {
    things.file.write_all_at(&things.page[..], 0)?;
    Ok(things.file.read_exact_at(&mut things.page[..], 0)?)
}

fn exit_to_kvm(_: &mut Things) -> Result<()> {
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
    Ok(())
}

/// Reading the test device's port has no effect; the answer is the VMM's.
fn exit_to_vmm(_: &mut Things) -> Result<()> {
    let byte: u8;
    // SAFETY: this thread opened the device, and has had the permission since; reading does nothing.
    unsafe {
        std::arch::asm!("in al, dx", in("dx") PORT, out("al") byte, options(nomem, nostack, preserves_flags))
    };
    ensure!(byte == 0xff, "{byte:#x}");
    Ok(())
}

type Echo = (PipeWriter, PipeReader, JoinHandle<()>);

/// A task that sends back every byte that it gets, until there are no more.
fn echo_task() -> Result<Echo> {
    let (mut reader, to) = pipe()?;
    let (from, mut writer) = pipe()?;
    let body = move || {
        let mut byte = [0; 1];
        while reader.read_exact(&mut byte).is_ok() && writer.write_all(&byte).is_ok() {}
    };
    let task = Builder::new().name("echo".to_owned()).spawn(body).context("cannot start a task")?;
    Ok((to, from, task))
}
