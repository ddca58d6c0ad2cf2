//! Lists of guest frames, as runs of one word each: `first << 12 | count - 1`.

/// Longest run.
pub const MAX_RUN: u64 = 4096;

/// Consecutive guest frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First frame number.
    pub first: u64,
    /// Number of frames, 1 to [`MAX_RUN`].
    pub count: u64,
}

impl Run {
    /// As the word in the data area.
    pub fn to_word(self) -> u64 {
        self.first << 12 | (self.count - 1)
    }

    /// From the word in the data area.
    pub fn from_word(word: u64) -> Run {
        Run { first: word >> 12, count: (word & 0xfff) + 1 }
    }

    /// The frames.
    pub fn frames(self) -> core::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

/// Adds a frame to the last run if it continues it; else gives back the run to append.
pub fn push_run(last: Option<&mut Run>, gfn: u64) -> Option<Run> {
    match last {
        Some(run) if run.first + run.count == gfn && run.count < MAX_RUN => {
            run.count += 1;
            None
        }
        _ => Some(Run { first: gfn, count: 1 }),
    }
}

/// The runs of a data area; a trailing partial word is ignored.
pub struct RunIter<'a> {
    chunks: core::slice::ChunksExact<'a, u8>,
}

impl<'a> RunIter<'a> {
    /// Reads from here.
    pub fn new(data: &'a [u8]) -> RunIter<'a> {
        RunIter { chunks: data.chunks_exact(8) }
    }
}

impl Iterator for RunIter<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let mut raw = [0; 8];
        raw.copy_from_slice(self.chunks.next()?);
        Some(Run::from_word(u64::from_le_bytes(raw)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_round_trip() {
        for run in [Run { first: 0, count: 1 }, Run { first: 0x12345, count: MAX_RUN }] {
            assert_eq!(Run::from_word(run.to_word()), run);
        }
    }

    #[test]
    fn runs_grow_only_at_their_end() {
        let mut run = Run { first: 10, count: 1 };
        assert_eq!(push_run(Some(&mut run), 11), None);
        assert_eq!(run.count, 2);
        assert_eq!(push_run(Some(&mut run), 13), Some(Run { first: 13, count: 1 }));
        assert_eq!(push_run(None, 4), Some(Run { first: 4, count: 1 }));
    }

    #[test]
    fn partial_word_is_ignored() {
        let mut it = RunIter::new(&[0, 0x10, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(it.next(), Some(Run { first: 1, count: 1 }));
        assert_eq!(it.next(), None);
    }
}
