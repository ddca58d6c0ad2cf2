//! Memory of another process, one page of which is lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use ve_apf_testdev::{pattern_base, pattern_word};

use super::shared::Shared;
use super::site::{Acted, Make, Plan, failed, result};
use crate::sys::{PAGE, Pages};

pub(super) const SITES: [(&str, Make); 6] = [
    ("ptrace_peek", peek),
    ("ptrace_poke", poke),
    ("vm_readv", || vm(libc::SYS_process_vm_readv)),
    ("vm_writev", || vm(libc::SYS_process_vm_writev)),
    ("proc_mem_read", mem_read),
    ("proc_mem_write", mem_write),
];

const ROUND: u64 = 0x7e4;

/// A process that has a page, and waits.
struct Target {
    pid: i32,
    at: usize,
    frame: u64,
}

impl Target {
    fn new() -> io::Result<Target> {
        let pages = Pages::anonymous(1)?;
        let frame: &AtomicU64 = &Shared::new()?.at;
        let parent = std::process::id();
        // SAFETY: the child touches its memory, asks for its frame, and waits until it is killed.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: plain integers, and a page of ours.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::mlock(pages.page(0).cast(), PAGE);
                }
                // From here on the page is this process' own.
                pages.write(0, 0, 0);
                let own = pages.frames().map_or(u64::MAX, |frames| frames[0]);
                (0..512).for_each(|word| pages.write(0, word, word_of(own, word)));
                frame.store(own, SeqCst);
                while std::os::unix::process::parent_id() == parent {
                    std::thread::sleep(Duration::from_secs(1));
                }
                // SAFETY: ends the process without running anything of the parent's.
                unsafe { libc::_exit(0) }
            }
            pid => pid,
        };
        while frame.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        match frame.load(SeqCst) {
            u64::MAX => Err(io::Error::other("the frame of another process")),
            frame => Ok(Target { pid, at: pages.page(0) as usize, frame }),
        }
    }

    /// `check` reads the page as the tests of `/proc/PID/mem` do, but for the first word.
    fn plan(self, act: impl FnMut() -> Acted + 'static) -> Plan {
        let frame = self.frame;
        let check = move || {
            let mut copy = [0; PAGE];
            self.memory()?.read_exact_at(&mut copy, self.at as u64)?;
            let right = |(word, bytes): &(usize, &[u8])| {
                *word == 0 || *bytes == word_of(frame, *word).to_ne_bytes()
            };
            let all = copy.chunks_exact(8).enumerate();
            Ok(8 * all.filter(|one| !right(one)).count() as u64)
        };
        Plan { frames: vec![frame], at: 0, act: Box::new(act), check: Box::new(check) }
    }

    fn memory(&self) -> io::Result<File> {
        File::options().read(true).write(true).open(format!("/proc/{}/mem", self.pid))
    }
}

fn word_of(frame: u64, word: usize) -> u64 {
    pattern_word(pattern_base(frame, ROUND), word)
}

/// The target stopped, and let go again.
fn traced(pid: i32, request: impl FnOnce() -> Acted) -> Acted {
    let null = std::ptr::null_mut::<libc::c_void>();
    let mut status = 0;
    // SAFETY: the target is a child of this process; `status` lives through the call.
    let stopped = unsafe {
        libc::ptrace(libc::PTRACE_ATTACH, pid, null, null) == 0
            && libc::waitpid(pid, &mut status, 0) == pid
    };
    if !stopped {
        return failed();
    }
    let acted = request();
    // SAFETY: as above.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, null, null) };
    acted
}

fn peek() -> io::Result<Plan> {
    let target = Target::new()?;
    let (pid, at, expected) = (target.pid, target.at, word_of(target.frame, 9));
    Ok(target.plan(move || {
        traced(pid, || {
            let mut word = 0u64;
            // Not libc's function, whose result is the word.
            // SAFETY: the kernel stores one word.
            let n = unsafe {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, pid, at + 72, &raw mut word)
            };
            match n {
                0 if word == expected => Acted::All,
                0 => Acted::Part,
                _ => failed(),
            }
        })
    }))
}

fn poke() -> io::Result<Plan> {
    let target = Target::new()?;
    let (pid, at) = (target.pid, target.at);
    Ok(target.plan(move || {
        traced(pid, || {
            // SAFETY: the kernel checks the address.
            let n =
                unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_POKEDATA, pid, at, 5usize) };
            result(n, 0)
        })
    }))
}

fn vm(call: libc::c_long) -> io::Result<Plan> {
    let target = Target::new()?;
    let (pid, at) = (target.pid, target.at);
    let mut local = [0u64; 1];
    Ok(target.plan(move || {
        let here = libc::iovec { iov_base: local.as_mut_ptr().cast(), iov_len: 8 };
        let there = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: 8 };
        // SAFETY: the word here is ours, and the kernel checks the address there.
        let n = unsafe {
            libc::syscall(call, pid, &raw const here, 1usize, &raw const there, 1usize, 0usize)
        };
        result(n, 8)
    }))
}

fn mem_read() -> io::Result<Plan> {
    let target = Target::new()?;
    let (file, at) = (target.memory()?, target.at as u64);
    Ok(target.plan(move || match file.read_at(&mut [0; 64], at) {
        Ok(n) => result(n as i64, 64),
        Err(error) => Acted::Failed(error.raw_os_error().unwrap_or(-1)),
    }))
}

fn mem_write() -> io::Result<Plan> {
    let target = Target::new()?;
    let (file, at) = (target.memory()?, target.at as u64);
    Ok(target.plan(move || match file.write_at(&[0; 8], at) {
        Ok(n) => result(n as i64, 8),
        Err(error) => Acted::Failed(error.raw_os_error().unwrap_or(-1)),
    }))
}
