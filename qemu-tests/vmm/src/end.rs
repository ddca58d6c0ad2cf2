//! Ends of a VM that are not orderly: closed, or left by its process, while threads of its wait for pages.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::pager::Pager;
use crate::report::Reporter;

/// What KVM calls its threads that wait for pages.
const THREAD: &str = "kvm-apf-";

/// Threads of this process that wait for pages, or did.
fn threads() -> io::Result<usize> {
    let names = fs::read_dir("/proc/self/task")?
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|name| name.starts_with(THREAD)).count())
}

/// Closes the VM behind everybody's back, its vCPUs' threads gone by then; then delivers what is missing. The caller uses
/// neither the VM nor a file of its statistics any more, and ends the process.
pub fn close(pager: &Pager, reporter: &Reporter) -> Result<()> {
    // The thread that said that the guest is at its end lets go of its vCPU.
    std::thread::sleep(Duration::from_millis(100));
    let waiting = threads()?;
    let mut closed = 0;
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        if link.to_string_lossy().starts_with("anon_inode:kvm-") {
            let fd: i32 = entry.file_name().to_string_lossy().parse().context("/proc/self/fd")?;
            // SAFETY: takes a plain integer; the owner of the descriptor is not used again, as the caller promises.
            unsafe { libc::close(fd) };
            closed += 1;
        }
    }
    let still = threads()?;
    let missing = pager.state().missing;
    pager.finish()?;
    let began = Instant::now();
    while threads()? > 0 && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let record = json!({
        "descriptors": closed, "missing": missing, "threads": waiting, "threads_after_close": still,
        "threads_after_pages": threads()?, "us": began.elapsed().as_micros() as u64,
    });
    reporter.print_value("closed", record);
    Ok(())
}

/// A process with copies of all descriptors of this one, and nothing of its memory that is the guest's. It sleeps until it is
/// killed. Returns its id.
pub fn hold_descriptors() -> io::Result<i32> {
    // SAFETY: the child makes only system calls that are safe after fork(), and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            for output in [0, 1, 2] {
                // SAFETY: takes a plain integer. Whoever reads our output waits for its end.
                unsafe { libc::close(output) };
            }
            // SAFETY: no arguments.
            unsafe { libc::pause() };
        },
        child => Ok(child),
    }
}
