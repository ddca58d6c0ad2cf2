//! `arch/x86/kernel/ve_apf/internal.h`, the C side of it; numbers and layouts are those there.

use core::arch::asm;
use core::ffi::{c_long, c_void};
use core::ptr::NonNull;
use ve_apf_abi::hypercall::{VE_APF_HYPERCALL, VE_APF_OP_SUBMIT};

/// Words of [`VeApfCpu::waiters`]; `VE_APF_WAITERS_WORDS`.
pub(crate) const WAITERS_WORDS: usize = 64;

/// The beginning of `struct ve_apf_cpu`; the rest is C's.
#[repr(C)]
pub(crate) struct VeApfCpu {
    /// The ring.
    pub(crate) ring: NonNull<u8>,
    /// The VE info area, in hardware mode.
    pub(crate) info: Option<NonNull<u8>>,
    /// The rescue timer runs, or is about to. Changed by this CPU only, with interrupts off.
    pub(crate) rescue_armed: bool,
    /// Room for the private array, guarded by the lock.
    pub(crate) waiters: [u64; WAITERS_WORDS],
}

/// `struct pt_regs`
#[repr(C)]
pub(crate) struct PtRegs {
    opaque: [u64; 17],
    pub(crate) cs: u16,
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

/// `enum ve_apf_counter`, those that [`count`] is used for; the others are counted in C.
pub(crate) mod counter {
    pub(crate) const INJECTED: usize = 0;
    pub(crate) const DELIVERED: usize = 1;
    pub(crate) const PARKED_USER: usize = 2;
    pub(crate) const PARKED_KERNEL: usize = 3;
    pub(crate) const UNPARKED: usize = 4;
    pub(crate) const INTERRUPTS: usize = 5;
    pub(crate) const WOKEN: usize = 6;
}

/// The address of a per-CPU variable, as an instruction names it; `PER_CPU_VAR()`.
#[cfg(CONFIG_SMP)]
macro_rules! per_cpu {
    () => {
        "gs:[rip + {variable} + {offset}]"
    };
}
#[cfg(not(CONFIG_SMP))]
macro_rules! per_cpu {
    () => {
        "[rip + {variable} + {offset}]"
    };
}

/// `this_cpu_add(ve_apf_counters[COUNTER], by)`: one instruction, so that neither an NMI nor a
/// migration gets between.
#[inline(always)]
pub(crate) fn count<const COUNTER: usize>(by: u64) {
    // SAFETY: a per-CPU array of C's, longer than any number in `counter`; it is changed by such
    // instructions only.
    unsafe {
        asm!(
            concat!("add qword ptr ", per_cpu!(), ", {by}"),
            variable = sym ve_apf_counters,
            offset = const COUNTER * size_of::<u64>(),
            by = in(reg) by,
            options(nostack),
        );
    }
}

/// As [`count`], of one.
#[inline(always)]
pub(crate) fn count_one<const COUNTER: usize>() {
    // SAFETY: as in `count`.
    unsafe {
        asm!(
            concat!("inc qword ptr ", per_cpu!()),
            variable = sym ve_apf_counters,
            offset = const COUNTER * size_of::<u64>(),
            options(nostack),
        );
    }
}

/// Is any tracepoint enabled? One comparison with memory, which the compiler does not make of an atomic load.
#[inline(always)]
pub(crate) fn traced() -> bool {
    // SAFETY: reads a word of C's that is changed by single instructions only.
    unsafe {
        asm!(
            "cmp dword ptr [rip + {traced}], 0",
            "jne {yes}",
            traced = sym ve_apf_traced,
            yes = label { return true },
            options(readonly, nostack),
        );
    }
    false
}

/// Hypercall SUBMIT where the CPU raises #VE itself, which only VMX does: so it is VMCALL, and needs none of the patching that
/// [`ve_apf_os_submit`] has.
#[inline(always)]
pub(crate) fn vmcall_submit(slot: u64) -> c_long {
    let answer;
    // SAFETY: only a CPU in VMX non-root operation wrote the VE info area that the caller read, so VMCALL is no #UD; the call
    // writes nothing but the ring and RAX. RBX is put back, as the compiler wants it for itself.
    unsafe {
        asm!(
            "mov {rbx}, rbx",
            "mov ebx, {submit}",
            "vmcall",
            "mov rbx, {rbx}",
            rbx = out(reg) _,
            submit = const VE_APF_OP_SUBMIT,
            inout("rax") VE_APF_HYPERCALL => answer,
            in("rcx") slot,
            options(nostack),
        );
    }
    answer
}

/// What [`ve_apf_os_may_park`] answers instead of a reason: `VE_APF_MAY_PARK`.
pub(crate) const MAY_PARK: u32 = u32::MAX;

unsafe extern "C" {
    /// `DEFINE_PER_CPU(u64[], ve_apf_counters)`: not an address to look at.
    static ve_apf_counters: u64;
    /// How many of the tracepoints are enabled.
    static ve_apf_traced: u32;

    /// Takes the ring's raw lock; interrupts are off.
    pub(crate) fn ve_apf_os_lock(cpu: NonNull<VeApfCpu>);
    /// Releases it.
    pub(crate) fn ve_apf_os_unlock(cpu: NonNull<VeApfCpu>);

    /// [`MAY_PARK`], or the number of a `SuspendReason`.
    pub(crate) fn ve_apf_os_may_park(regs: NonNull<PtRegs>, gpa: u64, qualification: u64) -> u32;

    /// `set_current_state(TASK_KILLABLE | TASK_FREEZABLE)`
    pub(crate) fn ve_apf_os_sleep_killable();
    /// `set_current_state(TASK_IDLE)`
    pub(crate) fn ve_apf_os_sleep_idle();
    /// Of `kernel/sched/core.c`.
    pub(crate) fn schedule_ve_apf();
    /// `__set_current_state(TASK_RUNNING)`
    pub(crate) fn ve_apf_os_finish_sleep();
    /// `fatal_signal_pending(current)`
    pub(crate) fn ve_apf_os_fatal_signal() -> bool;
    /// `wake_up_process()`
    pub(crate) fn ve_apf_os_wake(task: NonNull<c_void>);

    /// Hypercall SUBMIT.
    pub(crate) fn ve_apf_os_submit(slot: u64) -> c_long;
    /// Hypercall SUBMIT of a slot in SUSPEND_ME, with interrupts on if they are in `regs`.
    pub(crate) fn ve_apf_os_wait(regs: NonNull<PtRegs>, slot: u64) -> c_long;
    /// Hypercall SUSPEND.
    pub(crate) fn ve_apf_os_suspend(gpa: u64, qualification: u64) -> c_long;
    /// Hypercall STATUS.
    pub(crate) fn ve_apf_os_status(slot: u64, generation: u64) -> c_long;

    /// Sets up hardware mode again, on this CPU.
    pub(crate) fn ve_apf_os_restore(cpu: NonNull<VeApfCpu>);

    /// Arms the rescue timer.
    pub(crate) fn ve_apf_arm_rescue(cpu: NonNull<VeApfCpu>);
    /// The page can never come: SIGBUS, fixup or oops.
    pub(crate) fn ve_apf_fail(regs: NonNull<PtRegs>, failure: &Failure);

    /// Counts, unless [`count`] did, and traces; `regs` only inside an exception.
    pub(crate) fn ve_apf_os_report(
        regs: Option<NonNull<PtRegs>>,
        event: EventNumber,
        slot: u32,
        value: u64,
    );

    /// `panic()`
    pub(crate) fn ve_apf_os_panic() -> !;
}
