//! Threads that keep a kernel busy, each in its own way, and check what it does.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Running threads.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    wrong: AtomicU64,
    rounds: [AtomicU64; WORK.len()],
}

/// What they did.
pub(super) struct Work {
    /// Rounds of all of them together.
    pub(super) rounds: u64,
    /// Results that were not right.
    pub(super) wrong: u64,
}

type Round = fn(u64) -> io::Result<bool>;

/// Name, and one round: does it come to what it should?
const WORK: [(&str, Option<Round>); 6] = [
    ("syscalls", Some(syscalls)),
    ("files", Some(files)),
    ("timers", Some(timers)),
    ("memory", Some(memory)),
    ("processes", Some(processes)),
    // Two threads.
    ("switches", None),
];

impl Workers {
    /// Starts them.
    pub(super) fn start() -> Result<Workers> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        let mut spawn = |name: &str, body: Box<dyn FnOnce() + Send>| -> Result<()> {
            let thread = Builder::new().name(name.to_owned()).spawn(body);
            threads.push(thread.context("cannot start a task")?);
            Ok(())
        };
        for (i, (name, round)) in WORK.into_iter().enumerate() {
            let own = shared.clone();
            let Some(round) = round else {
                let (here, there) = (io::pipe()?, io::pipe()?);
                spawn("echo", Box::new(move || echo(here.0, there.1)))?;
                spawn(name, Box::new(move || own.run(i, ping(there.0, here.1))))?;
                continue;
            };
            spawn(name, Box::new(move || own.run(i, round)))?;
        }
        Ok(Workers { shared, threads })
    }

    /// Waits until each went round `count` times more.
    pub(super) fn go_round(&self, count: u64, limit: Duration) -> Result<()> {
        let now = || self.shared.rounds.each_ref().map(|rounds| rounds.load(Relaxed));
        let (began, then) = (Instant::now(), now());
        loop {
            let late: Vec<&str> = (WORK.iter().zip(now().iter().zip(then)))
                .filter(|(_, (now, then))| **now < then + count)
                .map(|((name, _), _)| *name)
                .collect();
            if late.is_empty() {
                return Ok(());
            }
            if began.elapsed() > limit {
                bail!("no progress: {}", late.join(", "));
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Stops them.
    pub(super) fn stop(self) -> Work {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            // A panic ends the program (panic = abort), so joining does not fail.
            let _ = thread.join();
        }
        let rounds = self.shared.rounds.iter().map(|rounds| rounds.load(Relaxed)).sum();
        Work { rounds, wrong: self.shared.wrong.load(Relaxed) }
    }
}

impl Shared {
    fn run(&self, i: usize, mut round: impl FnMut(u64) -> io::Result<bool>) {
        let mut number = 0;
        while !self.stop.load(Relaxed) {
            match round(number) {
                Ok(true) => {}
                Ok(false) => {
                    self.wrong.fetch_add(1, Relaxed);
                }
                Err(error) => {
                    println!("l2-init: {}: {error}", WORK[i].0);
                    self.wrong.fetch_add(1, Relaxed);
                }
            }
            number += 1;
            self.rounds[i].store(number, Relaxed);
        }
    }
}

/// System calls that do next to nothing.
fn syscalls(_: u64) -> io::Result<bool> {
    let (pid, tid) = (std::process::id(), sys::gettid());
    let same = |_| {
        std::process::id() == pid && sys::gettid() == tid && sys::voluntary_switches() < u64::MAX
    };
    Ok((0..50).all(same))
}

/// The page cache, and what procfs makes up.
fn files(round: u64) -> io::Result<bool> {
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open("/tmp/work")?;
    let at = round % 64 * 512;
    file.write_all_at(&round.to_le_bytes(), at)?;
    let mut back = [0; 8];
    file.read_exact_at(&mut back, at)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(u64::from_le_bytes(back) == round && status.starts_with("Name:"))
}

/// High-resolution timers and their interrupts.
fn timers(round: u64) -> io::Result<bool> {
    let wait = Duration::from_micros(50 + round % 100);
    let began = Instant::now();
    sleep(wait);
    Ok(began.elapsed() >= wait)
}

/// New page tables each time.
fn memory(round: u64) -> io::Result<bool> {
    const LEN: usize = 64 << 20;
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // One page in each of several page tables.
    let words = || {
        (0..LEN).step_by(4 << 20).map(|at| (at as u64, start.wrapping_byte_add(at).cast::<u64>()))
    };
    for (i, word) in words() {
        // SAFETY: inside the mapping, aligned, and nobody else knows it.
        unsafe { word.write_volatile(round ^ i) };
    }
    // SAFETY: as above.
    let right = words().all(|(i, word)| unsafe { word.read_volatile() } == round ^ i);
    // SAFETY: the mapping made above, not used any more.
    unsafe { libc::munmap(start, LEN) };
    Ok(right)
}

/// A process that ends at once.
fn processes(round: u64) -> io::Result<bool> {
    let code = (round % 100) as libc::c_int;
    // SAFETY: the child does nothing but end.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: no destructor and no exit handler runs in a copy of this process.
        0 => unsafe { libc::_exit(code) },
        _ => {}
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    if unsafe { libc::waitpid(pid, &mut status, 0) } != pid {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == code)
}

/// Sends a number to the other thread, and gets its square: two context switches.
fn ping(mut from: PipeReader, mut to: PipeWriter) -> impl FnMut(u64) -> io::Result<bool> {
    move |round| {
        to.write_all(&round.to_le_bytes())?;
        let mut back = [0; 8];
        from.read_exact(&mut back)?;
        Ok(u64::from_le_bytes(back) == round.wrapping_mul(round))
    }
}

/// Ends with the other thread's pipe.
fn echo(mut from: PipeReader, mut to: PipeWriter) {
    let mut number = [0; 8];
    while from.read_exact(&mut number).is_ok() {
        let number = u64::from_le_bytes(number);
        if to.write_all(&number.wrapping_mul(number).to_le_bytes()).is_err() {
            return;
        }
    }
}
