//! execve() with an argument in a missing page: the kernel copies it into the new program's stack.
//!
//! The child that executes is forked anew for each page, and slept if the scheduler counts a voluntary switch of it. The
//! time is that from fork() to its end. Options: `tasks`, `pages` (of each task).

use std::io;
use std::ptr::null;

use anyhow::{Result, bail};
use serde_json::json;

use super::team::Team;
use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::options::Options;
use crate::process::{EXEC_CODE, fork};
use crate::section::{Section, pinned};
use crate::sys;
use crate::tally::{From, Tally};

/// The second word of the program's command line: our own program then ends at once.
const ARGUMENT: u64 = u64::from_le_bytes(*b"--exit\0\0");

/// `execve`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 2)?, options.count("pages", 8)?);
    let policy = options.policy()?;
    let arena = Arena::anonymous(device, tasks * pages)?;
    for index in 0..tasks * pages {
        arena.pages.write(index, 0, ARGUMENT);
    }
    device.set_policy(&[], policy)?;
    device.evict_keep(&arena.frames)?;
    let slices = arena.slices(tasks);
    let team = Team::new(tasks, "exec", pinned(options)?, move |i, tally| {
        let slice = &slices[i];
        for index in 0..slice.count {
            if let Err(error) = execute(slice, index, tally) {
                tally.wrong_bytes += sys::PAGE as u64;
                println!("l2-init: execve, task {i}, page {index}: {error:#}");
            }
        }
    })?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let tally = team.join();
    section.end()?.report(device, name, tasks, policy.max_us, &tally, json!({"pages": pages}));
    Ok(())
}

fn execute(slice: &Slice, index: usize, tally: &mut Tally) -> Result<()> {
    let argument = slice.page(index).cast::<libc::c_char>().cast_const();
    let argv = [c"/init".as_ptr(), argument, null()];
    let env = [null()];
    let began = sys::now_ns();
    let child = fork(|| {
        // SAFETY: both lists end with a null pointer; the program's name is a C string, and the kernel checks the argument.
        unsafe { libc::execve(argv[0], argv.as_ptr(), env.as_ptr()) };
        1
    })?;
    let mut status = 0;
    // SAFETY: rusage is plain integers; all zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both live through the call.
    if unsafe { libc::wait4(child, &mut status, 0, &mut usage) } != child {
        return Err(io::Error::last_os_error().into());
    }
    tally.count(From::Kernel, (sys::now_ns() - began) / 1000, usage.ru_nvcsw > 0);
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != EXEC_CODE {
        bail!("status {status:#x}");
    }
    Ok(())
}
