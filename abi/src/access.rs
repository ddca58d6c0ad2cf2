//! How either side reaches a ring: every operation is one access to shared memory.
//!
//! An implementation holds a raw mapping, a locked host mapping, or a model; the state machines
//! are generic over it and never see an address. No method returns a reference into the ring.

use crate::ring::SlotIndex;
use crate::word::SlotWord;

/// One of the three bitmaps of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bitmap {
    /// [`Ring::active`](crate::ring::Ring::active)
    Active,
    /// [`Ring::submitted`](crate::ring::Ring::submitted)
    Submitted,
    /// [`Ring::completed`](crate::ring::Ring::completed)
    Completed,
}

/// The part of a slot that describes the fault; fields as in [`Slot`](crate::ring::Slot).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FaultInfo {
    /// Exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-linear address, if the flags say so.
    pub gla: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// EPTP index.
    pub eptp_index: u16,
    /// `VE_APF_SLOT_*`.
    pub flags: u16,
}

/// Access to the VE info area that the CPU writes, on the CPU it belongs to.
pub trait VeInfoAccess {
    /// Reads the busy word: not 0 from the delivery of #VE until [`clear_busy`](Self::clear_busy).
    fn busy(&self) -> u32;
    /// Reads what the CPU wrote, with the flags that a slot of it gets. Meaningful while busy.
    fn fault(&self) -> FaultInfo;
    /// Writes 0 to the busy word: violations raise #VE again. After everything before it.
    fn clear_busy(&self);
}

/// Access to one ring. Operations on bitmaps, words and `host_flags` are sequentially consistent.
pub trait RingAccess {
    /// Reads a bitmap.
    fn bits(&self, map: Bitmap) -> u64;
    /// Sets bits; returns what was there before.
    fn set_bits(&self, map: Bitmap, bits: u64) -> u64;
    /// Clears bits; returns what was there before.
    fn clear_bits(&self, map: Bitmap, bits: u64) -> u64;
    /// Exchanges the bitmap with 0.
    fn take_bits(&self, map: Bitmap) -> u64;

    /// Reads `injected`.
    fn injected(&self) -> u32;
    /// Writes `injected`.
    fn set_injected(&self, value: u32);
    /// Reads `host_flags`.
    fn host_flags(&self) -> u32;
    /// Writes `host_flags`.
    fn set_host_flags(&self, value: u32);
    /// Reads `epoch`.
    fn epoch(&self) -> u32;
    /// Writes `epoch`.
    fn set_epoch(&self, value: u32);

    /// Reads a slot's state word.
    fn word(&self, slot: SlotIndex) -> SlotWord;
    /// Compare-and-swap of a slot's state word.
    ///
    /// # Errors
    /// The word that was there, if it was not `expected`; nothing was written then.
    fn swap_word(&self, slot: SlotIndex, expected: SlotWord, new: SlotWord)
    -> Result<(), SlotWord>;
    /// Reads the description of the fault.
    fn fault(&self, slot: SlotIndex) -> FaultInfo;
    /// Writes the description of the fault, and a cause of 0.
    fn set_fault(&self, slot: SlotIndex, fault: FaultInfo);
    /// Reads the failure cause.
    fn cause(&self, slot: SlotIndex) -> u16;
    /// Writes the failure cause.
    fn set_cause(&self, slot: SlotIndex, cause: u16);
}
