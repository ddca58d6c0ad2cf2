//! The one hypercall: `KVM_HYPERCALL` with [`VE_APF_HYPERCALL`] in RAX, the operation in RBX and
//! its arguments in RCX, RDX and RSI.
//!
//! RAX returns an [answer](VE_APF_QUEUED), or a negative error: -1000 (`KVM_ENOSYS`) for an
//! operation, or the whole call, that the host does not know; -22 (`EINVAL`) for a slot, state,
//! address or flag that makes no sense; -1 (`EPERM`) outside CPL 0. Only CPL 0 may call.

/// Number of the hypercall; upstream counts up from 1.
pub const VE_APF_HYPERCALL: u64 = 0x5645;

/// `SUBMIT(slot)`: look at the slot. Idempotent: may be repeated at any time.
///
/// State CAN_CONTINUE: answers QUEUED, or at once RESOLVED or FAIL. State SUSPEND_ME: does not
/// return before the slot is RESOLVED or FAIL; signals, NMIs and a VM pause leave RIP on the
/// instruction, so the guest executes it again.
pub const VE_APF_OP_SUBMIT: u64 = 1;
/// `SUSPEND(gpa, qualification)`: no slot was free; returns when the page is there.
pub const VE_APF_OP_SUSPEND: u64 = 2;
/// `STATUS(slot, generation)`: does the host still work on it?
pub const VE_APF_OP_STATUS: u64 = 3;
/// `RANGE(gpa, length, flags)`: declares memory of the VM whose faults may raise #VE, or withdraws it.
/// Hardware mode only, from a vCPU whose `VEINFO` is on.
///
/// Address and length are multiples of 4096 and neither 0 nor above 2^52 in sum. A declaration holds
/// for all vCPUs, until it is withdrawn, no vCPU has `VEINFO` enabled any more, or the memslot goes;
/// what lies outside of memslots is left out, and it is an error if nothing remains. Ranges may
/// overlap, and may be declared again. Returns 0; -7 (`E2BIG`) where the host has no room for one
/// more separate range, and then those that it had still hold.
pub const VE_APF_OP_RANGE: u64 = 4;
/// `RANGE`, bit 0 of its flags: withdraw. The range may be larger than anything declared.
pub const VE_APF_RANGE_WITHDRAW: u64 = 1;

/// The host works on it and will complete the slot.
pub const VE_APF_QUEUED: u64 = 1;
/// The page is there; the slot, if any, says so too.
pub const VE_APF_RESOLVED: u64 = 2;
/// The page can never come; the slot, if any, says so too.
pub const VE_APF_FAIL: u64 = 3;
/// The host knows nothing of that use of the slot: refault, and enable again.
pub const VE_APF_UNKNOWN: u64 = 4;

/// `KVM_ENOSYS` of `include/uapi/linux/kvm_para.h`, returned negated.
pub const VE_APF_ENOSYS: i64 = 1000;
/// `KVM_EINVAL`, returned negated.
pub const VE_APF_EINVAL: i64 = 22;
/// `KVM_E2BIG`, returned negated.
pub const VE_APF_E2BIG: i64 = 7;
