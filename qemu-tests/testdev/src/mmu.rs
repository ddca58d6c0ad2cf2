//! What [`crate::Op::Mmu`] does to the memory of the VM.

/// `args[0]` of [`crate::Op::Mmu`].
///
/// The vCPU that asks is outside of the guest meanwhile, so what is done and undone within one command is never seen by
/// it. Others must not run where memory goes for a moment: [`Mmu::Remake`], [`Mmu::Move`], [`Mmu::ReadOnly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Mmu {
    /// Nothing: the walk alone.
    Check = 0,
    /// Data: runs. As [`crate::Op::Evict`]; args\[1\]: pattern round; args\[2\]: 1 for the present content instead.
    Evict = 1,
    /// Data: runs. As [`crate::Op::Restore`], of these only.
    Restore = 2,
    /// Memslot args\[1\] is deleted (a walk, `between`) and created again.
    Remake = 3,
    /// Memslot args\[1\] is moved to where no memory is (a walk, `between`), and back.
    Move = 4,
    /// args\[1\] 1: from now on KVM zaps a memslot's own entries when it goes, not those of all memory. 0: all, as usual.
    ZapOwn = 5,
    /// KVM throws away all entries of the VM.
    ZapAll = 6,
    /// Dirty logging of all memslots; args\[1\] 1 on, 0 off.
    Log = 7,
    /// args\[1\] 1: getting the log leaves pages as they are, and only clearing it protects them. 0: getting it does.
    LogManual = 8,
    /// Data: runs. The dirty log of all memslots. Counts `dirty`, and of the data `dirty_of`.
    GetLog = 9,
    /// Data: runs. As [`Mmu::GetLog`], and what it says is cleared.
    ClearLog = 10,
    /// Data: runs. The host forgets that these pages were accessed. Counts those it did, `idle`.
    Age = 11,
    /// Data: runs. Huge pages of the host that hold these frames are split.
    Split = 12,
    /// Data: runs. The host makes huge pages of these frames. Counts those it refused, `refused`.
    Collapse = 13,
    /// The entry of frame args\[1\] gets its suppress bit changed (a walk, `flipped`), and changed back.
    Flip = 14,
    /// Data: runs. args\[1\] 1: the host's mapping of these frames lets nobody write; 0: as it was.
    Protect = 15,
    /// Data: runs. args\[1\] 1: these frames of memslot 0 become read-only memslots of their own; 0: memslot 0 is whole again.
    ReadOnly = 16,
}

impl Mmu {
    /// The one with this number.
    pub fn from_u64(value: u64) -> Option<Mmu> {
        const ALL: [Mmu; 17] = [
            Mmu::Check,
            Mmu::Evict,
            Mmu::Restore,
            Mmu::Remake,
            Mmu::Move,
            Mmu::ZapOwn,
            Mmu::ZapAll,
            Mmu::Log,
            Mmu::LogManual,
            Mmu::GetLog,
            Mmu::ClearLog,
            Mmu::Age,
            Mmu::Split,
            Mmu::Collapse,
            Mmu::Flip,
            Mmu::Protect,
            Mmu::ReadOnly,
        ];
        ALL.into_iter().find(|one| *one as u64 == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_one_has_its_number() {
        for n in 0..17 {
            assert_eq!(Mmu::from_u64(n).map(|one| one as u64), Some(n));
        }
        assert_eq!(Mmu::from_u64(17), None);
    }
}
