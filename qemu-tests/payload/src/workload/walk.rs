//! Tasks that walk their memory at random and verify every page, with no help from a test device: for VMMs that
//! know nothing of the test, while the host takes memory away as it likes.
//!
//! Keys: `mib` (128) of memory in all, `tasks` (8), `seconds` (20) of walking; then every page is verified once more.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, plan, sys};

/// Words verified of each page: its first and its last.
const WORDS: [usize; 2] = [0, sys::PAGE / 8 - 1];

struct Walker {
    memory: Vec<u64>,
    /// How often each page was written.
    versions: Vec<u32>,
    random: u64,
    touches: u64,
    wrong: u64,
}

impl Walker {
    fn new(seed: u64, pages: usize) -> Walker {
        let mut walker = Walker {
            memory: vec![0; pages * sys::PAGE / 8],
            versions: vec![0; pages],
            random: seed,
            touches: 0,
            wrong: 0,
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

    fn verify(&mut self, page: usize) {
        self.touches += 1;
        let expected = Walker::content(page, self.versions[page]);
        let good = WORDS.iter().all(|word| self.memory[page * sys::PAGE / 8 + word] == expected);
        self.wrong += u64::from(!good);
    }

    fn walk(&mut self, end: Instant) {
        while Instant::now() < end {
            // xorshift64
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let page = usize::try_from(self.random % self.versions.len() as u64).unwrap_or(0);
            self.verify(page);
            self.versions[page] = self.versions[page].wrapping_add(1);
            self.write(page);
        }
        for page in 0..self.versions.len() {
            self.verify(page);
        }
    }
}

/// `walk`.
pub(super) fn run(options: &Options, device: Option<&Device>) -> Result<()> {
    let tasks = options.count("tasks", 8)?.max(1);
    let pages = options.count("mib", 128)? * 256 / tasks;
    let seconds = options.number("seconds", 20)?;

    let mut walkers: Vec<Walker> =
        (0..tasks).map(|task| Walker::new(task as u64 * 7919 + 1, pages)).collect();
    plan::print(&json!({"kind": "walking", "tasks": tasks, "pages": pages * tasks}));
    let before = GuestCounters::read();
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for (task, walker) in walkers.iter_mut().enumerate() {
            std::thread::Builder::new()
                .name(format!("walk{task}"))
                .spawn_scoped(scope, move || walker.walk(end))
                .context("spawn")?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "walk",
        "touches": walkers.iter().map(|walker| walker.touches).sum::<u64>(),
        "wrong": walkers.iter().map(|walker| walker.wrong).sum::<u64>(),
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
