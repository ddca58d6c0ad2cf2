//! `arch/x86/kvm/ve_apf/ffi.h`, the C side of it. KVM's types are opaque here, ours are there.

use core::ffi::c_void;

/// `struct kvm_vcpu_ve_apf`
#[repr(C)]
pub(crate) struct KvmVcpu {
    opaque: [u8; 0],
}

/// `struct ve_apf_vm`
#[repr(C)]
pub(crate) struct KvmVm {
    opaque: [u8; 0],
}

/// `struct ve_apf_ranges`
#[repr(C)]
pub struct KvmRanges {
    opaque: [u8; 0],
}

/// `struct ve_apf_fault_result`
#[repr(C)]
pub struct FaultResult {
    pub kind: u32,
    /// The slot, or of LOST the cause.
    pub detail: u32,
    /// `STOP_*`, if SYNC.
    pub wait: u32,
}

pub(crate) const STARTED: u32 = 0;
pub(crate) const JOINED: u32 = 1;
pub(crate) const BROKEN: u32 = 2;
pub(crate) const FAILED: u32 = 3;
pub(crate) const LOST: u32 = 4;
pub(crate) const SYNC: u32 = 16;

pub(crate) const STOP_HALT: u32 = 0;
pub(crate) const STOP_AGAIN: u32 = 1;
pub(crate) const STOP_BLOCK: u32 = 2;

/// `struct ve_apf_completed`
#[repr(C)]
pub struct Completed {
    pub resolved: u32,
    pub failed: u32,
    pub suspended: u32,
    pub interrupt: u32,
    pub submitted: u32,
    pub stuck: u32,
}

/// `struct ve_apf_submit_result`
#[repr(C)]
pub struct SubmitResult {
    pub what: u32,
    pub write: u32,
    pub gfn: u64,
}

pub(crate) const DO_INVALID: u32 = 16;
pub(crate) const DO_HALT: u32 = 17;
pub(crate) const DO_WAIT: u32 = 18;
pub(crate) const DO_STOP: u32 = 19;

pub(crate) const LOOK_NOTHING: u32 = 0;
pub(crate) const LOOK_TOOK: u32 = 1;
pub(crate) const LOOK_LEFT: u32 = 2;

pub(crate) const MAPPED: u32 = 256;
pub(crate) const NOT_NOW: u32 = 257;

unsafe extern "C" {
    pub(crate) fn ve_apf_panic() -> !;
    pub(crate) fn ve_apf_vm_lock(vm: *mut KvmVm) -> *mut c_void;
    pub(crate) fn ve_apf_vm_unlock(vm: *mut KvmVm);
    pub(crate) fn ve_apf_vm_start(
        vm: *mut KvmVm,
        index: u32,
        serial: u32,
        gfn: u64,
        write: bool,
    ) -> bool;
    pub(crate) fn ve_apf_vm_now(vm: *mut KvmVm) -> u64;
    pub(crate) fn ve_apf_vm_kick(vm: *mut KvmVm, vcpu: u32);
    pub(crate) fn ve_apf_vm_kick_soon(vm: *mut KvmVm, vcpu: u32);
    pub(crate) fn ve_apf_vcpu_vm(v: *mut KvmVcpu) -> *mut KvmVm;
    pub(crate) fn ve_apf_vcpu_state(v: *mut KvmVcpu) -> *mut c_void;
    pub(crate) fn ve_apf_vcpu_index(v: *mut KvmVcpu) -> u32;
    pub(crate) fn ve_apf_ring_lock(v: *mut KvmVcpu) -> *mut u8;
    pub(crate) fn ve_apf_ring_unlock(v: *mut KvmVcpu);
    pub(crate) fn ve_apf_ring_trylock(v: *mut KvmVcpu) -> *mut u8;
    pub(crate) fn ve_apf_ring_release(v: *mut KvmVcpu);
    pub(crate) fn ve_apf_vcpu_poll(v: *mut KvmVcpu) -> *mut c_void;
    pub(crate) fn ve_apf_vcpu_seen(v: *mut KvmVcpu) -> *mut c_void;
    pub(crate) fn ve_apf_interrupt_allowed(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_event_pending(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_is_nested(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_nested_run_pending(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_deliverable(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_rip(v: *mut KvmVcpu) -> u64;
    pub(crate) fn ve_apf_map(v: *mut KvmVcpu, gfn: u64, write: bool, ask: bool) -> u32;
    pub(crate) fn ve_apf_inject_ve(v: *mut KvmVcpu);
    pub(crate) fn ve_apf_can_interrupt(v: *mut KvmVcpu) -> bool;
    pub(crate) fn ve_apf_inject_irq(v: *mut KvmVcpu);
    pub(crate) fn ve_apf_guest_error(v: *mut KvmVcpu, slot: u64, word: u64, expected: u64);
}
