//! `arch/x86/kernel/ve_apf/internal.h`, the C side of it; numbers and layouts are those there.

use core::ffi::{c_long, c_void};
use core::ptr::NonNull;

/// Words of [`VeApfCpu::waiters`]; `VE_APF_WAITERS_WORDS`.
pub(crate) const WAITERS_WORDS: usize = 128;

/// The beginning of `struct ve_apf_cpu`; the rest is C's.
#[repr(C)]
pub(crate) struct VeApfCpu {
    /// The ring.
    pub(crate) ring: NonNull<u8>,
    /// The VE info area, in hardware mode.
    pub(crate) info: Option<NonNull<u8>>,
    /// Room for the private array, guarded by the lock.
    pub(crate) waiters: [u64; WAITERS_WORDS],
}

/// `struct pt_regs`, which is never looked into here.
#[repr(C)]
pub(crate) struct PtRegs {
    opaque: [u8; 0],
}

/// `enum ve_apf_verdict`
#[repr(u32)]
pub(crate) enum Verdict {
    Retry = 0,
    Killed = 1,
    Fail = 2,
    Spurious = 3,
}

/// `struct ve_apf_failure`
#[repr(C)]
pub(crate) struct Failure {
    pub(crate) gpa: u64,
    pub(crate) gla: u64,
    pub(crate) gla_valid: bool,
    pub(crate) cause: u16,
}

/// `struct ve_apf_rescue_found`
#[repr(C)]
pub(crate) struct RescueFound {
    pub(crate) active: bool,
    pub(crate) lost: bool,
}

/// `enum ve_apf_event`
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum EventNumber {
    Fault = 0,
    SpuriousVe = 1,
    Early = 2,
    Parked = 3,
    Unparked = 4,
    Abandoned = 5,
    Suspended = 6,
    Failed = 7,
    SpuriousWake = 8,
    Interrupt = 9,
    Rescued = 10,
    NewEpoch = 11,
    Delivered = 12,
    NoSlot = 13,
    Unrung = 14,
}

/// What [`ve_apf_os_may_park`] answers instead of a reason: `VE_APF_MAY_PARK`.
pub(crate) const MAY_PARK: u32 = u32::MAX;

unsafe extern "C" {
    /// Takes the ring's raw lock; interrupts are off.
    pub(crate) fn ve_apf_os_lock(cpu: NonNull<VeApfCpu>);
    /// Releases it.
    pub(crate) fn ve_apf_os_unlock(cpu: NonNull<VeApfCpu>);

    /// `current`
    pub(crate) fn ve_apf_os_current() -> NonNull<c_void>;
    /// Sets `current->in_ve_apf`; returns what it was.
    pub(crate) fn ve_apf_os_enter() -> bool;
    /// Clears it.
    pub(crate) fn ve_apf_os_leave();
    /// [`MAY_PARK`], or the number of a `SuspendReason`.
    pub(crate) fn ve_apf_os_may_park(regs: NonNull<PtRegs>, gpa: u64, qualification: u64) -> u32;

    /// `set_current_state()`
    pub(crate) fn ve_apf_os_prepare_to_sleep(killable: bool);
    /// `schedule_ve_apf()`
    pub(crate) fn ve_apf_os_schedule();
    /// `__set_current_state(TASK_RUNNING)`
    pub(crate) fn ve_apf_os_finish_sleep();
    /// `fatal_signal_pending(current)`
    pub(crate) fn ve_apf_os_fatal_signal() -> bool;
    /// `wake_up_process()`
    pub(crate) fn ve_apf_os_wake(task: NonNull<c_void>);

    /// Hypercall SUBMIT.
    pub(crate) fn ve_apf_os_submit(slot: u64) -> c_long;
    /// Hypercall SUSPEND.
    pub(crate) fn ve_apf_os_suspend(gpa: u64, qualification: u64) -> c_long;
    /// Hypercall STATUS.
    pub(crate) fn ve_apf_os_status(slot: u64, generation: u64) -> c_long;

    /// Sets up hardware mode again, on this CPU.
    pub(crate) fn ve_apf_os_restore(cpu: NonNull<VeApfCpu>);

    /// Counts and traces; `regs` only inside an exception.
    pub(crate) fn ve_apf_os_report(
        cpu: NonNull<VeApfCpu>,
        regs: Option<NonNull<PtRegs>>,
        event: EventNumber,
        slot: u32,
        value: u64,
    );

    /// `panic()`
    pub(crate) fn ve_apf_os_panic() -> !;
}
