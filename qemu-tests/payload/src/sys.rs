//! Thin wrappers over system calls: clocks, threads, memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes in a page.
pub const PAGE: usize = 4096;

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a valid timespec, and both clocks in use exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut ts) };
    // Neither clock is ever negative.
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// `CLOCK_MONOTONIC` in ns.
pub fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time of the calling thread in ns.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// How often the calling thread gave up its CPU by itself: each park is one.
pub fn voluntary_switches() -> u64 {
    // SAFETY: rusage is plain integers; all zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid rusage and lives through the call.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) };
    usage.ru_nvcsw as u64
}

/// Thread id of the caller.
pub fn gettid() -> i32 {
    // Not libc's function: std refers to it weakly, and a static program built with LTO would then call address 0.
    // SAFETY: no arguments, cannot fail, and thread ids are below 2^22.
    unsafe { libc::syscall(libc::SYS_gettid) as i32 }
}

/// Pins the calling thread to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    run_on(0, cpu..cpu + 1)
}

/// The calling thread, and what it starts, runs on no CPU but those after the first, if there are any.
pub fn spare_first_cpu() -> io::Result<()> {
    match cpus_online() {
        1 => Ok(()),
        count => run_on(0, 1..count),
    }
}

fn membarrier_command(command: libc::c_int) -> io::Result<()> {
    // SAFETY: takes three numbers.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This process will use [`membarrier`].
pub fn register_membarrier() -> io::Result<()> {
    membarrier_command(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
}

/// Has each other CPU that runs a thread of this process execute a memory barrier: by an IPI, whose answer it waits for.
pub fn membarrier() -> io::Result<()> {
    membarrier_command(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

/// From now on thread `pid`, or the caller if that is 0, runs on these CPUs only.
pub fn run_on(pid: i32, cpus: Range<usize>) -> io::Result<()> {
    // SAFETY: cpu_set_t is plain bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: CPU_SET ignores numbers beyond the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` lives through the call and its size is passed.
    let rc = unsafe { libc::sched_setaffinity(pid, size_of_val(&set), &set) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The calling thread, and those that it makes from now on, run until they sleep; or are as all others again.
pub fn real_time(on: bool) -> io::Result<()> {
    let policy = if on { libc::SCHED_FIFO } else { libc::SCHED_OTHER };
    // SAFETY: sched_param is plain integers; all zero is valid.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = i32::from(on);
    // Not libc's function: in musl it only fails.
    // SAFETY: `param` lives through the call.
    let rc = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const param) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Number of CPUs online, whether or not the caller may run on them.
pub fn cpus_online() -> usize {
    // SAFETY: takes a plain integer.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1)
}

/// Number of CPUs that the caller may run on.
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of a huge page, and what one page table maps.
const HUGE: usize = 2 << 20;

/// A mapping of whole pages that stays where it is until the program ends. Its content changes behind the compiler's
/// back, so it is only reached through volatile accesses.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    start: usize,
    count: usize,
}

impl Pages {
    /// Anonymous, present and locked.
    pub fn anonymous(count: usize) -> io::Result<Pages> {
        Pages::map(count, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// A child gets no copy, so that no write after a fork() moves a page to another frame.
    pub fn keep_from_children(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTFORK)
    }

    /// A file's first pages, shared, present and locked.
    pub fn of_file(file: &File, count: usize) -> io::Result<Pages> {
        use std::os::fd::AsRawFd;
        Pages::map(count, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Anonymous, in huge pages: frames follow each other from one aligned to 2 MiB on.
    pub fn huge(count: usize) -> io::Result<Pages> {
        let len = (count * PAGE).next_multiple_of(HUGE);
        let start = Pages::room(len)?;
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
            // SAFETY: `len` bytes from `start` on are part of the mapping just made.
            if unsafe { libc::madvise(start, len, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: as above.
        if unsafe { libc::mlock(start, len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: start as usize, count })
    }

    /// One anonymous page that [`Pages::forget`] can take away, in a page table of its own.
    pub fn volatile() -> io::Result<Pages> {
        let start = Pages::room(HUGE)?;
        // SAFETY: the range was just mapped; the advice changes no content. Kernels without THP refuse: fine.
        unsafe { libc::madvise(start, HUGE, libc::MADV_NOHUGEPAGE) };
        Ok(Pages { start: start as usize, count: 1 })
    }

    /// Gives all pages back to the kernel; the next touch of each is a page fault.
    pub fn forget(&self) -> io::Result<()> {
        self.advise(libc::MADV_DONTNEED)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        let start = self.start as *mut libc::c_void;
        // SAFETY: the range is this mapping, which is only reached through volatile accesses.
        match unsafe { libc::madvise(start, self.count * PAGE, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Address space for `len` bytes, aligned to [`HUGE`]; anonymous, nothing of it present.
    fn room(len: usize) -> io::Result<*mut libc::c_void> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let room = unsafe { libc::mmap(std::ptr::null_mut(), len + HUGE, prot, flags, -1, 0) };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok((room as usize).next_multiple_of(HUGE) as *mut libc::c_void)
    }

    fn map(count: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<Pages> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let len = count * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped; the advice changes no content. Kernels without THP refuse: fine.
        unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
        // SAFETY: the range was just mapped.
        if unsafe { libc::madvise(start, len, libc::MADV_POPULATE_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range was just mapped.
        if unsafe { libc::mlock(start, len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Pages { start: start as usize, count })
    }

    /// Number of pages.
    pub fn len(&self) -> usize {
        self.count
    }

    /// No pages.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Address of page `index`.
    pub fn page(&self, index: usize) -> *mut u8 {
        assert!(index < self.count, "page {index} of {}", self.count);
        (self.start + index * PAGE) as *mut u8
    }

    /// Word `word` of page `index`.
    pub fn read(&self, index: usize, word: usize) -> u64 {
        assert!(word < PAGE / 8);
        // SAFETY: inside the mapping (checked), aligned, and the mapping is never removed.
        unsafe { self.page(index).cast::<u64>().add(word).read_volatile() }
    }

    /// Sets word `word` of page `index`.
    pub fn write(&self, index: usize, word: usize, value: u64) {
        assert!(word < PAGE / 8);
        // SAFETY: as for `read`; no reference into the mapping exists.
        unsafe { self.page(index).cast::<u64>().add(word).write_volatile(value) }
    }

    /// Guest frame numbers of all pages, from /proc/self/pagemap.
    pub fn frames(&self) -> io::Result<Vec<u64>> {
        const PRESENT: u64 = 1 << 63;
        const FRAME: u64 = (1 << 55) - 1;
        let mut raw = vec![0; self.count * 8];
        File::open("/proc/self/pagemap")?
            .read_exact_at(&mut raw, (self.start / PAGE * 8) as u64)?;
        raw.chunks_exact(8)
            .map(|bytes| {
                let entry =
                    bytes.iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
                let frame = entry & FRAME;
                let known = entry & PRESENT != 0 && frame != 0;
                known
                    .then_some(frame)
                    .ok_or_else(|| io::Error::other("pagemap does not tell the frame"))
            })
            .collect()
    }
}
