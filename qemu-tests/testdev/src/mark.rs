//! What [`crate::Op::Mark`] does: memory that nobody should write any more is filled with a mark, and looked at later.

/// An argument of [`crate::Op::Mark`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Mark {
    /// Remembers the frames of the data. A reset fills them with a mark, and makes them reserved memory.
    Remember = 0,
    /// Fills the frames remembered so far with the mark.
    Fill = 1,
    /// Returns args\[0\]: bytes that are not the mark; args\[1\]: frames that were looked at.
    Check = 2,
}

impl Mark {
    /// The one with this number.
    pub fn from_u64(value: u64) -> Option<Mark> {
        [Mark::Remember, Mark::Fill, Mark::Check].into_iter().find(|one| *one as u64 == value)
    }
}
