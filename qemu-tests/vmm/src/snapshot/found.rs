//! What snapshots met: that they were taken at moments worth testing.

use serde::{Deserialize, Serialize};
use ve_apf_abi::msr::{VE_APF_EN_RING_MASK, VE_APF_EN_SELECT, VE_APF_MSR_EN};
use ve_apf_abi::ring::{Ring, VE_APF_SLOT_MASK, each_slot};
use ve_apf_abi::word::{SlotWord, State};
use vm_memory::{Bytes, GuestAddress};

use super::vcpu::VcpuState;
use crate::memory::Ram;
use crate::pager::Pager;

/// Counts of snapshots, unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Taken.
    pub snapshots: u32,
    /// Faults were outstanding.
    pub outstanding: u32,
    /// Faults outstanding, in all of them.
    pub faults: u64,
    /// Most of them in one ring.
    pub most: u32,
    /// A vCPU was suspended for a page.
    pub suspended: u32,
    /// Faults were finished, and their tasks had not seen it yet.
    pub finished: u32,
    /// A #VE was on its way.
    pub undelivered: u32,
    /// A ring was itself missing.
    pub ring_missing: u32,
}

impl Found {
    /// Looks at the rings of these vCPUs, which have stopped.
    pub fn look(&mut self, vcpus: &[VcpuState], ram: &Ram, pager: &Pager) {
        self.snapshots += 1;
        let mut now = Now::default();
        for en in vcpus.iter().filter_map(|vcpu| vcpu.msr(VE_APF_MSR_EN)) {
            let ring = en & VE_APF_EN_RING_MASK;
            if en & VE_APF_EN_SELECT == 0 {
                continue;
            }
            if !pager.is_present(ring >> 12) {
                self.ring_missing += 1;
                continue;
            }
            let read = |offset: usize| {
                // A ring that is no memory holds nothing.
                ram.mem.read_obj::<u64>(GuestAddress(ring + offset as u64)).unwrap_or(0)
            };
            self.most = self.most.max(now.ring(read));
        }
        self.outstanding += u32::from(now.waiting > 0);
        self.faults += u64::from(now.waiting);
        self.suspended += u32::from(now.suspended > 0);
        self.finished += u32::from(now.finished > 0);
        self.undelivered += u32::from(now.undelivered > 0);
    }
}

/// One moment, all rings.
#[derive(Default)]
struct Now {
    waiting: u32,
    suspended: u32,
    finished: u32,
    undelivered: u32,
}

impl Now {
    /// Adds a ring, whose words `read` gives by offset; returns how many faults wait in it.
    fn ring(&mut self, read: impl Fn(usize) -> u64) -> u32 {
        const INJECTED: usize = std::mem::offset_of!(Ring, injected);
        const SLOTS: usize = std::mem::offset_of!(Ring, slots);
        const SLOT: usize = size_of::<ve_apf_abi::ring::Slot>();
        let mut waiting = 0;
        for slot in each_slot(read(0) & VE_APF_SLOT_MASK) {
            // The slot's first 8 bytes: reason, word.
            let word = (read(SLOTS + SLOT * usize::from(slot.get())) >> 32) as u32;
            match SlotWord(word).state() {
                State::CAN_CONTINUE => waiting += 1,
                State::SUSPEND_ME => {
                    waiting += 1;
                    self.suspended += 1;
                }
                State::RESOLVED | State::FAIL => self.finished += 1,
                _ => {}
            }
        }
        self.waiting += waiting;
        self.undelivered += u32::from(read(INJECTED) as u32 != 0);
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_a_ring() {
        let word = |state: State| u64::from(5 << 8 | u32::from(state.0)) << 32 | 48;
        let words = [
            (0, 0b10_1111),
            (0x48, 3),
            (0x80, word(State::CAN_CONTINUE)),
            (0xc0, word(State::SUSPEND_ME)),
            (0x100, word(State::RESOLVED)),
            (0x140, word(State::NONE)),
            (0x180, word(State::CAN_CONTINUE)),
            (0x1c0, word(State::FAIL)),
        ];
        let read = |at| words.iter().find(|(offset, _)| *offset == at).map_or(0, |(_, word)| *word);
        let mut now = Now::default();
        assert_eq!(now.ring(read), 2);
        assert_eq!((now.waiting, now.suspended, now.finished, now.undelivered), (2, 1, 2, 1));
    }
}
