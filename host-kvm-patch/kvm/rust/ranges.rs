//! The declared memory of a VM, for KVM's MMU. Guarded by `kvm->mmu_lock`: read for the questions,
//! write for the changes.

use crate::sys::KvmRanges;
use host::ranges::{Range, Ranges};

/// # Safety
/// `ranges` is a table of the VM, allocated zeroed (a valid, empty one) with the size that
/// `ve_apf_host_ranges_size` gave, and nobody changes it meanwhile.
unsafe fn table<'a>(ranges: *const KvmRanges) -> &'a Ranges {
    // SAFETY: the caller's promise.
    unsafe { &*ranges.cast::<Ranges>() }
}

/// # Safety
/// As [`table`], and nobody else looks at it meanwhile.
unsafe fn table_mut<'a>(ranges: *mut KvmRanges) -> &'a mut Ranges {
    // SAFETY: the caller's promise.
    unsafe { &mut *ranges.cast::<Ranges>() }
}

/// Bytes of a VM's table.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_ranges_size() -> usize {
    size_of::<Ranges>()
}

/// Declares the frames from `start` up to, not including, `end`; `false` if the table is full.
///
/// # Safety
/// As [`table_mut`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_declare(ranges: *mut KvmRanges, start: u64, end: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { table_mut(ranges) }.declare(Range { start, end }).is_ok()
}

/// Takes frames out.
///
/// # Safety
/// As [`table_mut`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_withdraw(ranges: *mut KvmRanges, start: u64, end: u64) {
    // SAFETY: the caller's promise.
    unsafe { table_mut(ranges) }.withdraw(Range { start, end });
}

/// Are all of these frames declared?
///
/// # Safety
/// As [`table`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_covers(ranges: *const KvmRanges, start: u64, end: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { table(ranges) }.covers(Range { start, end })
}

/// Is any of these frames declared?
///
/// # Safety
/// As [`table`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_meets(ranges: *const KvmRanges, start: u64, end: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { table(ranges) }.meets(Range { start, end })
}

/// The range of this position; `false` if there are fewer.
///
/// # Safety
/// As [`table`]; `start` and `end` are valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_range(
    ranges: *const KvmRanges,
    position: usize,
    start: *mut u64,
    end: *mut u64,
) -> bool {
    // SAFETY: the caller's promise.
    let Some(range) = unsafe { table(ranges) }.get().get(position) else { return false };
    // SAFETY: the caller's promise.
    unsafe {
        start.write(range.start);
        end.write(range.end);
    }
    true
}
