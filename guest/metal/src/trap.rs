//! From an IDT entry to Rust and back.

use crate::cpu::{Cpu, this};
use crate::sys;
use crate::tables::Stack;
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use x86_64::structures::idt::InterruptStackFrameValue;

/// Vector of the single-step trap.
pub const DEBUG: u8 = 1;
/// Vector of the NMI.
pub const NMI: u8 = 2;
/// Vector of a general-protection fault.
pub const GENERAL_PROTECTION: u8 = 13;
/// Vector of a completion.
pub const COMPLETION: u8 = 0xf0;
/// A vector for the kernel's own use, on the interrupted stack.
pub const KERNEL: u8 = 0xe0;
/// Another one, on a stack of its own.
pub const KERNEL_OWN_STACK: u8 = 0xe1;

/// Vectors below are exceptions'.
const FIRST_INTERRUPT: u64 = 32;
/// Length of HLT.
const HLT_BYTES: u64 = 1;

/// What the entry code leaves on the stack: registers as they were, then what the CPU pushed.
#[repr(C)]
#[derive(Debug)]
#[expect(missing_docs, reason = "named like the registers")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Vector.
    pub vector: u64,
    /// Error code, or 0.
    pub error: u64,
    /// What the CPU pushed.
    pub cpu: InterruptStackFrameValue,
}

/// Handles a vector: on this CPU, with interrupts off.
pub type Handler = fn(&'static Cpu, &mut Frame);

// One entry for each vector, and the table of them: vector, address. The CPU aligned the stack before it pushed, so it is
// aligned to 16 bytes at the call.
global_asm!(
    ".pushsection .text.ve_metal_entry, \"ax\", @progbits",
    ".macro ve_metal_stub vector, has_error",
    ".balign 16",
    "77:",
    ".if \\has_error == 0",
    "push 0",
    ".endif",
    "push \\vector",
    "jmp ve_metal_entry",
    ".pushsection .rodata.ve_metal_stubs, \"a\", @progbits",
    ".quad \\vector, 77b",
    ".popsection",
    ".endm",
    ".pushsection .rodata.ve_metal_stubs, \"a\", @progbits",
    ".balign 16",
    "ve_metal_stubs:",
    ".popsection",
    "ve_metal_stub 1, 0",
    "ve_metal_stub 2, 0",
    "ve_metal_stub 3, 0",
    "ve_metal_stub 6, 0",
    "ve_metal_stub 8, 1",
    "ve_metal_stub 10, 1",
    "ve_metal_stub 11, 1",
    "ve_metal_stub 12, 1",
    "ve_metal_stub 13, 1",
    "ve_metal_stub 14, 1",
    "ve_metal_stub 20, 0",
    "ve_metal_stub 0xe0, 0",
    "ve_metal_stub 0xe1, 0",
    "ve_metal_stub 0xf0, 0",
    "ve_metal_stub 0xff, 0",
    ".pushsection .rodata.ve_metal_stubs, \"a\", @progbits",
    ".quad 0, 0",
    ".popsection",
    "ve_metal_entry:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "call ve_metal_trap",
    ".global ve_metal_return",
    "ve_metal_return:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
);

unsafe extern "C" {
    static ve_metal_stubs: [u64; 2];
}

/// Vector, address and stack of every entry.
pub(crate) fn stubs() -> impl Iterator<Item = (u8, u64, Stack)> {
    let mut at = &raw const ve_metal_stubs;
    core::iter::from_fn(move || {
        // SAFETY: the table above ends with a vector of 0, behind which `at` is not moved.
        let [vector, address] = unsafe { *at };
        let vector = u8::try_from(vector).ok().filter(|vector| *vector != 0)?;
        at = at.wrapping_add(1);
        let stack = if vector == KERNEL_OWN_STACK { Stack::Own } else { Stack::Interrupted };
        Some((vector, address, stack))
    })
}

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];

/// Says who handles a vector; the last one is for the rest, which is the end of the kernel.
pub fn set_handler(vector: u8, handler: Handler) {
    if let Some(entry) = HANDLERS.get(usize::from(vector)) {
        entry.store(handler as usize, SeqCst);
    }
}

fn handler(vector: u64) -> Option<Handler> {
    let address = HANDLERS.get(usize::try_from(vector).ok()?)?.load(Relaxed);
    // SAFETY: `set_handler` stored it, and 0 is no function.
    unsafe { core::mem::transmute::<usize, Option<Handler>>(address) }
}

/// Called by the entry code with the frame it made.
#[unsafe(no_mangle)]
extern "C" fn ve_metal_trap(frame: &mut Frame) {
    let cpu = this();
    if frame.vector >= FIRST_INTERRUPT {
        let rip = frame.cpu.instruction_pointer;
        if sys::woke_before_halt(rip.as_u64()) {
            frame.cpu.instruction_pointer = rip + HLT_BYTES;
        }
    }
    match handler(frame.vector) {
        Some(handler) => cpu.count_context(frame, handler),
        None => unhandled(frame),
    }
}

/// A vector that nobody handles.
#[expect(clippy::panic, reason = "there is nothing to go on with")]
pub(crate) fn unhandled(frame: &Frame) -> ! {
    panic!(
        "vector {} error {:#x} rip {:#x} rsp {:#x} rflags {:#x} cr2 {:#x}",
        frame.vector,
        frame.error,
        frame.cpu.instruction_pointer,
        frame.cpu.stack_pointer,
        frame.cpu.cpu_flags,
        x86_64::registers::control::Cr2::read_raw(),
    );
}
