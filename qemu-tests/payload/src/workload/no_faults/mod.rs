//! What programs do all the time, without a missing page: what does a mode cost that is not used?
//!
//! Each of [`kinds::KINDS`] is done again and again, each time timed by the time-stamp counter. Where that counts instructions,
//! they are those of L1 and L2 together, and whatever meets no timer tick takes exactly as many as the time before: so the
//! commonest count is reported, less that of doing nothing. Exits are counted in sections in which it is done once, and
//! the fewest are those without a tick. Options: `rounds` (timed, of each kind), `sections` (of each kind, for exits).

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::tally::Tally;
use kinds::{KINDS, Once, Things};

mod kinds;

/// Untimed rounds of each kind before: the kernel's caches and lists are then what they stay.
const WARM_UP: u64 = 20;

/// `no_faults`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (rounds, sections) = (options.number("rounds", 300)?, options.number("sections", 8)?);
    ensure!(rounds > 0 && sections > 0, "rounds={rounds}, sections={sections}: must not be 0");
    let mut things = Things::new()?;
    let mut times = vec![0; usize::try_from(rounds)?];
    let section = Section::begin(device, options, name)?;
    let nothing = usual(timed(kinds::nothing, &mut things, &mut times)?);
    let no_exits = exits(kinds::nothing, &mut things, device, sections)?;
    let mut by_kind = Map::new();
    for kind in &KINDS {
        let mut measure = || -> Result<Value> {
            let times = timed(kind.once, &mut things, &mut times)?;
            let (usual, least) = (usual(times), times.iter().copied().min().unwrap_or(0));
            let exits = exits(kind.once, &mut things, device, sections)?;
            Ok(json!({
                "times": kind.times,
                "tsc": usual.value - nothing.value,
                "tsc_rounds": usual.rounds,
                "tsc_least": least - nothing.value,
                "exits": exits.value - no_exits.value,
                "exits_sections": exits.rounds,
            }))
        };
        by_kind.insert(kind.name.to_owned(), measure().context(kind.name)?);
    }
    let measured = section.end()?;
    things.end()?;
    let sum = |field: &str| {
        let of = |kind: &Value| Some(kind["times"].as_u64()? * kind[field].as_u64()?);
        by_kind.values().map(of).sum::<Option<u64>>()
    };
    let more = json!({
        "rounds": rounds, "sections": sections, "timing": nothing.value,
        "tsc": sum("tsc"), "tick_free_exits": sum("exits"), "kinds": by_kind,
    });
    measured.report(device, name, 0, 0, &Tally::default(), more);
    Ok(())
}

/// A count, and how many rounds had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    value: u64,
    rounds: usize,
}

/// Time-stamp counts, one for each time that it is done.
fn timed<'a>(once: Once, things: &mut Things, times: &'a mut [u64]) -> Result<&'a [u64]> {
    for _ in 0..WARM_UP {
        once(things)?;
    }
    for time in &mut *times {
        let began = tsc();
        once(things)?;
        *time = tsc() - began;
    }
    Ok(times)
}

/// The commonest; of several the least.
fn usual(values: &[u64]) -> Counted {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(*value).or_default() += 1;
    }
    let (value, rounds) =
        counts.into_iter().rev().max_by_key(|(_, rounds)| *rounds).unwrap_or_default();
    Counted { value, rounds }
}

/// The fewest exits of a section in which it is done once, by KVM's statistics.
fn exits(once: Once, things: &mut Things, device: &Device, sections: u64) -> Result<Counted> {
    let mut all = Vec::new();
    for _ in 0..sections {
        device.stats_begin("once")?;
        once(things)?;
        let stats = device.stats_end("once")?;
        all.push(stats["exits"].as_u64().context("KVM counts no exits")?);
    }
    let value = all.iter().copied().min().unwrap_or(0);
    Ok(Counted { value, rounds: all.iter().filter(|exits| **exits == value).count() })
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and nothing forbids it to user mode here.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_count_is_of_rounds_without_a_tick() {
        assert_eq!(usual(&[7, 9, 30, 9, 8, 9]), Counted { value: 9, rounds: 3 });
        assert_eq!(usual(&[9, 7, 9, 7]), Counted { value: 7, rounds: 2 });
        assert_eq!(usual(&[]), Counted { value: 0, rounds: 0 });
    }

    #[test]
    fn every_kind_can_be_done_here_but_those_that_need_the_vmm() -> Result<()> {
        let mut things = Things::new()?;
        for kind in KINDS.iter().filter(|kind| kind.name != "exit to the VMM") {
            let mut times = [0; 3];
            timed(kind.once, &mut things, &mut times).context(kind.name)?;
            assert!(times.iter().all(|time| *time > 0), "{}", kind.name);
        }
        things.end()
    }
}
