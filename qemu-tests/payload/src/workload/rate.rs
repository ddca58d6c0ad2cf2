//! What do vCPUs execute for a missing page? Tasks work for a while, touch a missing page of their own, and so on; there
//! are enough of them to keep every vCPU busy while pages are on their way.
//!
//! First on one vCPU, the others idle, then with as many tasks on each of two, and so on. Options: `tasks` (on each vCPU), `pages` (of each
//! task), `work` (steps before each touch).

use anyhow::Result;
use serde_json::json;

use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::compute::{own_ns, pin, work};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys;
use crate::tally::{From, Tally};

/// `rate`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 4)?, options.count("pages", 48)?);
    let steps = options.number("work", 20_000)?;
    let policy = options.policy()?;
    let vcpus = sys::cpu_count();
    device.set_policy(&[], policy)?;
    let arena = Arena::anonymous(device, vcpus * tasks * pages)?;
    let work_us = own_ns(|_| work(steps)) / 1000;
    for busy in 1..=vcpus {
        let slices = arena.slices(vcpus * tasks);
        let frames: Vec<u64> =
            slices.iter().take(busy * tasks).flat_map(Slice::frames).copied().collect();
        device.evict(&frames, 0)?;
        let team = Team::new(busy * tasks, "rate", None, move |i, tally| {
            pin(Some(i % busy));
            go(&slices[i], i, steps, tally);
        })?;
        let section = Section::begin(device, options, name)?;
        team.go();
        let tally = team.join();
        let measured = section.end()?;
        let more = json!({
            "busy_vcpus": busy, "pages": pages, "work_us": work_us,
        });
        measured.report(device, name, busy * tasks, policy.max_us, &tally, more);
    }
    Ok(())
}

fn go(slice: &Slice, seed: usize, steps: u64, tally: &mut Tally) {
    for index in shuffled(slice.count, seed as u64) {
        work(steps);
        let wrong = tally.touch(From::User, || slice.wrong_bytes(index, 0, 0..1));
        tally.wrong_bytes += wrong;
    }
}
