//! Tasks that touch missing pages of their own, beside tasks that compute.
//!
//! Options: `tasks`, `pages` (of each task), `rounds`, `work` (steps before each touch). `work_touch`: the same, by another name. `burst`: as many faults as there are tasks are delivered
//! together. `one_at_a_time`: one task, so never more than one fault outstanding. `idle`: no faults, only the
//! computing tasks for `ms`.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use ve_apf_testdev::{PAGE_WORDS, PolicyArgs};

use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::compute::{own_ns, work};
use crate::device::Device;
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::tally::Tally;

/// `user_touch`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let policy = options.policy()?;
    go(name, options, device, options.count("tasks", 8)?, options.count("pages", 32)?, policy)
}

/// `burst`.
pub(super) fn run_burst(name: &str, options: &Options, device: &Device) -> Result<()> {
    let tasks = options.count("tasks", 16)?;
    let mut policy = options.policy()?;
    if policy.burst == 0 {
        policy.burst = u32::try_from(tasks)?;
    }
    go(name, options, device, tasks, options.count("pages", 16)?, policy)
}

/// `one_at_a_time`.
pub(super) fn run_one_at_a_time(name: &str, options: &Options, device: &Device) -> Result<()> {
    go(name, options, device, 1, options.count("pages", 200)?, options.policy()?)
}

/// `idle`.
pub(super) fn run_idle(name: &str, options: &Options, device: &Device) -> Result<()> {
    let section = Section::begin(device, options, name)?;
    std::thread::sleep(Duration::from_millis(options.number("ms", 1000)?));
    section.end()?.report(device, name, 0, 0, &Tally::default(), json!({}));
    Ok(())
}

fn go(
    name: &str,
    options: &Options,
    device: &Device,
    tasks: usize,
    pages: usize,
    policy: PolicyArgs,
) -> Result<()> {
    let (rounds, steps) = (options.number("rounds", 1)?, options.number("work", 0)?);
    let own_ns = own_ns(|_| work(steps));
    let arena = Arena::anonymous(device, tasks * pages)?;
    device.set_policy(&[], policy)?;
    // The first round's pages go before the section begins: it then has no exits but those of the faults.
    device.evict(&arena.frames, 0)?;
    let slices = arena.slices(tasks);
    let slices_after = slices.clone();
    let again = device.clone();
    let team = Team::new(tasks, "touch", pinned(options)?, move |i, tally| {
        for round in 0..rounds {
            if round > 0 {
                if let Err(error) = again.evict(slices[i].frames(), round) {
                    println!("l2-init: evict: {error:#}");
                    return;
                }
            }
            touch_all(&slices[i], round, i as u64, steps, tally);
            if round + 1 < rounds {
                for index in 0..slices[i].count {
                    tally.wrong_bytes += slices[i].wrong_bytes(index, round, 0..PAGE_WORDS);
                }
            }
        }
    })?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let mut tally = team.join();
    let measured = section.end()?;
    tally.own_ns = own_ns * tally.faults;
    // Whole pages are verified where they still are, and outside the section: it costs more than a fault does.
    let last = rounds.saturating_sub(1);
    for slice in slices_after.iter() {
        for index in 0..slice.count {
            tally.wrong_bytes += slice.wrong_bytes(index, last, 0..PAGE_WORDS);
        }
    }
    let burst = policy.burst;
    let more = json!({
        "pages": pages, "rounds": rounds, "burst": burst, "order": options.text("order", "fifo"),
        "work_us": own_ns / 1000,
    });
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}

fn touch_all(slice: &Slice, round: u64, seed: u64, steps: u64, tally: &mut Tally) {
    let mut wrong = 0;
    let pages = shuffled(slice.count, seed + round * 1000).into_iter();
    tally.touch_each(pages.inspect(|_| work(steps)), |index| {
        wrong += slice.wrong_bytes(index, round, 0..1);
    });
    tally.wrong_bytes += wrong;
}
