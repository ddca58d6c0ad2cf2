//! Pages that the host loses, each as memory is lost in the field, and what they held, for when they are back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use ve_apf_testdev::{Loss, PAGE_SIZE, Run};

use super::content::Content;
use super::{Pager, State};
use crate::counters::lock;
use crate::sys;

/// Lost frames, and frames behind which there is something other than anonymous memory.
#[derive(Default)]
pub(super) struct Losses {
    lost: HashMap<u64, Lost>,
    /// A frame that came back stays a file's, until it is evicted.
    files: HashMap<u64, File>,
}

impl Losses {
    /// Is every frame one that can come?
    pub(super) fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.files.is_empty()
    }
}

enum Lost {
    NoAccess,
    Truncated(Box<[u8; PAGE_SIZE]>),
    /// By the pager or by the hardware: the page table says so.
    Poisoned(Box<[u8; PAGE_SIZE]>),
}

impl Pager {
    /// These frames are lost, or back. One that is lost already comes back first, so that it is lost in the new way.
    /// Who waits for a frame finds out when it is looked for again: at once, but for [`Loss::NoAccess`].
    pub fn lose(&self, runs: &[Run], how: Loss) -> Result<()> {
        let mut state = lock(&self.state);
        ensure!(state.registered, "lose before declare");
        for gfn in runs.iter().flat_map(|run| run.frames()) {
            self.give_back(&mut state, gfn)?;
            let lost = match how {
                Loss::Back => continue,
                Loss::NoAccess => {
                    self.ram.set_lost(gfn, 1, true)?;
                    Lost::NoAccess
                }
                Loss::Truncated => self.truncate(&mut state, gfn)?,
                Loss::UffdPoison => self.poison_by_pager(&mut state, gfn)?,
                Loss::HwPoison => self.poison_by_hardware(&mut state, gfn)?,
            };
            state.losses.lost.insert(gfn, lost);
        }
        Ok(())
    }

    fn give_back(&self, state: &mut State, gfn: u64) -> Result<()> {
        match state.losses.lost.remove(&gfn) {
            None => {}
            Some(Lost::NoAccess) => self.ram.set_lost(gfn, 1, false)?,
            Some(Lost::Truncated(bytes)) => {
                let file = state.losses.files.get(&gfn).context("a truncated page has no file")?;
                file.write_all_at(&bytes[..], 0)?;
            }
            Some(Lost::Poisoned(bytes)) => {
                self.ram.drop_frames(gfn, 1)?;
                self.uffd.copy(self.address(gfn)?, &bytes, true)?;
            }
        }
        Ok(())
    }

    fn truncate(&self, state: &mut State, gfn: u64) -> Result<Lost> {
        let bytes = self.take_content(state, gfn)?;
        match state.losses.files.entry(gfn) {
            Entry::Occupied(file) => file.get().set_len(0)?,
            Entry::Vacant(none) => {
                let file = sys::memory_file()?;
                file.write_all_at(&bytes[..], 0)?;
                self.ram.back_by_file(gfn, &file)?;
                none.insert(file).set_len(0)?;
            }
        }
        // Who waited for the page that was here.
        self.uffd.wake(self.address(gfn)?, PAGE_SIZE as u64)?;
        Ok(Lost::Truncated(bytes))
    }

    fn poison_by_pager(&self, state: &mut State, gfn: u64) -> Result<Lost> {
        let bytes = self.take_content(state, gfn)?;
        self.make_anonymous(state, gfn)?;
        self.ram.drop_frames(gfn, 1)?;
        if let Err(error) = self.uffd.poison(self.address(gfn)?) {
            self.uffd.copy(self.address(gfn)?, &bytes, true)?;
            return Err(error).context("UFFDIO_POISON");
        }
        Ok(Lost::Poisoned(bytes))
    }

    fn poison_by_hardware(&self, state: &mut State, gfn: u64) -> Result<Lost> {
        let bytes = self.take_content(state, gfn)?;
        self.make_anonymous(state, gfn)?;
        // There has to be memory to break. Who waits for it goes on when it is broken.
        let at = self.address(gfn)?;
        self.uffd.copy(at, &bytes, false)?;
        self.ram.poison(gfn).context("MADV_HWPOISON")?;
        self.uffd.wake(at, PAGE_SIZE as u64)?;
        Ok(Lost::Poisoned(bytes))
    }

    /// What the frame holds, or would have got, if it is missing.
    fn take_content(&self, state: &mut State, gfn: u64) -> Result<Box<[u8; PAGE_SIZE]>> {
        let content = match state.missing.remove(&gfn) {
            Some(content) => {
                state.schedule.take(gfn);
                content
            }
            None => Content::save(&self.ram, gfn)?,
        };
        Ok(content.bytes(gfn))
    }

    /// Evicted pages are anonymous memory of which userfaultfd is told, and none of them is lost.
    pub(super) fn make_evictable(&self, state: &mut State, run: Run, keep: bool) -> Result<()> {
        for gfn in run.frames() {
            ensure!(!state.losses.lost.contains_key(&gfn), "frame {gfn:#x} is lost: no eviction");
            if !state.losses.files.contains_key(&gfn) {
                continue;
            }
            let bytes = keep.then(|| Content::save(&self.ram, gfn)).transpose()?;
            self.make_anonymous(state, gfn)?;
            if let Some(content) = bytes {
                self.uffd.copy(self.address(gfn)?, &content.bytes(gfn), true)?;
            }
        }
        Ok(())
    }

    fn make_anonymous(&self, state: &mut State, gfn: u64) -> Result<()> {
        if state.losses.files.remove(&gfn).is_some() {
            self.ram.back_by_memory(gfn)?;
            self.uffd.register(self.address(gfn)?, PAGE_SIZE as u64)?;
        }
        Ok(())
    }

    fn address(&self, gfn: u64) -> Result<u64> {
        self.ram.hva(gfn).context("frame outside guest memory")
    }
}

#[cfg(test)]
mod tests;
