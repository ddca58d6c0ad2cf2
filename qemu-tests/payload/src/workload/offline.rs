//! CPUs go offline and come back while tasks that faulted on them are parked: all of them finish, with the right bytes.
//!
//! Options: `tasks`, `pages` (of each task). Every CPU but the first is taken away and given back, over and over, until
//! the tasks are done; `switches` counts that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use ve_apf_testdev::PAGE_WORDS;

use super::team::Team;
use crate::arena::{Arena, shuffled};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys;

/// `offline`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 8)?, options.count("pages", 64)?);
    let policy = options.policy()?;
    let cpus = sys::cpu_count();
    let arena = Arena::anonymous(device, tasks * pages)?;
    device.set_policy(&[], policy)?;
    device.evict(&arena.frames, 0)?;
    let slices = arena.slices(tasks);
    let team = Team::new(tasks, "touch", None, move |i, tally| {
        let slice = &slices[i];
        let mut wrong = 0;
        tally.touch_each(shuffled(slice.count, i as u64).into_iter(), |index| {
            wrong += slice.wrong_bytes(index, 0, 0..PAGE_WORDS);
        });
        tally.wrong_bytes += wrong;
    })?;
    let section = Section::begin(device, options, name)?;
    let done = Arc::new(AtomicBool::new(false));
    let switches = Arc::new(AtomicU64::new(0));
    let switcher = {
        let (done, switches) = (done.clone(), switches.clone());
        std::thread::Builder::new().name("switcher".into()).spawn(move || -> Result<()> {
            while !done.load(Relaxed) {
                for cpu in 1..cpus {
                    switch(cpu, false)?;
                    std::thread::sleep(Duration::from_millis(20));
                    switch(cpu, true)?;
                    std::thread::sleep(Duration::from_millis(20));
                    switches.fetch_add(1, Relaxed);
                }
            }
            Ok(())
        })?
    };
    team.go();
    let tally = team.join();
    done.store(true, Relaxed);
    // A panic ends the program, so joining does not fail.
    if let Ok(result) = switcher.join() {
        result?;
    }
    let measured = section.end()?;
    let more = json!({"pages": pages, "switches": switches.load(Relaxed)});
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}

fn switch(cpu: usize, online: bool) -> Result<()> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    std::fs::write(&path, if online { "1" } else { "0" }).context(path)
}
