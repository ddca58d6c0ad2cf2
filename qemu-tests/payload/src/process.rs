//! Child processes that do little enough to be safe after fork(), and what can be done to them from outside.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::sys;

/// How a child was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It ended by itself, with this code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It stands still: the signal, and the ptrace event if there is one.
    Stopped(i32, i32),
}

/// Something that a tracer does; the numbers of ptrace(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Trace {
    /// Stops the tracee.
    Attach = libc::PTRACE_ATTACH,
    /// Does not.
    Seize = libc::PTRACE_SEIZE,
    /// Stops one that was seized.
    Interrupt = libc::PTRACE_INTERRUPT,
    /// Lets go of it.
    Detach = libc::PTRACE_DETACH,
}

/// Makes a child that runs `body` and ends with what that returns.
///
/// `body` has the rules of a signal handler, unless this process has only one thread.
pub fn fork(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the caller keeps to the rule above; the child ends by _exit and returns into nothing of the parent's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = body();
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        child => Ok(child),
    }
}

/// Fails where this process has more than one thread: a child could then wait for a lock for ever.
pub fn only_one_thread() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        n => Err(io::Error::other(format!("{n} threads: fork() needs this process to have one"))),
    }
}

fn check(rc: libc::c_long) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes plain integers.
    check(unsafe { libc::kill(pid, signal) }.into())
}

/// What `pid` has to say now, if anything.
pub fn poll(pid: i32) -> io::Result<Option<Status>> {
    wait_for(pid, libc::WNOHANG | libc::WUNTRACED)
}

/// Waits until `pid` has ended.
pub fn wait(pid: i32) -> io::Result<Status> {
    wait_for(pid, 0)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn wait_for(pid: i32, flags: i32) -> io::Result<Option<Status>> {
    let mut status = 0;
    // SAFETY: `status` lives through the call.
    match unsafe { libc::waitpid(pid, &mut status, flags) } {
        0 => Ok(None),
        n if n != pid => Err(io::Error::last_os_error()),
        _ if libc::WIFEXITED(status) => Ok(Some(Status::Exited(libc::WEXITSTATUS(status)))),
        _ if libc::WIFSTOPPED(status) => {
            Ok(Some(Status::Stopped(libc::WSTOPSIG(status), status >> 16)))
        }
        _ => Ok(Some(Status::Killed(libc::WTERMSIG(status)))),
    }
}

/// Traces `pid`.
pub fn trace(pid: i32, what: Trace) -> io::Result<()> {
    // SAFETY: none of these requests reads or writes memory of this process.
    check(unsafe { libc::ptrace(what as libc::c_uint, pid, 0, 0) })
}

/// From now on `pid` runs on `cpu` only.
pub fn move_to(pid: i32, cpu: usize) -> io::Result<()> {
    sys::run_on(pid, cpu..cpu + 1)
}

/// The CPU that the caller runs on.
pub fn this_cpu() -> usize {
    let mut cpu: libc::c_uint = 0;
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: `cpu` lives through the call; nothing else is asked for.
    unsafe { libc::syscall(libc::SYS_getcpu, &mut cpu, none, none) };
    cpu as usize
}

/// A pipe: the end to read from, the end to write to. Both stay open until the program ends or [`close`]s them.
pub fn pipe() -> io::Result<[i32; 2]> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe(ends.as_mut_ptr()) }.into())?;
    Ok(ends)
}

/// Closes descriptors.
pub fn close(ends: &[i32]) {
    for end in ends {
        // SAFETY: the caller does not use them again.
        unsafe { libc::close(*end) };
    }
}

/// Waits for a byte.
pub fn get_byte(end: i32) -> io::Result<u8> {
    let mut byte = 0u8;
    // SAFETY: room for one byte.
    match unsafe { libc::read(end, (&raw mut byte).cast(), 1) } {
        1 => Ok(byte),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a byte, read by the kernel from `from`.
pub fn put_byte(end: i32, from: *const u8) -> io::Result<()> {
    // SAFETY: the kernel reads it, or fails to.
    check(unsafe { libc::write(end, from.cast(), 1) } as libc::c_long)
}

/// Replaces this process by our own program, which ends at once with [`EXEC_CODE`]. Returns only if that fails.
pub fn exec_exit() -> i32 {
    let argv = [c"/init".as_ptr(), c"--exit".as_ptr(), std::ptr::null()];
    // SAFETY: NUL-terminated strings in a list that ends with a null pointer, all of which outlive the call.
    unsafe { libc::execv(argv[0], argv.as_ptr()) };
    1
}

/// What a program that was started by [`exec_exit`] ends with.
pub const EXEC_CODE: i32 = 7;

/// A child that shares this process' memory runs `body` to its end, or to its exec; then its pid is returned.
pub fn vfork(body: extern "C" fn(*mut libc::c_void) -> i32, arg: usize) -> io::Result<i32> {
    const STACK: usize = 16 * sys::PAGE;
    let mut stack = vec![0u64; STACK / 8];
    let top = stack.as_mut_ptr_range().end.cast::<libc::c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is aligned, large enough for `body`, and lives until this returns; CLONE_VFORK keeps the caller
    // from running before the child has left its memory.
    let child = unsafe { libc::clone(body, top, flags, arg as *mut libc::c_void) };
    if child < 0 { Err(io::Error::last_os_error()) } else { Ok(child) }
}

/// A word, 0, that children share.
pub fn shared_word() -> io::Result<&'static AtomicU32> {
    let (prot, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), sys::PAGE, prot, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: aligned, zeroed, never unmapped, and accessed by nothing but atomics.
    Ok(unsafe { &*page.cast::<AtomicU32>() })
}

/// Sleeps until `word` is no longer 0.
pub fn futex_wait(word: &AtomicU32) {
    while word.load(SeqCst) == 0 {
        let forever = std::ptr::null::<libc::timespec>();
        // SAFETY: the kernel only compares the word; no timeout.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, forever) };
    }
}

/// Sets `word` and wakes who sleeps on it.
pub fn futex_set(word: &AtomicU32) {
    word.store(1, SeqCst);
    // SAFETY: the kernel only uses the word's address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
