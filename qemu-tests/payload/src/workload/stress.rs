//! Many tasks on all vCPUs, random latencies and order, faults from user and kernel mode mixed.
//!
//! Options: `tasks`, `pages` (of each task), `faults` (all together), `stuck_s`: a task that makes no progress for so long
//! is reported as stuck, with its kernel stack, and the workload ends without it. `snapshots=1`: it goes on until the VMM has
//! taken all its snapshots.
//!
//! `waited_us` is the longest that an access took, less what of it the machine was away for: saved, or restored and without the pages
//! that anything at all needs.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use ve_apf_testdev::PAGE_WORDS;

use super::kernel_io::{read_into, source_file, write_to_pipe};
use super::lock;
use super::team::Team;
use crate::arena::{Arena, Random, Slice, shuffled};
use crate::device::Device;
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::sys;
use crate::tally::{From, Tally};

/// What the watchdog sees of a task.
#[derive(Default)]
struct Pulse {
    tid: AtomicI32,
    faults: AtomicU64,
    /// Accesses that took long.
    long: Mutex<Vec<Span>>,
}

/// From when to when.
type Span = (Instant, Instant);

const DONE: u64 = u64::MAX;
/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(100);

/// `stress`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 32)?, options.count("pages", 32)?);
    let each = options.number("faults", 100_000)?.div_ceil(tasks.max(1) as u64);
    let stuck_after = Duration::from_secs(options.number("stuck_s", 30)?);
    let with_snapshots = options.flag("snapshots");
    let policy = options.policy()?;
    let arena = Arena::anonymous(device, tasks * pages)?;
    device.set_policy(&[], policy)?;
    let slices = arena.slices(tasks);
    let file = Arc::new(source_file("/tmp/stress", pages)?);
    let pulses: Arc<Vec<Pulse>> = Arc::new((0..tasks).map(|_| Pulse::default()).collect());
    let (evictor, beat) = (device.clone(), pulses.clone());
    let team = Team::new(tasks, "stress", pinned(options)?, move |i, tally| {
        let (slice, pulse) = (&slices[i], &beat[i]);
        pulse.tid.store(sys::gettid(), Ordering::Relaxed);
        let mut random = Random::new(i as u64);
        for round in 0.. {
            if let Err(error) = evictor.evict(slice.frames(), round) {
                println!("l2-init: evict: {error:#}");
                break;
            }
            for index in shuffled(slice.count, random.below(1 << 40)) {
                let began = Instant::now();
                if let Err(error) = one(&file, slice, index, round, random.below(4), tally) {
                    tally.wrong_bytes += sys::PAGE as u64;
                    println!("l2-init: task {i}, page {index}: {error}");
                }
                if began.elapsed() > LOOK {
                    lock(&pulse.long).push((began, Instant::now()));
                }
                pulse.faults.fetch_add(1, Ordering::Relaxed);
            }
            if tally.faults + tally.kernel_faults >= each
                && !(with_snapshots && snapshots_left(&evictor))
            {
                break;
            }
        }
        pulse.faults.store(DONE, Ordering::Relaxed);
    })?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let (stuck, away) = watch(&pulses, stuck_after, with_snapshots.then_some(device));
    // A stuck task cannot be joined, and its counts are lost with it; that it is stuck is what matters.
    let tally = if stuck.is_empty() { team.join() } else { Tally::default() };
    let waited =
        pulses.iter().flat_map(|p| lock(&p.long).clone()).map(|span| without(span, &away)).max();
    let measured = section.end()?;
    let (restored, left) = device.snapshots()?;
    let more = json!({
        "pages": pages, "order": options.text("order", "fifo"), "stuck": stuck.len(), "stuck_tasks": stuck,
        "waited_us": waited.map_or(0, micros), "away_us": away.iter().map(|a| micros(a.1 - a.0)).sum::<u64>(),
        "restored": restored, "snapshots_left": left,
    });
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}

fn snapshots_left(device: &Device) -> bool {
    match device.snapshots() {
        Ok((_, left)) => left > 0,
        Err(error) => {
            println!("l2-init: snapshots: {error:#}");
            false
        }
    }
}

fn one(
    file: &std::fs::File,
    slice: &Slice,
    index: usize,
    round: u64,
    how: u64,
    tally: &mut Tally,
) -> io::Result<()> {
    match how {
        0 => read_into(file, slice, index, round, tally)?,
        1 => write_to_pipe(slice, index, round, tally)?,
        2 => {
            tally.touch(From::User, || slice.write(index, PAGE_WORDS - 1, round));
            tally.wrong_bytes += slice.wrong_bytes(index, round, 0..PAGE_WORDS - 1);
        }
        _ => {
            tally.touch(From::User, || slice.read(index, 0));
            tally.wrong_bytes += slice.wrong_bytes(index, round, 0..PAGE_WORDS);
        }
    }
    Ok(())
}

/// Waits until all are done or some are stuck; returns what is known about those, and when the machine was away: when this came round
/// much later than it wanted to, and the VMM had loaded a snapshot meanwhile.
fn watch(pulses: &[Pulse], stuck_after: Duration, vmm: Option<&Device>) -> (Vec<Value>, Vec<Span>) {
    let restored = || vmm.and_then(|vmm| vmm.snapshots().ok()).map_or(0, |(restored, _)| restored);
    let mut last: Vec<(u64, Instant)> = pulses.iter().map(|_| (0, Instant::now())).collect();
    // The last two counts: what is missing after a restore may also keep this from coming to its next look.
    let (mut away, mut looked, mut counts) = (Vec::new(), Instant::now(), [restored(); 2]);
    loop {
        std::thread::sleep(LOOK);
        let since = std::mem::replace(&mut looked, Instant::now());
        let times = restored();
        if times != counts[0] && looked - since > 2 * LOOK {
            away.push((since + LOOK, looked));
        }
        counts = [counts[1], times];
        let mut stuck = Vec::new();
        let mut done = 0;
        for (i, (pulse, seen)) in pulses.iter().zip(&mut last).enumerate() {
            let now = pulse.faults.load(Ordering::Relaxed);
            if now != seen.0 {
                *seen = (now, Instant::now());
            }
            if now == DONE {
                done += 1;
            } else if seen.1.elapsed() > stuck_after {
                stuck.push(describe(i, pulse.tid.load(Ordering::Relaxed), now));
            }
        }
        if done + stuck.len() == pulses.len() {
            return (stuck, away);
        }
    }
}

/// The length of `span`, but for what lies in one of `away`.
fn without(span: Span, away: &[Span]) -> Duration {
    let inside = |a: &Span| a.1.min(span.1).saturating_duration_since(a.0.max(span.0));
    (span.1 - span.0).saturating_sub(away.iter().map(inside).sum())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn describe(task: usize, tid: i32, faults: u64) -> Value {
    let of = |file: &str| {
        std::fs::read_to_string(format!("/proc/self/task/{tid}/{file}")).unwrap_or_default()
    };
    json!({"task": task, "faults": faults, "stat": of("stat"), "wchan": of("wchan"), "stack": of("stack")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_while_the_machine_is_away() {
        let zero = Instant::now();
        let span = |from, to| (zero + Duration::from_secs(from), zero + Duration::from_secs(to));
        let away = [span(0, 2), span(5, 6), span(9, 20)];
        assert_eq!(without(span(1, 10), &away), Duration::from_secs(6));
        assert_eq!(without(span(2, 5), &away), Duration::from_secs(3));
        assert_eq!(without(span(10, 11), &away), Duration::ZERO);
    }
}
