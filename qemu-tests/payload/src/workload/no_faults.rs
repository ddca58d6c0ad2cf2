//! The same work each time, without a missing page: what does a mode cost that is not used?
//!
//! A round computes, makes system calls, moves bytes through a pipe to another task and back, and makes page faults of the
//! guest's own. Reported are time-stamp counts of the rounds. Where the counter counts instructions, they are
//! those of L1 and L2 together. Options: `rounds`, `work` (of a round, in
//! thousands of steps that compute, hundreds of system calls, and so on).

use std::io::{Read, Write, pipe};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::compute::work;
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys::Pages;
use crate::tally::Tally;

/// `no_faults`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (rounds, size) = (options.number("rounds", 3)?, options.number("work", 200)?);
    let (mut to, mut from, echo) = echo_task()?;
    // Once before, so that nothing is done for the first time.
    round(1, &mut to, &mut from)?;
    let section = Section::begin(device, options, name)?;
    let mut counts = Vec::new();
    for _ in 0..rounds {
        let began = tsc();
        round(size, &mut to, &mut from)?;
        counts.push(tsc() - began);
    }
    let measured = section.end()?;
    drop(to);
    if echo.join().is_err() {
        bail!("the other task panicked");
    }
    let all = counts.iter().sum::<u64>();
    counts.sort_unstable();
    let more = json!({"rounds": rounds, "work": size, "tsc": {
        "least": counts.first(), "median": counts.get(counts.len() / 2), "most": counts.last(), "sum": all,
    }});
    measured.report(device, name, 0, 0, &Tally::default(), more);
    Ok(())
}

fn round(size: u64, to: &mut impl Write, from: &mut impl Read) -> Result<()> {
    work(size * 1000);
    for _ in 0..size * 100 {
        // SAFETY: takes nothing, changes nothing.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    let mut byte = [0; 1];
    for _ in 0..size * 10 {
        to.write_all(&[7])?;
        from.read_exact(&mut byte)?;
    }
    for _ in 0..size {
        Pages::fresh(8)?;
    }
    Ok(())
}

type Echo = (std::io::PipeWriter, std::io::PipeReader, JoinHandle<()>);

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

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and nothing forbids it to user mode here.
    unsafe { std::arch::x86_64::_rdtsc() }
}
