//! A ring in memory: the one place where both kernel objects touch the page they share.
//!
//! Included by the Rust object of either side; nothing here ever forms a reference to shared
//! plain data, only to atomics, which the other side may change at any time.

use crate::abi::access::{Bitmap, FaultInfo, RingAccess};
use crate::abi::ring::{Ring, Slot, SlotIndex};
use crate::abi::word::SlotWord;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// A mapped ring.
#[derive(Clone, Copy)]
pub(crate) struct RingPtr(NonNull<u8>);

impl RingPtr {
    /// # Safety
    /// `page` is 4096-byte aligned and maps 4096 bytes of memory, readable and writable, that is
    /// accessed only atomically for as long as the value is used.
    pub(crate) unsafe fn new(page: NonNull<u8>) -> Self {
        Self(page)
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: every caller passes the offset of an aligned 8-byte field, or of as many fields, inside the page, which
        // `new` promises to be mapped and accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as `u64_at`, with an aligned 4-byte field.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    fn u16_at(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: as `u64_at`, with an aligned 2-byte field.
        unsafe { AtomicU16::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }

    fn bitmap(&self, map: Bitmap) -> &AtomicU64 {
        self.u64_at(match map {
            Bitmap::Active => offset_of!(Ring, active),
            Bitmap::Submitted => offset_of!(Ring, submitted),
            Bitmap::Completed => offset_of!(Ring, completed),
        })
    }

    fn slot_word(&self, slot: SlotIndex) -> &AtomicU32 {
        self.u32_at(field(slot, offset_of!(Slot, word)))
    }
}

// What `set_fault` writes in one: an aligned word of its own.
const _: () = assert!(
    offset_of!(Slot, eptp_index) % 8 == 0
        && offset_of!(Slot, flags) == offset_of!(Slot, eptp_index) + 2
        && offset_of!(Slot, cause) == offset_of!(Slot, eptp_index) + 4
        && offset_of!(Slot, reserved) == offset_of!(Slot, eptp_index) + 6
);

/// Offset of a slot's field in the ring; inside the page, since `SlotIndex` is below 62.
fn field(slot: SlotIndex, offset: usize) -> usize {
    offset_of!(Ring, slots) + usize::from(slot.get()) * size_of::<Slot>() + offset
}

impl RingAccess for RingPtr {
    fn bits(&self, map: Bitmap) -> u64 {
        self.bitmap(map).load(SeqCst)
    }

    fn set_bits(&self, map: Bitmap, bits: u64) -> u64 {
        self.bitmap(map).fetch_or(bits, SeqCst)
    }

    fn clear_bits(&self, map: Bitmap, bits: u64) -> u64 {
        self.bitmap(map).fetch_and(!bits, SeqCst)
    }

    fn take_bits(&self, map: Bitmap) -> u64 {
        self.bitmap(map).swap(0, SeqCst)
    }

    fn injected(&self) -> u32 {
        self.u32_at(offset_of!(Ring, injected)).load(SeqCst)
    }

    fn set_injected(&self, value: u32) {
        // The sides read and write it by turns: the host while the vCPU is stopped.
        self.u32_at(offset_of!(Ring, injected)).store(value, Release);
    }

    fn host_flags(&self) -> u32 {
        self.u32_at(offset_of!(Ring, host_flags)).load(SeqCst)
    }

    fn set_host_flags(&self, value: u32) {
        self.u32_at(offset_of!(Ring, host_flags)).store(value, SeqCst);
    }

    fn epoch(&self) -> u32 {
        self.u32_at(offset_of!(Ring, epoch)).load(SeqCst)
    }

    fn set_epoch(&self, value: u32) {
        self.u32_at(offset_of!(Ring, epoch)).store(value, SeqCst);
    }

    fn word(&self, slot: SlotIndex) -> SlotWord {
        SlotWord(self.slot_word(slot).load(SeqCst))
    }

    fn swap_word(
        &self,
        slot: SlotIndex,
        expected: SlotWord,
        new: SlotWord,
    ) -> Result<(), SlotWord> {
        match self.slot_word(slot).compare_exchange(expected.0, new.0, SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            Err(found) => Err(SlotWord(found)),
        }
    }

    fn fault(&self, slot: SlotIndex) -> FaultInfo {
        // Relaxed: ordered by the word, or by `injected` and the exit, which the caller read first.
        FaultInfo {
            reason: self.u32_at(field(slot, offset_of!(Slot, reason))).load(Relaxed),
            qualification: self.u64_at(field(slot, offset_of!(Slot, qualification))).load(Relaxed),
            gla: self.u64_at(field(slot, offset_of!(Slot, gla))).load(Relaxed),
            gpa: self.u64_at(field(slot, offset_of!(Slot, gpa))).load(Relaxed),
            eptp_index: self.u16_at(field(slot, offset_of!(Slot, eptp_index))).load(Relaxed),
            flags: self.u16_at(field(slot, offset_of!(Slot, flags))).load(Relaxed),
        }
    }

    fn set_fault(&self, slot: SlotIndex, fault: FaultInfo) {
        self.u32_at(field(slot, offset_of!(Slot, reason))).store(fault.reason, Relaxed);
        self.u64_at(field(slot, offset_of!(Slot, qualification)))
            .store(fault.qualification, Relaxed);
        self.u64_at(field(slot, offset_of!(Slot, gla))).store(fault.gla, Relaxed);
        self.u64_at(field(slot, offset_of!(Slot, gpa))).store(fault.gpa, Relaxed);
        // With `flags`, no cause and two reserved bytes behind it, little-endian: one access in place of three.
        let rest = u64::from(fault.eptp_index) | u64::from(fault.flags) << 16;
        self.u64_at(field(slot, offset_of!(Slot, eptp_index))).store(rest, Relaxed);
    }

    fn cause(&self, slot: SlotIndex) -> u16 {
        self.u16_at(field(slot, offset_of!(Slot, cause))).load(Relaxed)
    }

    fn set_cause(&self, slot: SlotIndex, cause: u16) {
        self.u16_at(field(slot, offset_of!(Slot, cause))).store(cause, Relaxed);
    }
}
