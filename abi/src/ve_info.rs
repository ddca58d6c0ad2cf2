//! The VE info area: the page that the CPU writes in hardware mode (SDM vol. 3, table 26-1).

use core::mem::{offset_of, size_of};
use static_assertions::const_assert_eq;

/// What the CPU puts into [`VeInfo::busy`]: no further #VE until software writes 0.
pub const VE_APF_VE_BUSY: u32 = 0xffff_ffff;
/// [`VeInfo::reason`] of an EPT violation (SDM vol. 3, appendix C).
pub const VE_APF_REASON_EPT_VIOLATION: u32 = 48;

/// The virtualization-exception information area.
///
/// Writer: the CPU, when it raises #VE. Reader: the guest. Cleared: the guest writes 0 to `busy`
/// after the hypercall that hands the fault to the host returned; until then violations exit.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug)]
pub struct VeInfo {
    /// Exit reason that would have been reported: [`VE_APF_REASON_EPT_VIOLATION`].
    pub reason: u32,
    /// [`VE_APF_VE_BUSY`] from delivery until the guest clears it.
    pub busy: u32,
    /// Exit qualification (SDM vol. 3, table 28-7).
    pub qualification: u64,
    /// Guest-linear address, if the qualification says that it is valid.
    pub gla: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// EPTP index; some CPUs write 0.
    pub eptp_index: u16,
    /// Not written by the CPU.
    pub reserved: [u8; 4062],
}

/// Bit 7 of [`VeInfo::qualification`]: [`VeInfo::gla`] is valid (SDM vol. 3, table 28-7).
pub const VE_APF_QUAL_GLA_VALID: u64 = 1 << 7;

const_assert_eq!(size_of::<VeInfo>(), 4096);
const_assert_eq!(offset_of!(VeInfo, busy), 4);
const_assert_eq!(offset_of!(VeInfo, qualification), 8);
const_assert_eq!(offset_of!(VeInfo, gla), 16);
const_assert_eq!(offset_of!(VeInfo, gpa), 24);
const_assert_eq!(offset_of!(VeInfo, eptp_index), 32);
