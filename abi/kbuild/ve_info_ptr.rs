//! The VE info area in memory, as the guest's own CPU wrote it.

use crate::abi::access::{FaultInfo, VeInfoAccess};
use crate::abi::ring::{VE_APF_SLOT_GLA_VALID, VE_APF_SLOT_HARDWARE};
use crate::abi::ve_info::{VE_APF_QUAL_GLA_VALID, VeInfo};
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// A mapped VE info area.
#[derive(Clone, Copy)]
pub(crate) struct VeInfoPtr(NonNull<u8>);

impl VeInfoPtr {
    /// # Safety
    /// `page` is 4096-byte aligned and maps 4096 bytes of memory, readable and writable, that is
    /// accessed only atomically, or by the CPU, for as long as the value is used.
    pub(crate) unsafe fn new(page: NonNull<u8>) -> Self {
        Self(page)
    }

    fn u64_at(&self, offset: usize) -> u64 {
        // SAFETY: every caller passes the offset of an aligned 8-byte field inside the page, which
        // `new` promises to be mapped and accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.0.as_ptr().add(offset).cast()) }.load(Relaxed)
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as `u64_at`, with an aligned 4-byte field.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }
}

impl VeInfoAccess for VeInfoPtr {
    fn busy(&self) -> u32 {
        self.u32_at(offset_of!(VeInfo, busy)).load(Acquire)
    }

    fn fault(&self) -> FaultInfo {
        let qualification = self.u64_at(offset_of!(VeInfo, qualification));
        // The one bit to the place of the other.
        const DOWN: u32 =
            VE_APF_QUAL_GLA_VALID.trailing_zeros() - VE_APF_SLOT_GLA_VALID.trailing_zeros();
        let gla_valid = (qualification & VE_APF_QUAL_GLA_VALID) >> DOWN;
        let index = self.0.as_ptr().wrapping_add(offset_of!(VeInfo, eptp_index)).cast();
        FaultInfo {
            reason: self.u32_at(offset_of!(VeInfo, reason)).load(Relaxed),
            qualification,
            gla: self.u64_at(offset_of!(VeInfo, gla)),
            gpa: self.u64_at(offset_of!(VeInfo, gpa)),
            // SAFETY: as `u64_at`, with an aligned 2-byte field.
            eptp_index: unsafe { AtomicU16::from_ptr(index) }.load(Relaxed),
            flags: VE_APF_SLOT_HARDWARE | u16::from(gla_valid.to_le_bytes()[0]),
        }
    }

    fn clear_busy(&self) {
        // Nobody but this CPU looks at it, in program order.
        self.u32_at(offset_of!(VeInfo, busy)).store(0, Release);
    }
}
