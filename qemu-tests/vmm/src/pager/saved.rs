//! The pager's part of a snapshot.

use serde::{Deserialize, Serialize};
use ve_apf_testdev::{PAGE_SIZE, Run, push_run};

use super::policy::SavedPolicies;
use crate::snapshot::memory::Pages;

/// Which pages the guest had evicted, and when they are delivered. What was asked for is not saved: it is asked for again.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    /// Come back as the pattern of a round: words of [`Run`]s, and the round.
    pub(super) patterns: Vec<(u64, u64)>,
    /// Come back as they were, which the snapshot's file has: words of [`Run`]s.
    pub(super) kept: Vec<u64>,
    pub(super) policies: SavedPolicies,
    pub(super) counts: Counts,
}

/// Counted since the machine started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) faults: u64,
    pub(super) duplicates: u64,
    pub(super) untouched: u64,
    pub(super) delivered: u64,
    pub(super) deliveries: u64,
    pub(super) evicted: u64,
    pub(super) restored: u64,
    pub(super) max_pending: u64,
    pub(super) late_us: u64,
    pub(super) max_late_us: u64,
}

/// Sorted frames, as words of [`Run`]s.
pub(super) fn run_words(frames: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut runs: Vec<Run> = Vec::new();
    for gfn in frames {
        if let Some(run) = push_run(runs.last_mut(), gfn) {
            runs.push(run);
        }
    }
    runs.into_iter().map(Run::to_word).collect()
}

/// Guest memory that still lies in a snapshot's file.
pub(super) struct Lazy {
    pages: Pages,
    left: Vec<bool>,
}

impl Lazy {
    /// All of these frames, in order.
    pub(super) fn new(pages: Pages, left: Vec<bool>) -> Lazy {
        Lazy { pages, left }
    }

    /// This one lies there.
    pub(super) fn has(&self, gfn: u64) -> bool {
        usize::try_from(gfn).is_ok_and(|at| self.left.get(at).copied().unwrap_or(false))
    }

    /// Takes it out, if it does.
    pub(super) fn take(&mut self, gfn: u64) -> anyhow::Result<Option<Box<[u8; PAGE_SIZE]>>> {
        if !self.forget(gfn) {
            return Ok(None);
        }
        self.pages.get(gfn).map(Some)
    }

    /// It is not needed any more; returns whether it was there.
    pub(super) fn forget(&mut self, gfn: u64) -> bool {
        let left = usize::try_from(gfn).ok().and_then(|at| self.left.get_mut(at));
        left.is_some_and(std::mem::take)
    }
}
