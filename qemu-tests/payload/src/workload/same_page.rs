//! Several tasks touch the same missing page while another computes.
//!
//! Options: `tasks`, `pages` (touched by all, one after the other). Only a touch that took at least half of the latency
//! met a missing page; `touches` counts all.

use std::sync::{Arc, Barrier};

use anyhow::Result;
use serde_json::json;
use ve_apf_testdev::PAGE_WORDS;

use super::team::Team;
use crate::arena::Arena;
use crate::device::Device;
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::tally::From;

/// `same_page`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 4)?, options.count("pages", 16)?);
    let policy = options.policy()?;
    let arena = Arena::anonymous(device, pages)?;
    let slices = Arc::new(arena.slices(1));
    let together = Arc::new(Barrier::new(tasks));
    let team = || {
        let (slices, together) = (slices.clone(), together.clone());
        Team::new(tasks, "same", pinned(options)?, move |_, tally| {
            let slice = &slices[0];
            for index in 0..slice.count {
                together.wait();
                tally.touch(From::User, || slice.read(index, 0));
                tally.wrong_bytes += slice.wrong_bytes(index, 0, 0..PAGE_WORDS);
            }
        })
    };
    // What these pages hold is not the pager's yet, so only the time of it counts.
    let there = team()?;
    there.go();
    let own_ns = there.join().cpu_ns;
    device.set_policy(&[], policy)?;
    device.evict(&arena.frames, 0)?;
    let team = team()?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let mut tally = team.join();
    let measured = section.end()?;
    tally.own_ns = own_ns;
    let waited = tally.slower_than(policy.min_us / 2);
    let more = json!({"pages": pages, "touches": tally.faults, "faults": waited});
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}
