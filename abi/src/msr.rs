//! The MSRs that switch ve-apf on.
//!
//! `EN` and `INT` are the two MSRs of KVM's own async page fault (`arch/x86/include/uapi/asm/kvm_para.h`),
//! so a VMM that knows nothing of us saves, restores and resets them. `CAPS` and `VEINFO` are
//! ours and soft: a restore may lose them, see [`Ring::epoch`](crate::ring::Ring::epoch).

use bitflags::bitflags;
use static_assertions::const_assert_eq;

/// `MSR_KVM_ASYNC_PF_EN`. Guest and host-initiated writes; saved by VMMs.
pub const VE_APF_MSR_EN: u32 = 0x4b56_4d02;
/// `MSR_KVM_ASYNC_PF_INT`: bits 7:0 hold the completion vector (32 to 255), the rest is zero.
///
/// A guest writes it before `EN`; a VMM that restores a VM may write it after.
pub const VE_APF_MSR_INT: u32 = 0x4b56_4d06;
/// Read only: [`VE_APF_CAPS_SIGNATURE`] in bits 63:32, [`Caps`] in bits 31:0.
///
/// #GP (or 0, with KVM's `ignore_msrs`) on a host without ve-apf, and where this vCPU cannot use it.
/// A write is #GP.
pub const VE_APF_MSR_CAPS: u32 = 0x4b56_4de0;
/// The VE info area of this vCPU: [`VE_APF_VEINFO_ENABLE`] and [`VE_APF_VEINFO_PAGE_MASK`]. 0 is off.
///
/// Only where [`Caps::HARDWARE`]. A write is #GP, and changes nothing, if another bit is set, no ring
/// is enabled, or the page is not memory of the VM, or is the ring's. It may move while faults are
/// outstanding: those lie in the ring. Off, and only that, is written while the ring is off; writing
/// `EN` turns it off too.
pub const VE_APF_MSR_VEINFO: u32 = 0x4b56_4de1;
/// `VEINFO` bit 0: EPT violations of declared memory raise #VE on this vCPU.
pub const VE_APF_VEINFO_ENABLE: u64 = 1;
/// Bits 63:12 of `VEINFO`: guest-physical address of the VE info area.
pub const VE_APF_VEINFO_PAGE_MASK: u64 = 0xffff_ffff_ffff_f000;

/// `EN` bit 0: enabled.
pub const VE_APF_EN_ENABLE: u64 = 1;
/// `EN` bit 1: faults taken in kernel mode too.
pub const VE_APF_EN_KERNEL: u64 = 1 << 1;
/// `EN` bit 3: completions come as an interrupt. Always set.
pub const VE_APF_EN_INTERRUPT: u64 = 1 << 3;
/// `EN` bit 4: ve-apf rather than KVM's #PF protocol. KVM without ve-apf refuses it.
pub const VE_APF_EN_SELECT: u64 = 1 << 4;
/// Lowest bit of the ABI version in `EN`.
pub const VE_APF_EN_VERSION_SHIFT: u32 = 8;
/// Bits 11:8 of `EN`: the ABI version.
pub const VE_APF_EN_VERSION_MASK: u64 = 0xf00;
/// Bits 63:12 of `EN`: guest-physical address of the fault ring.
pub const VE_APF_EN_RING_MASK: u64 = 0xffff_ffff_ffff_f000;
/// Bits of `EN` that are zero: 2, 5, 6 and 7.
pub const VE_APF_EN_RESERVED: u64 = 0xe4;

/// This crate's ABI version.
pub const VE_APF_ABI_VERSION: u64 = 1;
/// "VeAF": upper half of `CAPS`, since a host with `ignore_msrs` reads any unknown MSR as 0.
pub const VE_APF_CAPS_SIGNATURE: u32 = 0x5665_4146;
/// Lowest completion vector; those below are exceptions.
pub const VE_APF_VECTOR_MIN: u64 = 32;
/// Vector of #VE (SDM vol. 3, table 6-1; AMD leaves it undefined).
pub const VE_APF_VE_VECTOR: u8 = 20;

