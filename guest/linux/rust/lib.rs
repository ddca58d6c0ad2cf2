//! The guest's side of ve-apf inside Linux: what `arch/x86/kernel/ve_apf/*.c` calls.
//!
//! * [`sys`]: the kernel's functions, as `internal.h` declares them.
//! * [`cpu`]: one CPU as the state machine sees it; the only place that calls them.
//! * [`ring_ptr`], [`ve_info_ptr`]: the pages shared with the host and with the CPU.
//!
//! All of it runs with interrupts off, on the ring's own CPU, but for two waits in
//! [`ve_apf_guest_exception`]: a task that slept may wake up on another one, and a vCPU that stands
//! still takes interrupts, and may run other tasks, where the code that faulted allowed that.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

use ve_apf_abi as abi;

mod cpu;
mod ring_ptr;
mod sys;
mod ve_info_ptr;

use crate::cpu::{Exception, Linux, init};
use crate::sys::{Failure, PtRegs, RescueFound, VeApfCpu};
use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use ve_apf_guest::complete;
use ve_apf_guest::handle::{Mode, Verdict, handle_ve};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: takes no argument and may be called in any context.
    unsafe { sys::ve_apf_os_panic() }
}

/// Prepares the private array of a CPU. Once per CPU, before anything else.
///
/// # Safety
/// `cpu` is a `struct ve_apf_cpu` that lives for ever and that nobody uses yet.
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_init(cpu: NonNull<VeApfCpu>) {
    // SAFETY: passed on from the caller.
    unsafe { init(cpu) }
}

/// #VE.
///
/// # Safety
/// `cpu` is this CPU's, prepared; `regs` those of the exception; `task` is `current`, and `in_ve`
/// its field `in_ve_apf`, which nobody else changes; interrupts are off.
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_exception(
    cpu: NonNull<VeApfCpu>,
    regs: NonNull<PtRegs>,
    task: NonNull<c_void>,
    in_ve: NonNull<AtomicBool>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        if (&raw const (*regs.as_ptr()).cs).read() & 3 != 0 {
            exception(cpu, Exception { regs, task, in_ve }, Mode::User);
        } else {
            in_kernel(cpu, Exception { regs, task, in_ve });
        }
    }
}

/// Code of its own, so that what a fault in user mode takes is straight on, and asks no more what it was.
///
/// # Safety
/// As [`ve_apf_guest_exception`].
#[inline(never)]
unsafe fn in_kernel(cpu: NonNull<VeApfCpu>, from: Exception) {
    // SAFETY: passed on from the caller.
    unsafe { exception(cpu, from, Mode::Kernel) }
}

/// # Safety
/// As [`ve_apf_guest_exception`].
#[inline(always)]
unsafe fn exception(cpu: NonNull<VeApfCpu>, from: Exception, mode: Mode) {
    // SAFETY: passed on from the caller.
    let linux = unsafe { Linux::new(cpu, Some(from)) };
    // From here on `cpu` may belong to another CPU than this one.
    if let Verdict::Fail { cause, gpa, gla } = handle_ve(&linux, mode) {
        let gla_valid = gla.is_some();
        let failure = Failure { gpa, gla: gla.unwrap_or(0), gla_valid, cause };
        // SAFETY: the exception is the caller's; the state machine is done with it.
        unsafe { sys::ve_apf_fail(from.regs, &failure) }
    }
}

/// The completion interrupt.
///
/// # Safety
/// `cpu` is this CPU's, prepared; interrupts are off.
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_interrupt(cpu: NonNull<VeApfCpu>) {
    // SAFETY: passed on from the caller.
    complete::interrupt(&unsafe { Linux::new(cpu, None) });
}

/// Before EN is written.
///
/// # Safety
/// As [`ve_apf_guest_interrupt`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_before_enable(cpu: NonNull<VeApfCpu>) {
    // SAFETY: passed on from the caller.
    complete::before_enable(&unsafe { Linux::new(cpu, None) });
}

/// After EN was written 0.
///
/// # Safety
/// As [`ve_apf_guest_interrupt`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_after_disable(cpu: NonNull<VeApfCpu>) {
    // SAFETY: passed on from the caller.
    complete::after_disable(&unsafe { Linux::new(cpu, None) });
}

/// Now and then while tasks sleep.
///
/// # Safety
/// As [`ve_apf_guest_interrupt`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ve_apf_guest_rescue(cpu: NonNull<VeApfCpu>) -> RescueFound {
    // SAFETY: passed on from the caller.
    let found = complete::rescue(&unsafe { Linux::new(cpu, None) });
    RescueFound { active: found.active, lost: found.lost }
}
