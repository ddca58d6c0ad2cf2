//! Memslots cut into pieces.

use anyhow::{Result, ensure};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use ve_apf_testdev::Run;

/// Numbers of the pieces, beyond those of any machine here.
const FIRST: u32 = 64;

/// The pieces of `whole`: each of `runs`, which ascend, is a read-only one.
pub(super) fn cut(
    whole: kvm_userspace_memory_region,
    runs: &[Run],
) -> Result<Vec<kvm_userspace_memory_region>> {
    let end = whole.guest_phys_addr + whole.memory_size;
    let (mut at, mut pieces) = (whole.guest_phys_addr, Vec::new());
    let mut piece = |from: u64, to: u64, flags| {
        if from < to {
            pieces.push(kvm_userspace_memory_region {
                slot: FIRST + pieces.len() as u32,
                flags,
                guest_phys_addr: from,
                memory_size: to - from,
                userspace_addr: whole.userspace_addr + (from - whole.guest_phys_addr),
            });
        }
    };
    for run in runs {
        let (from, to) = (run.first << 12, (run.first + run.count) << 12);
        ensure!(at <= from && to <= end, "frames {run:?} are not in memslot {}", whole.slot);
        piece(at, from, 0);
        piece(from, to, KVM_MEM_READONLY);
        at = to;
    }
    piece(at, end, 0);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: kvm_userspace_memory_region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x1000,
        memory_size: 0x7000,
        userspace_addr: 0x10_0000,
    };

    #[test]
    fn pieces() {
        let runs = [Run { first: 1, count: 2 }, Run { first: 5, count: 1 }];
        let got: Vec<_> = cut(WHOLE, &runs)
            .unwrap()
            .iter()
            .map(|p| (p.slot, p.flags, p.guest_phys_addr, p.memory_size, p.userspace_addr))
            .collect();
        let expected = [
            (64, KVM_MEM_READONLY, 0x1000, 0x2000, 0x10_0000),
            (65, 0, 0x3000, 0x2000, 0x10_2000),
            (66, KVM_MEM_READONLY, 0x5000, 0x1000, 0x10_4000),
            (67, 0, 0x6000, 0x2000, 0x10_5000),
        ];
        assert_eq!(got, expected);
        assert_eq!(cut(WHOLE, &[]).unwrap().len(), 1);
    }

    #[test]
    fn frames_that_are_elsewhere() {
        for run in [Run { first: 0, count: 1 }, Run { first: 7, count: 2 }] {
            assert!(cut(WHOLE, &[run]).is_err(), "{run:?}");
        }
        let runs = [Run { first: 3, count: 1 }, Run { first: 2, count: 1 }];
        assert!(cut(WHOLE, &runs).is_err());
    }
}