bitflags! {
    /// Control bits of `EN` beside address and version.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Enable: u64 {
        /// See [`VE_APF_EN_ENABLE`].
        const ENABLE = VE_APF_EN_ENABLE;
        /// See [`VE_APF_EN_KERNEL`].
        const KERNEL = VE_APF_EN_KERNEL;
        /// See [`VE_APF_EN_INTERRUPT`].
        const INTERRUPT = VE_APF_EN_INTERRUPT;
        /// See [`VE_APF_EN_SELECT`].
        const SELECT = VE_APF_EN_SELECT;
    }

    /// Lower half of `CAPS`: what this host can do for this vCPU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Caps: u32 {
        /// Injected mode.
        const INJECTED = VE_APF_CAPS_INJECTED;
        /// Hardware mode: `VEINFO` and `RANGE` are there.
        const HARDWARE = VE_APF_CAPS_HARDWARE;
    }
}

/// `CAPS` bit 0: injected mode.
pub const VE_APF_CAPS_INJECTED: u32 = 1;
/// `CAPS` bit 1: hardware mode.
pub const VE_APF_CAPS_HARDWARE: u32 = 1 << 1;

const_assert_eq!(
    VE_APF_EN_RING_MASK | VE_APF_EN_VERSION_MASK | VE_APF_EN_RESERVED | Enable::all().bits(),
    u64::MAX
);

/// Why a value of `EN` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnError {
    /// A bit of [`VE_APF_EN_RESERVED`] is set.
    Reserved,
    /// [`VE_APF_EN_INTERRUPT`] is missing.
    NoInterrupt,
    /// The version is not [`VE_APF_ABI_VERSION`].
    Version,
}

/// A checked value of `EN` with [`VE_APF_EN_SELECT`] set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnValue {
    ring: u64,
    flags: Enable,
}

impl EnValue {
    /// The value that enables the ring at guest-physical address `ring`, a multiple of 4096;
    /// lower bits are dropped.
    #[must_use]
    pub const fn new(ring: u64, kernel: bool) -> Self {
        let flags = Enable::ENABLE.union(Enable::INTERRUPT).union(Enable::SELECT);
        let flags = if kernel { flags.union(Enable::KERNEL) } else { flags };
        Self { ring: ring & VE_APF_EN_RING_MASK, flags }
    }

    /// Checks what was written. `Ok(None)`: the value is not ours, or it is off.
    ///
    /// A value without [`VE_APF_EN_SELECT`] belongs to KVM's own protocol. With it, bit 0 clear
    /// means off, but the other bits must still be valid.
    ///
    /// # Errors
    /// An [`EnError`] for the first rule that the value breaks.
    pub const fn parse(value: u64) -> Result<Option<Self>, EnError> {
        if value & VE_APF_EN_SELECT == 0 {
            return Ok(None);
        }
        if value & VE_APF_EN_RESERVED != 0 {
            return Err(EnError::Reserved);
        }
        if value & VE_APF_EN_INTERRUPT == 0 {
            return Err(EnError::NoInterrupt);
        }
        if (value & VE_APF_EN_VERSION_MASK) >> VE_APF_EN_VERSION_SHIFT != VE_APF_ABI_VERSION {
            return Err(EnError::Version);
        }
        if value & VE_APF_EN_ENABLE == 0 {
            return Ok(None);
        }
        let flags = Enable::from_bits_truncate(value);
        Ok(Some(Self { ring: value & VE_APF_EN_RING_MASK, flags }))
    }

    /// What is written to the MSR.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.ring | self.flags.bits() | VE_APF_ABI_VERSION << VE_APF_EN_VERSION_SHIFT
    }

    /// Guest-physical address of the ring.
    #[must_use]
    pub const fn ring(self) -> u64 {
        self.ring
    }

    /// Whether faults taken at CPL below 3 are delivered too.
    #[must_use]
    pub const fn kernel(self) -> bool {
        self.flags.contains(Enable::KERNEL)
    }
}

/// `CAPS` as an integer.
#[must_use]
pub const fn caps_value(caps: Caps) -> u64 {
    (VE_APF_CAPS_SIGNATURE as u64) << 32 | caps.bits() as u64
}

/// What a value read from `CAPS` says; `None` where the host has no ve-apf.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
pub const fn parse_caps(value: u64) -> Option<Caps> {
    if (value >> 32) as u32 != VE_APF_CAPS_SIGNATURE {
        return None;
    }
    Some(Caps::from_bits_truncate(value as u32))
}
