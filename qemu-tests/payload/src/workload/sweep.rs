//! Fills memory, then visits it at random and checks every page, for clients that have no test device: whatever takes
//! pages away (swap, migration) does so from outside.
//!
//! Options: `mib`, `tasks`, `ms`, `compute`. The tasks own equal parts and change a word of each page they visit.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

use super::team::Team;
use crate::arena::Random;
use crate::compute::Computers;
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::section::pinned;
use crate::sys::{self, Pages};
use crate::tally::{From, Tally};
use crate::{dmesg, plan};

/// `sweep`.
pub(super) fn run(options: &Options, device: Option<&Device>) -> Result<()> {
    let (mib, tasks) = (options.count("mib", 64)?, options.count("tasks", 8)?);
    let limit = Duration::from_millis(options.number("ms", 5000)?);
    let pages = Pages::anonymous(mib * 256).context("cannot map the memory")?;
    for page in 0..pages.len() {
        let base = pattern_base(page as u64, 0);
        (0..PAGE_WORDS).for_each(|word| pages.write(page, word, pattern_word(base, word)));
    }
    println!("l2-init: sweep begins");
    let before = GuestCounters::read();
    let each = pages.len() / tasks;
    let team = Team::new(tasks, "sweep", pinned(options)?, move |i, tally| {
        let began = Instant::now();
        let mut random = Random::new(i as u64);
        let mut rounds = vec![0u32; each];
        while began.elapsed() < limit {
            let mine = random.below(each as u64) as usize;
            visit(&pages, i * each + mine, &mut rounds[mine], tally);
        }
        // Once all of it, so that no page stays unchecked.
        for (mine, round) in rounds.iter_mut().enumerate() {
            visit(&pages, i * each + mine, round, tally);
        }
    })?;
    let compute = options.count("compute", 1)?;
    let computers = Computers::start(compute, pinned(options)?)?;
    let began = sys::now_ns();
    team.go();
    let tally = team.join();
    let wall_us = (sys::now_ns() - began) / 1000;
    let share = computers.stop();
    let mut record = json!(GuestCounters::read().since(&before));
    let bad = dmesg::bad_lines();
    let fields = [
        tally.fields(),
        json!({
            "kind": "result", "workload": "sweep", "tasks": tasks, "compute": compute, "mib": mib, "wall_us": wall_us,
            "useful_share": share.of_cpu(), "bad": bad.len(), "bad_lines": bad,
            "faults": null, "visits": tally.faults, "parked": tally.parked,
        }),
    ];
    for (name, value) in fields.iter().filter_map(|fields| fields.as_object()).flatten() {
        record[name] = value.clone();
    }
    match device {
        Some(device) => device.report("", &record),
        None => plan::print(&record),
    }
    Ok(())
}

/// Word 0 holds the visits so far; the rest is the page's pattern.
fn visit(pages: &Pages, page: usize, round: &mut u32, tally: &mut Tally) {
    let base = pattern_base(page as u64, 0);
    let first = tally.touch(From::User, || pages.read(page, 0));
    let wrong =
        (1..PAGE_WORDS).filter(|word| pages.read(page, *word) != pattern_word(base, *word)).count();
    let head_wrong = first != pattern_word(base, 0).wrapping_add(u64::from(*round));
    tally.wrong_bytes += (wrong as u64 + u64::from(head_wrong)) * 8;
    *round += 1;
    pages.write(page, 0, pattern_word(base, 0).wrapping_add(u64::from(*round)));
}
