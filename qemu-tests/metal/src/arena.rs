//! Memory that may be missing, and that tasks may sleep over.

use core::ops::Range;

use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

/// Where it begins: beyond the kernel.
const START: u64 = 32 << 20;
/// Its pages.
pub(crate) const PAGES: usize = 2048;

/// Its guest-physical addresses.
pub(crate) fn range() -> Range<u64> {
    START..START + PAGES as u64 * 4096
}

/// Frame of page `index`.
pub(crate) fn frame(index: usize) -> u64 {
    START / 4096 + (index % PAGES) as u64
}

/// Frames of consecutive pages.
pub(crate) fn frames(pages: Range<usize>) -> Range<u64> {
    frame(pages.start)..frame(pages.start) + pages.len() as u64
}

/// Address of page `index`.
pub(crate) fn address(index: usize) -> u64 {
    frame(index) * 4096
}

/// One word, read once.
pub(crate) fn read(index: usize, word: usize) -> u64 {
    let at = address(index) as usize + word % PAGE_WORDS * 8;
    // SAFETY: memory of the arena, mapped to itself, aligned; nothing in Rust refers to it.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at).read_volatile() }
}

/// What `word` of page `index` holds after it was taken away in this round.
pub(crate) fn expected(index: usize, round: u64, word: usize) -> u64 {
    pattern_word(pattern_base(frame(index), round), word)
}

/// Bytes of page `index` that are not the pattern of `round`.
pub(crate) fn wrong_bytes(index: usize, round: u64) -> u64 {
    (0..PAGE_WORDS).filter(|word| read(index, *word) != expected(index, round, *word)).count()
        as u64
        * 8
}
