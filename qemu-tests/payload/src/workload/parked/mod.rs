//! Things that happen to tasks while they are parked, with so many faults outstanding that none, one, all but one and all
//! slots of a ring are in use: nobody hangs, no slot is lost, and the data is right afterwards.
//!
//! `parked_EVENT`, where EVENT is one of [`events::ALL`]. Options: `outstanding` (a list, `0,1,61,62`), `limit_ms`: the longest
//! that anything may take. Pages come when the event says so, not by themselves. Reports for each number of faults how long
//! each step took, in microseconds.

mod cgroup;
mod cpu;
mod crowd;
mod events;
mod memslot;
mod party;
mod touch;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ve_apf_testdev::{PAGE_WORDS, PolicyArgs};

use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, process, sys};
use party::Party;

/// Slots of a ring.
const MOST: usize = 62;

/// `parked_EVENT`.
pub(super) fn run(event: &str, options: &Options, device: &Device) -> Result<()> {
    let script = events::find(event).with_context(|| format!("parked_{event}: no such event"))?;
    let numbers = options.numbers("outstanding", "0,1,61,62")?;
    ensure!(numbers.iter().all(|n| *n <= MOST), "veapf.outstanding: more than {MOST}");
    let limit = Duration::from_millis(options.number("limit_ms", 2000)?);
    process::only_one_thread()?;
    // All slots are those of one ring.
    sys::pin_to(0)?;
    // One page more than there are slots.
    let arena = Arena::anonymous(device, MOST + 1)?;
    let slice = arena.slices(1).remove(0);
    device.set_policy(&[], PolicyArgs { never: true, ..PolicyArgs::fixed(0) })?;

    let name = format!("parked_{event}");
    let before = GuestCounters::read();
    device.stats_begin(&name)?;
    let mut rounds = Vec::new();
    let mut wrong_bytes = 0;
    for (round, outstanding) in numbers.iter().enumerate() {
        let mut party = Party::new(device, &slice, *outstanding, round as u64, limit);
        let result = script(&mut party);
        let times = party.finish(result).with_context(|| format!("{outstanding} outstanding"))?;
        wrong_bytes += wrong_in(&slice, *outstanding, round as u64);
        rounds.push(times);
    }
    // Whatever was lost on the way is missing here: all slots are to be had once more.
    let mut last = Party::new(device, &slice, MOST, numbers.len() as u64, limit);
    let result = events::touched(&mut last);
    last.finish(result).context("all slots afterwards")?;
    wrong_bytes += wrong_in(&slice, MOST, numbers.len() as u64);
    device.stats_end(&name)?;

    let bad = dmesg::bad_lines();
    let mut record = Value::Object(GuestCounters::read().since(&before));
    let faults = numbers.iter().sum::<usize>() + MOST;
    for (field, value) in [
        ("kind", json!("result")),
        ("workload", json!(name)),
        ("outstanding", json!(numbers)),
        ("faults_wanted", json!(faults)),
        ("rounds", json!(rounds)),
        ("wrong_bytes", json!(wrong_bytes)),
        ("bad", json!(bad.len())),
        ("bad_lines", json!(bad)),
    ] {
        record[field] = value;
    }
    let rescued = record["ve_apf"]["rescued"].clone();
    device.report(&name, &record);
    // A case may run many of these; its expectations see the last one.
    ensure!(
        wrong_bytes == 0 && bad.is_empty() && rescued == 0,
        "{wrong_bytes} wrong bytes, {rescued} rescued, {bad:?}"
    );
    Ok(())
}

fn wrong_in(slice: &Slice, count: usize, round: u64) -> u64 {
    (0..count).map(|index| slice.wrong_bytes(index, round, 0..PAGE_WORDS)).sum()
}
