//! The local APIC in x2APIC mode: every register is an MSR (SDM vol. 3, 10.12).

use crate::cpu::Cpu;
use crate::sys::{Refused, write_msr};
use core::sync::atomic::Ordering::SeqCst;
use x86_64::registers::model_specific::{ApicBase, ApicBaseFlags, Msr};

const EOI: u32 = 0x80b;
const PRIORITY: u32 = 0x808;
const SPURIOUS: u32 = 0x80f;
/// Interrupt command: MSR number, for code that writes it by itself.
pub const COMMAND: u32 = 0x830;
const SOFTWARE_ENABLE: u64 = 1 << 8;
const SPURIOUS_VECTOR: u64 = 0xff;
/// Delivery mode of [`COMMAND`]: NMI.
const NMI: u64 = 4 << 8;
/// `MSR_KVM_PV_EOI_EN`
const PV_EOI: u32 = 0x4b56_4d04;

/// Switches it on, on this CPU, and PV EOI if the host has it.
pub fn init(cpu: &'static Cpu) {
    let (frame, flags) = ApicBase::read();
    let on = flags | ApicBaseFlags::LAPIC_ENABLE | ApicBaseFlags::X2APIC_ENABLE;
    // SAFETY: from now on this module alone drives it, by MSRs.
    unsafe { ApicBase::write(frame, on) };
    // SAFETY: no source of interrupts is programmed yet.
    unsafe { Msr::new(SPURIOUS).write(SOFTWARE_ENABLE | SPURIOUS_VECTOR) };
    // Without it each interrupt costs one exit more, and nothing else.
    // SAFETY: the word is the CPU's own and accessed atomically only.
    let _: Result<(), Refused> =
        unsafe { write_msr(PV_EOI, (&raw const cpu.eoi).addr() as u64 | 1) };
}

/// Switches it off by software, where it takes no interrupts but NMIs, and on again.
pub fn set_enabled(on: bool) {
    let enable = if on { SOFTWARE_ENABLE } else { 0 };
    // SAFETY: no interrupt source is programmed that could be lost.
    unsafe { Msr::new(SPURIOUS).write(enable | SPURIOUS_VECTOR) };
}

/// Interrupts of this class (vector / 16) and below stay pending.
pub fn set_priority(class: u8) {
    // SAFETY: what is held back comes later.
    unsafe { Msr::new(PRIORITY).write(u64::from(class & 0xf) << 4) };
}

/// Ends the interrupt that is being handled.
pub fn end_of_interrupt(cpu: &Cpu) {
    if cpu.eoi.fetch_and(!1, SeqCst) & 1 == 0 {
        // SAFETY: an interrupt of this LAPIC is being handled.
        unsafe { Msr::new(EOI).write(0) };
    }
}

/// What [`COMMAND`] is told for an interrupt to CPU `index`.
pub const fn interrupt_command(index: usize, vector: u8) -> u64 {
    (index as u64) << 32 | vector as u64
}

/// What [`COMMAND`] is told for an NMI to CPU `index`.
pub const fn nmi_command(index: usize) -> u64 {
    (index as u64) << 32 | NMI
}

/// Sends an interrupt or an NMI.
pub fn send(command: u64) {
    // SAFETY: the vectors of this kernel all have handlers, or end it in words.
    unsafe { Msr::new(COMMAND).write(command) };
}
