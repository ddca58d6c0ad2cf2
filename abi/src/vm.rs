//! What a VMM may set for a whole VM: `KVM_ENABLE_CAP` on the VM's descriptor with
//! `cap = VE_APF_VM_CAP`, `args[0]` flags, `args[1]` deadline, `flags` and the other `args` 0.
//!
//! `KVM_CHECK_EXTENSION` of the same number returns the flags that are known, with
//! [`VE_APF_VM_KNOWN`] among them, or 0 where the host has no ve-apf. Setting it again replaces
//! both values, for faults outstanding too. Errors: `-EINVAL` for an unknown flag, an argument that
//! must be 0, or a deadline above [`VE_APF_VM_DEADLINE_MAX_NS`]; nothing is changed then. Neither
//! value survives the VM: a VMM sets them again when it restores one.

/// Number of the capability; upstream counts up from 1.
pub const VE_APF_VM_CAP: u64 = 0x5645;

/// Bit 0 of the flags: memory that the host's hardware (or `UFFDIO_POISON`) has poisoned is failed
/// in the guest, with `VE_APF_CAUSE_POISON`. Without it KVM signals the VMM instead (`SIGBUS`,
/// `BUS_MCEERR_AR`), which may then, for one, raise a machine check in the guest.
pub const VE_APF_VM_FAIL_POISON: u64 = 1;
/// Bit 30 of what `KVM_CHECK_EXTENSION` returns: the capability is there. Not a flag to set.
pub const VE_APF_VM_KNOWN: u64 = 1 << 30;

/// Longest deadline, in nanoseconds: one hour. 0, the default, is none.
///
/// A fault that was told to the guest and is not resolved when so much time went by since it
/// happened fails with `VE_APF_CAUSE_DEADLINE`. What waits for the page on the host waits on: the
/// next touch joins it, with a deadline of its own.
pub const VE_APF_VM_DEADLINE_MAX_NS: u64 = 3_600_000_000_000;
