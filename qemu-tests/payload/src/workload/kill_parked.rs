//! A process waits for a page that does not come, and is killed: it must die at once, and the page's late arrival must
//! disturb nobody.
//!
//! Options: `rounds`, `limit_ms`: longest time from SIGKILL to its death. With `never=0` the page comes after `latency`,
//! for modes in which the whole vCPU waits.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use ve_apf_testdev::{PAGE_WORDS, PolicyArgs};

use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::tally::Tally;

/// `kill_parked`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let rounds = options.number("rounds", 3)?;
    let limit = Duration::from_millis(options.number("limit_ms", 1000)?);
    let policy = options.policy()?;
    let policy = PolicyArgs { never: options.text("never", "1") == "1", ..policy };
    let arena = Arena::anonymous(device, 1)?;
    let slice = arena.slices(1).remove(0);
    device.set_policy(&[], policy)?;
    let section = Section::begin(device, options, name)?;
    let mut tally = Tally::default();
    let mut kills = Vec::new();
    for round in 0..rounds {
        device.evict(slice.frames(), round)?;
        kills.push(kill_one(device, &slice, limit)?);
        device.restore_all()?;
        tally.faults += 1;
        tally.wrong_bytes += slice.wrong_bytes(0, round, 0..PAGE_WORDS);
    }
    let measured = section.end()?;
    let in_time = kills.iter().filter(|kill| kill["in_time"] == true).count();
    let survivors = kills.len() - in_time;
    let more = json!({"rounds": rounds, "killed_in_time": in_time, "survivors": survivors, "kills": kills});
    measured.report(device, name, 1, policy.max_us, &tally, more);
    Ok(())
}

fn kill_one(device: &Device, slice: &Slice, limit: Duration) -> Result<Value> {
    let child = fork_toucher(slice)?;
    let waited = Instant::now();
    while device.pager_state()?.pending == 0 && waited.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pending = device.pager_state()?.pending > 0;
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: takes plain integers; the child is ours and not reaped yet.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let killed = Instant::now();
    let status = reap(child, limit)?;
    let in_time = status.is_some();
    let died_us = killed.elapsed().as_micros() as u64;
    let state = if in_time {
        String::new()
    } else {
        std::fs::read_to_string(format!("/proc/{child}/stat"))?
    };
    if !in_time {
        // Then it must die when the page is there.
        device.restore_all()?;
    }
    let status = match status {
        Some(status) => Some(status),
        None => reap(child, Duration::from_secs(5))?,
    };
    let by_signal = status.map(|status| libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)));
    Ok(
        json!({"pending": pending, "in_time": in_time, "died_us": died_us, "signal": by_signal, "stat": state}),
    )
}

/// A process of its own that touches the page and ends.
fn fork_toucher(slice: &Slice) -> io::Result<i32> {
    // SAFETY: the child only reads memory and ends by _exit: nothing that other threads' locks could block.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            slice.read(0, 0);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        child => Ok(child),
    }
}

/// The child's status, if it ends within `limit`.
fn reap(child: i32, limit: Duration) -> io::Result<Option<i32>> {
    let began = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: `status` lives through the call.
        match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
            0 if began.elapsed() >= limit => return Ok(None),
            0 => std::thread::sleep(Duration::from_micros(500)),
            n if n == child => return Ok(Some(status)),
            _ => return Err(io::Error::last_os_error()),
        }
    }
}
