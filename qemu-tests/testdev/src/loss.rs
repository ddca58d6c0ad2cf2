//! How the host loses a page, for [`crate::Op::Lose`].

/// `args[0]` of [`crate::Op::Lose`]. Whatever it was, what the frames held before is there again after [`Loss::Back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Loss {
    /// The frames are there again.
    Back = 0,
    /// The VMM has no access to its own mapping (`PROT_NONE`).
    NoAccess = 1,
    /// They become a mapping of a file each, which is then truncated to nothing.
    Truncated = 2,
    /// The pager says that they are lost (`UFFDIO_POISON`).
    UffdPoison = 3,
    /// The host's memory behind them is broken (`MADV_HWPOISON`).
    HwPoison = 4,
}

impl Loss {
    /// The one with this number.
    pub fn from_u64(value: u64) -> Option<Loss> {
        const ALL: [Loss; 5] =
            [Loss::Back, Loss::NoAccess, Loss::Truncated, Loss::UffdPoison, Loss::HwPoison];
        ALL.into_iter().find(|one| *one as u64 == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_has_its_number() {
        for n in 0..5 {
            assert_eq!(Loss::from_u64(n).map(|one| one as u64), Some(n));
        }
        assert_eq!(Loss::from_u64(5), None);
    }
}
