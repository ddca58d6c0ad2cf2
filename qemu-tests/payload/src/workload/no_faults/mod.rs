//! What programs do all the time, without a missing page: what does a mode cost that is not used?
//!
//! Each of [`kinds::KINDS`] is done again and again, each time timed by the time-stamp counter. Where that counts instructions,
//! they are those of L1 and L2 together, and whatever meets no timer tick takes exactly as many as the time before: ticks only
//! add, so the least count is reported, less that of doing nothing. Exits are counted in sections in which it is done once, and
//! the fewest are those without a tick. Options: `rounds` (timed, of each kind), `sections` (of each kind, for exits).

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys;
use crate::tally::Tally;
use kinds::{KINDS, Once, Things};

mod kinds;

/// Untimed rounds of each kind before: the kernel's caches and lists are then what they stay.
const WARM_UP: u64 = 20;

/// `no_faults`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    // Its tasks take turns: how the fair scheduler picks one depends on how long each ran.
    sys::real_time(true).context("SCHED_FIFO")?;
    let result = measure(name, options, device);
    sys::real_time(false).context("SCHED_OTHER")?;
    result
}

fn measure(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (rounds, sections) = (options.number("rounds", 300)?, options.number("sections", 8)?);
    ensure!(rounds > 0 && sections > 0, "rounds={rounds}, sections={sections}: must not be 0");
    let mut things = Things::new()?;
    let mut times = vec![0; usize::try_from(rounds)?];
    let section = Section::begin(device, options, name)?;
    let nothing = least(timed(kinds::nothing, &mut things, &mut times)?);
    let no_exits = exits(kinds::nothing, &mut things, device, sections)?;
    let mut by_kind = Map::new();
    for kind in &KINDS {
        let mut of_kind = || -> Result<Value> {
            let took = least(timed(kind.once, &mut things, &mut times)?);
            let exits = exits(kind.once, &mut things, device, sections)?;
            Ok(json!({
                "times": kind.times,
                "tsc": took.value.saturating_sub(nothing.value),
                "tsc_rounds": took.rounds,
                "exits": exits.value.saturating_sub(no_exits.value),
                "exits_sections": exits.rounds,
            }))
        };
        by_kind.insert(kind.name.to_owned(), of_kind().context(kind.name)?);
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

/// The least of them.
fn least(values: &[u64]) -> Counted {
    let value = values.iter().copied().min().unwrap_or(0);
    Counted { value, rounds: values.iter().filter(|one| **one == value).count() }
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
    Ok(least(&all))
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and nothing forbids it to user mode here.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_count_is_of_rounds_without_a_tick() {
        assert_eq!(least(&[9, 30, 9, 10, 9]), Counted { value: 9, rounds: 3 });
        assert_eq!(least(&[]), Counted { value: 0, rounds: 0 });
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
