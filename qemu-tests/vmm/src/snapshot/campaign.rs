//! How many snapshots are taken, when, and where the machine goes on.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::found::Found;

/// Where the machine goes on after a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Into {
    /// In the same VM, with memory as it is: the VM did not run since.
    Same,
    /// In the same VM, which has run on meanwhile and goes back.
    Rollback,
    /// In a new process.
    Fresh,
}

impl Into {
    /// As on the command line.
    pub fn from_name(name: &str) -> Option<Into> {
        [Into::Same, Into::Rollback, Into::Fresh].into_iter().find(|one| one.name() == name)
    }

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Into::Same => "same",
            Into::Rollback => "rollback",
            Into::Fresh => "fresh",
        }
    }
}

/// When snapshots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Shortest and longest time before each, in ms.
    pub interval_ms: (u32, u32),
    /// Of so many per cent it starts at once after a restore, of the others when the workload goes on.
    pub early: u32,
}

/// A number of snapshots at random moments. It goes on in the process that loads one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Campaign {
    /// Where the machine goes on.
    pub into: Into,
    /// When the machine gives up, on CLOCK_MONOTONIC.
    pub ends_ns: u64,
    /// What the snapshots met.
    pub found: Found,
    planned: u32,
    restored: u32,
    times: Times,
    seed: u64,
    random: u64,
}

impl Campaign {
    /// `planned` snapshots, each a random time after the one before; the times repeat with their seed.
    pub fn new(into: Into, planned: u32, times: Times, seed: u64, ends_ns: u64) -> Self {
        let (found, restored) = (Found::default(), 0);
        // xorshift has one bad state.
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Campaign { into, ends_ns, found, planned, restored, times, seed, random }
    }

    /// Snapshots that are still to come.
    pub fn left(&self) -> u32 {
        self.planned - self.restored
    }

    /// Snapshots that the machine went on from.
    pub fn restored(&self) -> u32 {
        self.restored
    }

    /// One more.
    pub fn count_restored(&mut self) {
        self.restored = (self.restored + 1).min(self.planned);
    }

    /// How long the machine runs until something is done to it.
    pub fn interval(&mut self) -> Duration {
        let (min, max) = self.times.interval_ms;
        let (min, max) = (u64::from(min) * 1000, u64::from(max) * 1000);
        Duration::from_micros(min + self.draw() % (max - min + 1))
    }

    /// The time before the next snapshot does not wait for the workload.
    pub fn is_early(&mut self) -> bool {
        self.draw() % 100 < self.times.early.into()
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 16
    }

    /// For the record at the end.
    pub fn record(&self) -> Value {
        json!({
            "into": self.into.name(),
            "seed": self.seed,
            "planned": self.planned,
            "restored": self.restored,
            "found": self.found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_repeat_with_their_seed() {
        let mut one = Campaign::new(Into::Fresh, 2, Times { interval_ms: (5, 9), early: 0 }, 7, 0);
        let mut two = one.clone();
        let times: Vec<_> = (0..100).map(|_| one.interval()).collect();
        assert!(times.iter().all(|t| (5_000..=9_000).contains(&t.as_micros())));
        assert!(times.iter().any(|t| *t != times[0]));
        assert!((0..100).map(|_| two.interval()).eq(times));
    }

    #[test]
    fn counts_to_the_end_and_not_beyond() {
        let mut campaign =
            Campaign::new(Into::Same, 2, Times { interval_ms: (1, 1), early: 100 }, 0, 0);
        for left in [1, 0, 0] {
            campaign.count_restored();
            assert_eq!(campaign.left(), left);
        }
        assert_eq!(campaign.record()["restored"], 2);
        assert!(campaign.is_early());
    }

    #[test]
    fn names() {
        for into in [Into::Same, Into::Rollback, Into::Fresh] {
            assert_eq!(Into::from_name(into.name()), Some(into));
        }
        assert_eq!(Into::from_name("elsewhere"), None);
    }
}
