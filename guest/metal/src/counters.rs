//! What happened on a CPU: numbers, and the faults that hardware delivered, in their order.

use core::array::from_fn;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use ve_apf_abi::ring::SlotIndex;
use ve_apf_guest::platform::{Event, SuspendReason};

/// Names of the numbers; the same as Linux's in `/sys/kernel/debug/ve_apf`, where it has them.
pub const NAMES: [&str; COUNT] = [
    "faults",
    "delivered",
    "no_slot",
    "spurious",
    "early",
    "parked",
    "unparked",
    "abandoned",
    "suspended",
    "failed",
    "spurious_wakes",
    "interrupts",
    "woken",
    "rescued",
    "epochs",
    "unrung",
    "suspended_nested",
    "suspended_atomic",
    "suspended_rcu",
    "suspended_idle",
    "suspended_state",
    "suspended_pagefault_disabled",
    "suspended_fetch",
    "suspended_not_user_data",
    "suspended_unknown",
    "suspended_irqs_off",
    "suspended_nmi",
];

const COUNT: usize = FIRST_REASON + SuspendReason::COUNT;
const FIRST_REASON: usize = 16;
/// Delivered faults that are remembered.
pub const LOG: usize = 128;

/// The numbers of one CPU.
pub struct Counters {
    counts: [AtomicU64; COUNT],
    log: [AtomicU64; LOG],
    logged: AtomicUsize,
}

/// Copies of the numbers, in the order of [`NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values(pub [u64; COUNT]);

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; COUNT],
            log: [const { AtomicU64::new(0) }; LOG],
            logged: AtomicUsize::new(0),
        }
    }

    fn add(&self, index: usize, count: u64) {
        if let Some(counter) = self.counts.get(index) {
            counter.fetch_add(count, Relaxed);
        }
    }

    /// Counts an event; `gpa` tells of which address the fault in a slot is. Callable anywhere, NMIs included.
    pub fn note(&self, event: Event, gpa: impl FnOnce(SlotIndex) -> u64) {
        match event {
            Event::Fault(slot) => {
                self.add(0, 1);
                self.log(gpa(slot));
            }
            Event::Delivered(slot) => {
                self.add(0, 1);
                self.add(1, 1);
                self.log(gpa(slot));
            }
            Event::NoSlot(gpa) => {
                self.add(2, 1);
                self.log(gpa);
            }
            Event::SpuriousVe => self.add(3, 1),
            Event::EarlyOutcome(_) => self.add(4, 1),
            Event::Parked(..) => self.add(5, 1),
            Event::Unparked(..) => self.add(6, 1),
            Event::Abandoned(..) => self.add(7, 1),
            Event::Suspended(_, reason) => {
                self.add(8, 1);
                self.add(FIRST_REASON + reason as usize, 1);
            }
            Event::Failed(..) => self.add(9, 1),
            Event::SpuriousWake(_) => self.add(10, 1),
            Event::Interrupt(woken) => {
                self.add(11, 1);
                self.add(12, woken.into());
            }
            Event::Rescued(_) => self.add(13, 1),
            Event::NewEpoch(_) => self.add(14, 1),
            Event::Unrung(_) => self.add(15, 1),
        }
    }

    fn log(&self, gpa: u64) {
        let index = self.logged.fetch_add(1, Relaxed);
        if let Some(entry) = self.log.get(index % LOG) {
            entry.store(gpa, Relaxed);
        }
    }

    /// How many faults were taken up so far.
    pub fn logged(&self) -> usize {
        self.logged.load(Relaxed)
    }

    /// The guest-physical address of the fault number `index`, if it is among the last [`LOG`].
    pub fn gpa(&self, index: usize) -> Option<u64> {
        let now = self.logged();
        let known = index < now && now - index <= LOG;
        self.log.get(index % LOG).filter(|_| known).map(|entry| entry.load(Relaxed))
    }

    /// The numbers now.
    pub fn values(&self) -> Values {
        Values(from_fn(|i| self.counts.get(i).map_or(0, |counter| counter.load(Relaxed))))
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

impl Values {
    /// What was added since `before`.
    pub fn since(self, before: Self) -> Self {
        Self(from_fn(|i| self.0.get(i).zip(before.0.get(i)).map_or(0, |(a, b)| a.wrapping_sub(*b))))
    }

    /// One of them; 0 for a name that is not in [`NAMES`].
    pub fn get(&self, name: &str) -> u64 {
        let index = NAMES.iter().position(|one| *one == name);
        index.and_then(|i| self.0.get(i)).copied().unwrap_or(0)
    }

    /// Faults whose tasks slept, or were about to when the page was there already: the host may be
    /// that fast.
    pub fn parked_or_early(&self) -> u64 {
        self.get("parked") + self.get("early")
    }
}
