//! Pages whose frames are known, so that they can be taken away; what comes back is checked word by word.

use std::fs::File;

use anyhow::{Context, Result};
use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

use crate::device::Device;
use crate::sys::{PAGE, Pages};

/// Pages and their frames, declared to the device.
#[derive(Debug, Clone)]
pub struct Arena {
    /// The pages.
    pub pages: Pages,
    /// Their frames, in the same order.
    pub frames: Vec<u64>,
}

impl Arena {
    /// Anonymous memory.
    pub fn anonymous(device: &Device, count: usize) -> Result<Arena> {
        Arena::declare(device, Pages::anonymous(count).context("cannot map the arena")?)
    }

    /// Anonymous memory in huge pages: blocks of 512 frames, each aligned to 512.
    pub fn huge(device: &Device, count: usize) -> Result<Arena> {
        let arena = Arena::declare(device, Pages::huge(count).context("cannot map the arena")?)?;
        let block = |frames: &[u64]| {
            frames[0].is_multiple_of(512) && frames.windows(2).all(|two| two[0] + 1 == two[1])
        };
        anyhow::ensure!(arena.frames.chunks(512).all(block), "the guest has no huge pages");
        Ok(arena)
    }

    /// A new file's page cache. `/tmp` is tmpfs: nothing but the page cache holds the data.
    pub fn page_cache(device: &Device, path: &str, count: usize) -> Result<(Arena, File)> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len((count * PAGE) as u64)?;
        let pages = Pages::of_file(&file, count).with_context(|| format!("cannot map {path}"))?;
        Ok((Arena::declare(device, pages)?, file))
    }

    fn declare(device: &Device, pages: Pages) -> Result<Arena> {
        let frames = pages.frames()?;
        device.declare(&frames)?;
        Ok(Arena { pages, frames })
    }

    /// The first byte of a page, when it comes with the pattern of `round`.
    pub fn first_byte(&self, index: usize, round: u64) -> u8 {
        pattern_word(pattern_base(self.frames[index], round), 0).to_le_bytes()[0]
    }

    /// The first part with `count` pages, the second with the rest, and so on: one slice for each of `tasks`.
    pub fn slices(&self, tasks: usize) -> Vec<Slice> {
        let each = self.frames.len() / tasks.max(1);
        (0..tasks).map(|i| Slice { arena: self.clone(), first: i * each, count: each }).collect()
    }
}

/// One task's part of an arena.
#[derive(Debug, Clone)]
pub struct Slice {
    arena: Arena,
    first: usize,
    /// Number of pages.
    pub count: usize,
}

impl Slice {
    /// Frames of this slice.
    pub fn frames(&self) -> &[u64] {
        &self.arena.frames[self.first..self.first + self.count]
    }

    /// Address of a page.
    pub fn page(&self, index: usize) -> *mut u8 {
        self.arena.pages.page(self.first + index)
    }

    /// One word.
    pub fn read(&self, index: usize, word: usize) -> u64 {
        self.arena.pages.read(self.first + index, word)
    }

    /// Sets one word.
    pub fn write(&self, index: usize, word: usize, value: u64) {
        self.arena.pages.write(self.first + index, word, value);
    }

    /// Bytes of these words that are not the pattern of `round`.
    pub fn wrong_bytes(&self, index: usize, round: u64, words: std::ops::Range<usize>) -> u64 {
        let base = pattern_base(self.frames()[index], round);
        words.filter(|word| self.read(index, *word) != pattern_word(base, *word)).count() as u64 * 8
    }

    /// Bytes of `copy`, made of page `index`, that are not the pattern of `round`.
    pub fn wrong_in_copy(&self, index: usize, round: u64, copy: &[u8]) -> u64 {
        let base = pattern_base(self.frames()[index], round);
        let wrong = copy
            .chunks_exact(8)
            .zip(0..PAGE_WORDS)
            .filter(|(bytes, i)| *bytes != pattern_word(base, *i).to_le_bytes());
        wrong.count() as u64 * 8
    }
}

/// `0..count` in an order that depends on `seed`.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut random = Random::new(seed);
    for i in (1..count).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

/// Random numbers that repeat with their seed (xorshift).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Starts here.
    pub fn new(seed: u64) -> Random {
        Random(pattern_base(seed, 0x5eed) | 1)
    }

    /// One below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % end.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffle_keeps_all() {
        let mut order = shuffled(100, 3);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
