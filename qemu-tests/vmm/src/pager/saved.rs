//! The pager's part of a snapshot.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use ve_apf_testdev::{PAGE_SIZE, Run, push_run};

use super::content::Content;
use super::policy::SavedPolicies;
use super::{Pager, State};
use crate::counters::lock;
use crate::snapshot::memory::Pages;
use crate::sys;

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
    /// None before this one is left that [`next`](Self::next) has not named.
    from: usize,
}

impl Lazy {
    /// All of these frames, in order.
    pub(super) fn new(pages: Pages, left: Vec<bool>) -> Lazy {
        Lazy { pages, left, from: 0 }
    }

    /// This one lies there.
    pub(super) fn has(&self, gfn: u64) -> bool {
        usize::try_from(gfn).is_ok_and(|at| self.left.get(at).copied().unwrap_or(false))
    }

    /// Some that are left, in order, each once.
    pub(super) fn next(&mut self, count: usize) -> Vec<u64> {
        let mut frames = Vec::new();
        while let Some(left) = self.left.get(self.from).filter(|_| frames.len() < count) {
            frames.extend(left.then_some(self.from as u64));
            self.from += 1;
        }
        frames
    }

    /// Takes it out, if it does.
    pub(super) fn take(&mut self, gfn: u64) -> Result<Option<Box<[u8; PAGE_SIZE]>>> {
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

impl State {
    pub(super) fn is_present(&self, gfn: u64) -> bool {
        let lazy = self.lazy.as_ref().is_some_and(|lazy| lazy.has(gfn));
        !lazy && !self.missing.contains_key(&gfn)
    }

    pub(super) fn take_lazy(&mut self, gfn: u64) -> Result<Option<Box<[u8; PAGE_SIZE]>>> {
        self.lazy.as_mut().map_or(Ok(None), |lazy| lazy.take(gfn))
    }
}

impl Pager {
    /// Pages were taken away, by now or before.
    pub fn has_evicted(&self) -> bool {
        lock(&self.state).counts.evicted > 0
    }

    /// A page is not missing.
    pub fn is_present(&self, gfn: u64) -> bool {
        lock(&self.state).is_present(gfn)
    }

    /// Writes all memory that is present to `pages`, and returns the rest. The guest must have stopped.
    pub fn save(&self, pages: &Pages) -> Result<Saved> {
        let state = lock(&self.state);
        anyhow::ensure!(state.losses.is_empty(), "lost pages cannot be saved");
        let frames = 0..self.ram.host_range().1 / 4096;
        for word in run_words(frames.filter(|gfn| state.is_present(*gfn))) {
            pages.save(&self.ram, Run::from_word(word).frames())?;
        }
        let mut patterns: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut kept = BTreeSet::new();
        for (gfn, content) in &state.missing {
            match content {
                Content::Pattern(round) => {
                    patterns.entry(*round).or_default().insert(*gfn);
                }
                Content::Saved(bytes) => {
                    pages.put(*gfn, bytes)?;
                    kept.insert(*gfn);
                }
            }
        }
        let of_round = |(round, frames): (u64, BTreeSet<u64>)| {
            run_words(frames.into_iter()).into_iter().map(move |word| (word, round))
        };
        Ok(Saved {
            patterns: patterns.into_iter().flat_map(of_round).collect(),
            kept: run_words(kept.into_iter()),
            policies: self.policies.save(),
            counts: state.counts.clone(),
        })
    }

    /// Takes all memory away; it comes back as it was saved. The guest must have stopped. Others may wait for pages: they
    /// ask again.
    pub fn load(&self, saved: &Saved, pages: Pages) -> Result<()> {
        let (start, len) = self.ram.host_range();
        let mut state = lock(&self.state);
        self.policies.load(&saved.policies)?;
        state.counts = saved.counts.clone();
        state.log.clear();
        state.schedule.clear();
        state.missing.clear();
        for (word, round) in &saved.patterns {
            let frames = Run::from_word(*word).frames();
            state.missing.extend(frames.map(|gfn| (gfn, Content::Pattern(*round))));
        }
        for gfn in saved.kept.iter().flat_map(|word| Run::from_word(*word).frames()) {
            state.missing.insert(gfn, Content::Saved(pages.get(gfn)?));
        }
        let left = (0..len / 4096).map(|gfn| !state.missing.contains_key(&gfn)).collect();
        state.lazy = Some(Lazy::new(pages, left));
        state.stream.start(sys::now_ns());
        if !state.registered {
            self.uffd.register(start, len).context("cannot register guest memory")?;
            state.registered = true;
        }
        self.ram.drop_frames(0, len / 4096)?;
        self.uffd.wake(start, len).context("cannot wake who waits for a page")
    }
}
