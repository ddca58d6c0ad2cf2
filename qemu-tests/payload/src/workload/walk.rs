//! Tasks that walk their memory at random and verify every page, with no help from a test device: for VMMs that
//! know nothing of the test, while the host takes memory away as it likes.
//!
//! Keys: `mib` (128) of memory in all, `tasks` (8), `seconds` (20) of walking, or, with `typed=1`, until a line is typed at
//! the console; then every page is verified once more. `rest_ms`: a task sleeps so long after each 32 pages (not at all).
//! `every_ms`: how often to say how far each task is (never).

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::msr;
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, plan, sys};

/// Words verified of each page: its first and its last.
const WORDS: [usize; 2] = [0, sys::PAGE / 8 - 1];
/// Pages between two looks at the time, and two rests.
const PAGES_AT_ONCE: usize = 32;

/// What a task has done so far.
#[derive(Default)]
struct Tally {
    touches: AtomicU64,
    wrong: AtomicU64,
}

struct Walker {
    memory: Vec<u64>,
    /// How often each page was written.
    versions: Vec<u32>,
    random: u64,
}

impl Walker {
    fn new(seed: u64, pages: usize) -> Walker {
        let mut walker = Walker {
            memory: vec![0; pages * sys::PAGE / 8],
            versions: vec![0; pages],
            random: seed,
        };
        for page in 0..pages {
            walker.write(page);
        }
        walker
    }

    fn content(page: usize, version: u32) -> u64 {
        (page as u64) << 32 ^ u64::from(version) ^ 0x5eed_0000_c0de_0000
    }

    fn write(&mut self, page: usize) {
        for word in WORDS {
            self.memory[page * sys::PAGE / 8 + word] = Walker::content(page, self.versions[page]);
        }
    }

    fn verify(&self, page: usize, tally: &Tally) {
        let expected = Walker::content(page, self.versions[page]);
        let good = WORDS.iter().all(|word| self.memory[page * sys::PAGE / 8 + word] == expected);
        tally.wrong.fetch_add((!good).into(), Relaxed);
        tally.touches.fetch_add(1, Relaxed);
    }

    fn walk(&mut self, tally: &Tally, over: &AtomicBool, rest: Option<Duration>) {
        while !over.load(Relaxed) {
            for _ in 0..PAGES_AT_ONCE {
                // xorshift64
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let page = usize::try_from(self.random % self.versions.len() as u64).unwrap_or(0);
                self.verify(page, tally);
                self.versions[page] = self.versions[page].wrapping_add(1);
                self.write(page);
            }
            rest.into_iter().for_each(std::thread::sleep);
        }
        for page in 0..self.versions.len() {
            self.verify(page, tally);
        }
    }
}

/// `walk`.
pub(super) fn run(options: &Options, device: Option<&Device>) -> Result<()> {
    let tasks = options.count("tasks", 8)?.max(1);
    let pages = options.count("mib", 128)? * 256 / tasks;
    let length = Duration::from_secs(options.number("seconds", 20)?);
    let every = options.number("every_ms", 0)?;
    let rest =
        Some(Duration::from_millis(options.number("rest_ms", 0)?)).filter(|rest| !rest.is_zero());

    let mut walkers: Vec<Walker> =
        (0..tasks).map(|task| Walker::new(task as u64 * 7919 + 1, pages)).collect();
    let tallies: Vec<Tally> = (0..tasks).map(|_| Tally::default()).collect();
    let before = GuestCounters::read();
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    plan::print(&json!({
        "kind": "walking", "tasks": tasks, "pages": pages * tasks, "en": msr::en(0).ok(),
        "ve_apf_log": dmesg::lines_with("ve-apf"),
    }));
    std::thread::scope(|scope| {
        let spawn = |name: String| std::thread::Builder::new().name(name);
        for (task, (walker, tally)) in walkers.iter_mut().zip(&tallies).enumerate() {
            let over = &over;
            spawn(format!("walk{task}"))
                .spawn_scoped(scope, move || walker.walk(tally, over, rest))
                .context("spawn")?;
        }
        if every > 0 {
            let say = || {
                while !over.load(Relaxed) {
                    plan::print(&progress(&tallies, &before));
                    std::thread::sleep(Duration::from_millis(every));
                }
            };
            spawn("walked".to_owned()).spawn_scoped(scope, say).context("spawn")?;
        }
        let waited = wait(options, length);
        over.store(true, Relaxed);
        waited
    })?;
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "walk",
        "touches": sum(&tallies, |tally| &tally.touches),
        "wrong": sum(&tallies, |tally| &tally.wrong),
        "ms": u64::try_from(began.elapsed().as_millis())?,
        "bad": bad.len(),
        "bad_lines": bad,
    });
    if let Some(record) = record.as_object_mut() {
        record.extend(GuestCounters::read().since(&before));
    }
    match device {
        Some(device) => device.report("", &record),
        None => plan::print(&record),
    }
    Ok(())
}

/// Until the walk is to end.
fn wait(options: &Options, length: Duration) -> Result<()> {
    if options.flag("typed") {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).context("console")?;
    } else {
        std::thread::sleep(length);
    }
    Ok(())
}

fn sum(tallies: &[Tally], of: impl Fn(&Tally) -> &AtomicU64) -> u64 {
    tallies.iter().map(|tally| of(tally).load(Relaxed)).sum()
}

/// How far each task is; short, for it is said often.
fn progress(tallies: &[Tally], before: &GuestCounters) -> Value {
    let touches: Vec<u64> = tallies.iter().map(|tally| tally.touches.load(Relaxed)).collect();
    let mut record = json!({
        "kind": "walked", "touches": touches, "wrong": sum(tallies, |tally| &tally.wrong),
        "bad": dmesg::bad_lines().len(),
    });
    let counters = GuestCounters::read().since(before);
    if let Some(ours) = counters.get("ve_apf") {
        for name in ["parked", "failed", "rescued", "new_epochs"] {
            record[name] = ours[name].clone();
        }
    }
    record
}
