//! Thin wrappers over system calls of the threads: clock, affinity, names, signals.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// `CLOCK_MONOTONIC` in ns.
pub fn now_ns() -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    // This clock starts at boot and is never negative.
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// Thread id of the caller.
pub fn gettid() -> i32 {
    // Not libc's function: std refers to it weakly, and a static program built with LTO would then call address 0.
    // SAFETY: no arguments, cannot fail, and thread ids are below 2^22.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// With `--pin`, where all threads run but the vCPUs'; KVM's may also run on CPUs above those.
///
/// Not these: QEMU's TCG loses changes of the first CPU's state that says whether it walks nested page tables, when another CPU
/// restores its FPU at the same time (docs/notes/0004).
pub const REST_CPU: usize = 0;

/// Number of CPUs that are online, whether this process may use them or not.
pub fn cpu_count() -> usize {
    // SAFETY: takes a plain integer.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Pins the calling thread to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    pin_to_any([cpu])
}

/// Keeps the calling thread, and those it starts, to these CPUs.
pub fn pin_to_any(cpus: impl IntoIterator<Item = usize>) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: CPU_SET ignores numbers beyond the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` lives through the call and its size is passed.
    let rc = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Timers of the calling thread expire when they are due, not up to 50 us later.
pub fn no_timer_slack() {
    // SAFETY: takes plain integers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// A file in memory, empty.
pub fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string; returns a descriptor or an error.
    let raw = unsafe { libc::memfd_create(c"guest page".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { File::from_raw_fd(raw) })
}

/// A program that this one becomes does not get this descriptor.
pub fn close_on_exec(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: takes plain integers.
    let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where each thread of this process is: name, state, and the kernel's stack if there is one.
pub fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: &std::fs::DirEntry, file: &str| {
        std::fs::read_to_string(task.path().join(file)).unwrap_or_default()
    };
    let text = |task| {
        let (stat, stack) = (of(&task, "stat"), of(&task, "stack"));
        let name: Vec<&str> = stat.split_whitespace().take(3).collect();
        let calls: Vec<&str> = stack.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        format!("{} {}", name.join(" "), calls.join(" "))
    };
    tasks.map(text).collect()
}

/// Makes SIGUSR1 interrupt system calls and do nothing else: it takes a vCPU thread out of KVM_RUN.
pub fn install_kick_signal() -> vmm_sys_util::errno::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(libc::SIGUSR1, nothing)
}

/// Sends SIGUSR1 to a thread of this process.
pub fn kick(tid: i32) {
    // SAFETY: takes plain integers; a thread that is gone gives ESRCH.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) };
}
