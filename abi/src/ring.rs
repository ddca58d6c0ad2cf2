//! The fault ring: one 4 KiB page per vCPU, in guest memory.
//!
//! Ordering: both sides use sequentially consistent read-modify-write operations on `active`,
//! `completed` and slot words. Whoever takes a slot sets its `active` bit, fills it, and writes
//! the word last; whoever frees it writes NONE first and clears the bit last.

use core::mem::{offset_of, size_of};
use static_assertions::{const_assert, const_assert_eq};

/// Slots in a ring; also the number of bits in use in its bitmaps (62 and 63 are zero).
pub const VE_APF_SLOTS: u32 = 62;
/// All valid bits of the bitmaps.
pub const VE_APF_SLOT_MASK: u64 = 0x3fff_ffff_ffff_ffff;
/// Size and alignment of a ring, in bytes.
pub const VE_APF_RING_SIZE: u32 = 4096;

/// `host_flags` bit 0: the host polls `submitted`; no doorbell is needed.
pub const VE_APF_HOST_POLLING: u32 = 1;

/// [`Slot::flags`] bit 0: the CPU delivered it (hardware mode); else the host injected it.
pub const VE_APF_SLOT_HARDWARE: u16 = 1;
/// [`Slot::flags`] bit 1: [`Slot::gla`] is valid. AMD's nested page fault reports none.
pub const VE_APF_SLOT_GLA_VALID: u16 = 1 << 1;

/// No failure.
pub const VE_APF_CAUSE_NONE: u16 = 0;
/// The host's memory is gone: truncated file, dead pager, no mapping.
pub const VE_APF_CAUSE_GONE: u16 = 1;
/// The page is poisoned: the machine, or the VMM, says that its content is lost.
pub const VE_APF_CAUSE_POISON: u16 = 2;
/// The page did not come before the VM's deadline.
pub const VE_APF_CAUSE_DEADLINE: u16 = 3;

/// One fault. The first 34 bytes are laid out as the hardware's VE information.
///
/// Writer of all fields but `word` and `cause`: whoever took the slot, before it sets `word`.
/// Reader: the other side, after it read `word`. Nobody changes them while the slot is in use.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// As [`VeInfo::reason`](crate::ve_info::VeInfo::reason); 48 in injected mode too.
    pub reason: u32,
    /// `generation << 8 | state`, see [`crate::word`].
    pub word: u32,
    /// Exit qualification; bits 2:0 (read, write, fetch) are valid in injected mode too.
    pub qualification: u64,
    /// Guest-linear address, if [`VE_APF_SLOT_GLA_VALID`].
    pub gla: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// EPTP index; 0 in injected mode.
    pub eptp_index: u16,
    /// [`VE_APF_SLOT_HARDWARE`], [`VE_APF_SLOT_GLA_VALID`].
    pub flags: u16,
    /// Why FAIL; written by the host before the word becomes FAIL, NONE otherwise.
    pub cause: u16,
    /// Zero.
    pub reserved: [u8; 26],
}

/// Access bits of [`Slot::qualification`], SDM vol. 3, table 28-7.
pub const VE_APF_QUAL_READ: u64 = 1;
/// The access was a data write.
pub const VE_APF_QUAL_WRITE: u64 = 1 << 1;
/// The access was an instruction fetch.
pub const VE_APF_QUAL_FETCH: u64 = 1 << 2;

/// The fault ring of one vCPU.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Bit per slot in use. Whoever takes a slot sets it, the guest clears it; both atomically.
    pub active: u64,
    /// Bit per slot the host should look at. Guest sets before it looks at `host_flags`; host clears.
    pub submitted: u64,
    /// Zero; the rest of the guest's cache line.
    pub reserved_guest: [u8; 48],
    /// Bit per finished slot: a hint, the slot's word decides. Host sets after the word; the guest
    /// exchanges it with 0 in the completion interrupt.
    pub completed: u64,
    /// 0, or slot + 1 of a fault the host is injecting. Host sets only when it reads 0; the
    /// guest clears it in its #VE handler, with interrupts off.
    pub injected: u32,
    /// [`VE_APF_HOST_POLLING`]. Host writes; the guest reads after a full fence.
    pub host_flags: u32,
    /// Grows when the host lost its soft state (restore); the guest then sets it up again.
    pub epoch: u32,
    /// Zero; the rest of the host's cache line.
    pub reserved_host: [u8; 44],
    /// The faults.
    pub slots: [Slot; 62],
}

const_assert_eq!(size_of::<Slot>(), 64);
const_assert_eq!(offset_of!(Slot, word), 4);
const_assert_eq!(offset_of!(Slot, qualification), 8);
const_assert_eq!(offset_of!(Slot, gla), 16);
const_assert_eq!(offset_of!(Slot, gpa), 24);
const_assert_eq!(offset_of!(Slot, eptp_index), 32);
const_assert_eq!(offset_of!(Slot, flags), 34);
const_assert_eq!(offset_of!(Slot, cause), 36);
const_assert_eq!(offset_of!(Slot, reserved), 38);

const_assert_eq!(size_of::<Ring>(), VE_APF_RING_SIZE as usize);
const_assert_eq!(offset_of!(Ring, active), 0);
const_assert_eq!(offset_of!(Ring, submitted), 8);
const_assert_eq!(offset_of!(Ring, reserved_guest), 0x10);
const_assert_eq!(offset_of!(Ring, completed), 0x40);
const_assert_eq!(offset_of!(Ring, injected), 0x48);
const_assert_eq!(offset_of!(Ring, host_flags), 0x4c);
const_assert_eq!(offset_of!(Ring, epoch), 0x50);
const_assert_eq!(offset_of!(Ring, reserved_host), 0x54);
const_assert_eq!(offset_of!(Ring, slots), 0x80);
const_assert_eq!(VE_APF_SLOT_MASK, (1 << VE_APF_SLOTS) - 1);
const_assert!(VE_APF_SLOTS < 64);

/// The index of a slot, below [`VE_APF_SLOTS`]: a guest's claim becomes one by being checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotIndex(u8);

impl SlotIndex {
    /// `None` where `value` is not below [`VE_APF_SLOTS`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "below 62")]
    pub const fn new(value: u64) -> Option<Self> {
        if value < VE_APF_SLOTS as u64 { Some(Self(value as u8)) } else { None }
    }

    /// The lowest slot whose bit is set; bits 62 and 63 do not count.
    #[must_use]
    pub const fn lowest(bits: u64) -> Option<Self> {
        Self::new(bits.trailing_zeros() as u64)
    }

    /// As an integer.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Its bit in the bitmaps.
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// The slots whose bits are set, in rising order.
pub fn each_slot(bits: u64) -> impl Iterator<Item = SlotIndex> {
    let mut rest = bits & VE_APF_SLOT_MASK;
    core::iter::from_fn(move || {
        let slot = SlotIndex::lowest(rest)?;
        rest &= !slot.bit();
        Some(slot)
    })
}

/// What `injected` holds.
#[must_use]
pub const fn injected_value(slot: SlotIndex) -> u32 {
    slot.0 as u32 + 1
}

/// The slot that `injected` names; `None` for 0 and for what names no slot.
#[must_use]
pub const fn injected_slot(value: u32) -> Option<SlotIndex> {
    match value.checked_sub(1) {
        Some(index) => SlotIndex::new(index as u64),
        None => None,
    }
}
