//! Takes a page away and touches one, with nothing in between: the instruction after the `OUT` that has the VMM carry out
//! a prepared command is the one that is tested, and both are on a page that nothing else is on.

use core::arch::global_asm;

use ve_apf_testdev::PORT;

use crate::layout;
use ve_apf_metal::cpu::Cpu;
use ve_apf_metal::{lapic, tables};

// RDI: frame of the prepared command page.
global_asm!(
    ".pushsection .probe, \"ax\", @progbits",
    ".balign 4096",
    // RSI: address; RAX: what is there.
    "probe_load:",
    "mov edx, {port}",
    "mov eax, edi",
    "out dx, eax",
    "mov rax, [rsi]",
    "ret",
    // The same on another stack. RDX: how much further up that one is mapped.
    "probe_load_on:",
    "push rbp",
    "mov rbp, rsp",
    "add rsp, rdx",
    "mov edx, {port}",
    "mov eax, edi",
    "out dx, eax",
    "mov rax, [rsi]",
    "mov rsp, rbp",
    "pop rbp",
    "ret",
    // RSI: what the interrupt command register is told. The interrupt comes before the NOP, if interrupts are on.
    "probe_send:",
    "mov edx, {port}",
    "mov eax, edi",
    "out dx, eax",
    "mov ecx, {command}",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "wrmsr",
    "nop",
    "ret",
    // RSI: where the frame for the IRETQ is. RDX: what R15 must be.
    "probe_iret:",
    "mov rsp, rsi",
    "mov r15, rdx",
    "mov edx, {port}",
    "mov eax, edi",
    "out dx, eax",
    "iretq",
    ".popsection",
    // Where `probe_iret` may be told to return to: reads the stack it returned to, and goes on as `r15` says.
    ".pushsection .landing, \"ax\", @progbits",
    ".balign 4096",
    ".global probe_landing",
    "probe_landing:",
    "pop rax",
    "jmp r15",
    ".popsection",
    // Sends itself an NMI, RDI, whose handler returns by `probe_iret` to `probe_landing`; RAX: what was on that stack.
    ".pushsection .text.probe, \"ax\", @progbits",
    "probe_through_nmi:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + probe_stack], rsp",
    "lea r15, [rip + 3f]",
    "mov ecx, {command}",
    "mov rax, rdi",
    "mov rdx, rdi",
    "shr rdx, 32",
    "wrmsr",
    "2: pause",
    "jmp 2b",
    "3: mov rsp, [rip + probe_stack]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    ".pushsection .bss.probe, \"aw\", @nobits",
    ".balign 8",
    "probe_stack: .skip 8",
    ".popsection",
    // An entry for #VE that single-steps the real one: the trap flag is set where the CPU cleared it. RFLAGS and the stack are
    // as at the real entry otherwise.
    ".pushsection .text.probe, \"ax\", @progbits",
    ".global probe_stepped_entry, probe_real_entry",
    "probe_stepped_entry:",
    "pushfq",
    "or dword ptr [rsp], 0x100",
    "popfq",
    "jmp [rip + probe_real_entry]",
    ".popsection",
    ".pushsection .bss.probe, \"aw\", @nobits",
    "probe_real_entry: .skip 8",
    ".popsection",
    port = const PORT,
    command = const lapic::COMMAND,
);

unsafe extern "C" {
    fn probe_iret(command: u64, frame: u64, r15: u64) -> !;
    fn probe_through_nmi(nmi: u64) -> u64;
    fn probe_landing();
    fn probe_stepped_entry();
    static mut probe_real_entry: u64;
    fn probe_load(command: u64, from: u64) -> u64;
    fn probe_load_on(command: u64, from: u64, further: u64) -> u64;
    fn probe_send(command: u64, interrupt: u64);
}

/// Has the VMM carry out the command, then reads a word.
///
/// # Safety
/// `from` is aligned and mapped; `command` is one that [`crate::device::prepare_evict`] prepared.
pub(crate) unsafe fn load(command: u64, from: u64) -> u64 {
    // SAFETY: the function above, and the caller's promise.
    unsafe { probe_load(command, from) }
}

/// As [`load`], with the stack at where it is mapped a second time.
///
/// # Safety
/// As for [`load`]; and [`layout::map_again`] was called.
pub(crate) unsafe fn load_on_second_stack(command: u64, from: u64) -> u64 {
    // SAFETY: the function above, and the caller's promise: what is mapped there is the same memory.
    unsafe { probe_load_on(command, from, layout::SECOND) }
}

/// Has the VMM carry out the command, then sends an interrupt, which comes at once.
///
/// # Safety
/// `command` as for [`load`]; the interrupt's vector has a handler.
pub(crate) unsafe fn send(command: u64, interrupt: u64) {
    // SAFETY: the function above, and the caller's promise.
    unsafe { probe_send(command, interrupt) }
}

/// Where [`iret`] may return to.
pub(crate) fn landing() -> u64 {
    probe_landing as *const () as u64
}

/// Has the VMM carry out the command, then executes `IRETQ`.
///
/// # Safety
/// `frame` is what `IRETQ` pops: back to [`landing`], on a stack with one word; `r15` as [`through_nmi`] had it.
pub(crate) unsafe fn iret(command: u64, frame: u64, r15: u64) -> ! {
    // SAFETY: the function above, and the caller's promise.
    unsafe { probe_iret(command, frame, r15) }
}

/// Goes into an NMI, out of it by [`iret`], and by [`landing`] back here; the word that was on the stack there.
///
/// # Safety
/// The NMI's handler calls [`iret`].
pub(crate) unsafe fn through_nmi(cpu: usize) -> u64 {
    // SAFETY: the function above, and the caller's promise.
    unsafe { probe_through_nmi(lapic::nmi_command(cpu)) }
}

/// Runs `work` with every instruction of the #VE handler trapping to [`ve_apf_metal::trap::DEBUG`].
pub(crate) fn stepped(cpu: &Cpu, work: impl FnOnce()) {
    // SAFETY: the entry above goes on at the real one, as the function wants; nothing faults before that is known.
    unsafe {
        let real = tables::redirect_ve(cpu, probe_stepped_entry as *const () as u64);
        (&raw mut probe_real_entry).write_volatile(real);
    }
    work();
    // SAFETY: the real entry again.
    unsafe {
        tables::redirect_ve(cpu, (&raw const probe_real_entry).read_volatile());
    }
}

/// The stack pointer of the calling function.
#[inline(always)]
pub(crate) fn stack_pointer() -> u64 {
    let rsp;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags))
    };
    rsp
}
