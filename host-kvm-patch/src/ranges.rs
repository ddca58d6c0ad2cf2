//! The memory whose missing pages may raise #VE by hardware, as the guest declared it.
//!
//! Disjoint ranges of guest frame numbers that do not touch, in rising order, in a table of fixed
//! size. All-zero bytes are a valid empty value. The caller keeps readers and writers apart.

/// Frames `start` up to, and not including, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Range {
    /// First guest frame number.
    pub start: u64,
    /// First one above.
    pub end: u64,
}

impl Range {
    fn touches(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// There is no room for one more range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What a guest declared: at most `N` separate ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges<const N: usize = 256> {
    entries: [Range; N],
    len: usize,
}

impl<const N: usize> Ranges<N> {
    /// Nothing declared.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: [Range { start: 0, end: 0 }; N], len: 0 }
    }

    /// The ranges, rising.
    #[must_use]
    pub fn get(&self) -> &[Range] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// Is every frame of `range` declared?
    #[must_use]
    pub fn covers(&self, range: Range) -> bool {
        let entry = self.first_ending_above(range.start);
        entry.is_some_and(|entry| entry.start <= range.start && range.end <= entry.end)
    }

    /// Is any frame of `range` declared?
    #[must_use]
    pub fn meets(&self, range: Range) -> bool {
        self.first_ending_above(range.start).is_some_and(|entry| entry.start < range.end)
    }

    fn first_ending_above(&self, frame: u64) -> Option<Range> {
        let entries = self.get();
        entries.get(entries.partition_point(|entry| entry.end <= frame)).copied()
    }

    /// Adds `range`, which may overlap others.
    ///
    /// # Errors
    /// [`Full`]; nothing is changed then.
    pub fn declare(&mut self, range: Range) -> Result<(), Full> {
        if range.start >= range.end {
            return Ok(());
        }
        let room = self.len < N || self.get().iter().any(|entry| entry.touches(range));
        if !room {
            return Err(Full);
        }
        let mut whole = range;
        self.rewrite(|entry| {
            if entry.touches(range) {
                whole.start = whole.start.min(entry.start);
                whole.end = whole.end.max(entry.end);
                return None;
            }
            Some(entry)
        });
        self.insert(whole);
        Ok(())
    }

    /// Takes `range` out. A range that falls apart loses its upper part too if there is no room for it:
    /// what is not declared is only slower.
    pub fn withdraw(&mut self, range: Range) {
        if range.start >= range.end {
            return;
        }
        let mut above = None;
        self.rewrite(|entry| {
            if !entry.overlaps(range) {
                return Some(entry);
            }
            let upper = Range { start: range.end, ..entry };
            let lower = Range { end: range.start, ..entry };
            let has = |part: &Range| part.start < part.end;
            if has(&lower) && has(&upper) {
                above = Some(upper);
            }
            [lower, upper].into_iter().find(has)
        });
        if let Some(above) = above.filter(|_| self.len < N) {
            self.insert(above);
        }
    }

    /// Keeps what `f` makes of each range, in place.
    fn rewrite(&mut self, mut f: impl FnMut(Range) -> Option<Range>) {
        let mut kept = 0;
        for at in 0..self.len {
            let entry = self.entries.get(at).copied().unwrap_or_default();
            if let Some(entry) = f(entry) {
                self.put(kept, entry);
                kept += 1;
            }
        }
        self.len = kept;
    }

    /// `range` overlaps none, and there is room.
    fn insert(&mut self, range: Range) {
        let mut at = self.len;
        while let Some(below) = at.checked_sub(1) {
            let entry = self.entries.get(below).copied().unwrap_or_default();
            if entry.start < range.start {
                break;
            }
            self.put(at, entry);
            at = below;
        }
        self.put(at, range);
        self.len += 1;
    }

    fn put(&mut self, at: usize, range: Range) {
        if let Some(entry) = self.entries.get_mut(at) {
            *entry = range;
        }
    }
}

impl<const N: usize> Default for Ranges<N> {
    fn default() -> Self {
        Self::new()
    }
}
