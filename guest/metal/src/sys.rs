//! What only a machine instruction can do, and what may be refused: the hypercall, MSRs, reads of
//! memory that may never come.

use crate::abi::hypercall::VE_APF_HYPERCALL;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

// Each of these has one instruction that may raise #GP, or #VE for a page that can never come. Its
// handler then goes on at the second label: see `fixup`.
global_asm!(
    ".pushsection .text.ve_metal_sys, \"ax\", @progbits",
    ".global ve_metal_wrmsr, ve_metal_wrmsr_at, ve_metal_wrmsr_fixup",
    "ve_metal_wrmsr:",
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "ve_metal_wrmsr_at: wrmsr",
    "xor eax, eax",
    "ret",
    "ve_metal_wrmsr_fixup:",
    "mov eax, 1",
    "ret",
    ".global ve_metal_rdmsr, ve_metal_rdmsr_at, ve_metal_rdmsr_fixup",
    "ve_metal_rdmsr:",
    "mov ecx, edi",
    "ve_metal_rdmsr_at: rdmsr",
    "mov [rsi], eax",
    "mov [rsi + 4], edx",
    "xor eax, eax",
    "ret",
    "ve_metal_rdmsr_fixup:",
    "mov eax, 1",
    "ret",
    ".global ve_metal_load, ve_metal_load_at, ve_metal_load_fixup",
    "ve_metal_load:",
    "ve_metal_load_at: mov rax, [rdi]",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    "ve_metal_load_fixup:",
    "mov eax, 1",
    "ret",
    ".global ve_metal_raise, ve_metal_raise_at, ve_metal_raise_fixup",
    "ve_metal_raise:",
    "int 20",
    "ve_metal_raise_at: xor eax, eax",
    "ret",
    "ve_metal_raise_fixup:",
    "mov eax, 1",
    "ret",
    ".global ve_metal_halt, ve_metal_halt_at",
    "ve_metal_halt:",
    "sti",
    "ve_metal_halt_at: hlt",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    safe fn ve_metal_halt();
    static ve_metal_halt_at: u8;
    fn ve_metal_raise() -> u32;
    static ve_metal_raise_at: u8;
    static ve_metal_raise_fixup: u8;
    fn ve_metal_wrmsr(msr: u32, value: u64) -> u32;
    fn ve_metal_rdmsr(msr: u32, value: *mut u64) -> u32;
    fn ve_metal_load(from: *const u64, to: *mut u64) -> u32;
    static ve_metal_wrmsr_at: u8;
    static ve_metal_wrmsr_fixup: u8;
    static ve_metal_rdmsr_at: u8;
    static ve_metal_rdmsr_fixup: u8;
    static ve_metal_load_at: u8;
    static ve_metal_load_fixup: u8;
}

/// Lets interrupts in and halts until one comes. On a CPU none comes between the two: what follows STI is shielded.
///
/// Under QEMU's SVM one may. VMRUN forgets the shield (the VMCB's interrupt shadow, which VMEXIT saved), so that an exit
/// between the two, for a kick, lets an interrupt in before HLT, which then waits for another one. Hence [`woke_before_halt`].
pub fn enable_and_halt() {
    ve_metal_halt();
}

/// An interrupt came in at `rip`: does that halt have to be left out?
pub(crate) fn woke_before_halt(rip: u64) -> bool {
    rip == (&raw const ve_metal_halt_at).addr() as u64
}

/// The instruction was refused, or its memory can never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Writes an MSR.
///
/// # Errors
/// [`Refused`] where that is #GP.
///
/// # Safety
/// What the MSR then does is harmless.
pub unsafe fn write_msr(msr: u32, value: u64) -> Result<(), Refused> {
    // SAFETY: the function above; the caller vouches for the MSR.
    if unsafe { ve_metal_wrmsr(msr, value) } == 0 { Ok(()) } else { Err(Refused) }
}

/// Reads an MSR.
///
/// # Errors
/// [`Refused`] where that is #GP.
pub fn read_msr(msr: u32) -> Result<u64, Refused> {
    let mut value = 0;
    // SAFETY: the function above writes to `value` only; no MSR that KVM emulates changes by being read.
    if unsafe { ve_metal_rdmsr(msr, &mut value) } == 0 { Ok(value) } else { Err(Refused) }
}

/// Reads one word.
///
/// # Errors
/// [`Refused`] where the host says that the page can never come.
///
/// # Safety
/// `from` is aligned and mapped.
pub unsafe fn load(from: *const u64) -> Result<u64, Refused> {
    let mut value = 0;
    // SAFETY: the function above; the caller vouches for `from`.
    if unsafe { ve_metal_load(from, &mut value) } == 0 { Ok(value) } else { Err(Refused) }
}

/// Enters the #VE handler where no fault is.
///
/// # Errors
/// [`Refused`] where the handler came to believe in a page that can never come.
pub fn raise() -> Result<(), Refused> {
    // SAFETY: the vector has a handler, which returns behind the instruction, or at its fixup.
    if unsafe { ve_metal_raise() } == 0 { Ok(()) } else { Err(Refused) }
}

/// Where to go on after a refusal at `rip`, if the code there expected one.
pub(crate) fn fixup(rip: u64) -> Option<u64> {
    let table = [
        (&raw const ve_metal_wrmsr_at, &raw const ve_metal_wrmsr_fixup),
        (&raw const ve_metal_rdmsr_at, &raw const ve_metal_rdmsr_fixup),
        (&raw const ve_metal_load_at, &raw const ve_metal_load_fixup),
        (&raw const ve_metal_raise_at, &raw const ve_metal_raise_fixup),
    ];
    let found = table.into_iter().find(|(at, _)| at.addr() as u64 == rip);
    found.map(|(_, fixup)| fixup.addr() as u64)
}

/// A hypercall of ve-apf: the answer in RAX.
pub fn hypercall(op: u64, args: [u64; 3]) -> i64 {
    raw_hypercall(VE_APF_HYPERCALL, [op, args[0], args[1], args[2]])
}

/// Any hypercall: RBX, RCX, RDX and RSI are the arguments.
pub fn raw_hypercall(number: u64, args: [u64; 4]) -> i64 {
    let answer: u64;
    let [rbx, rcx, rdx, rsi] = args;
    // SAFETY: the host changes RAX and the ring, which is accessed atomically only; the compiler
    // keeps RBX for itself, so it is exchanged around the instruction. A vendor's CPUs have one of the two.
    unsafe {
        asm!(
            "xchg {rbx}, rbx",
            "test {amd}, {amd}",
            "jnz 2f",
            "vmcall",
            "jmp 3f",
            "2: vmmcall",
            "3: xchg {rbx}, rbx",
            rbx = inout(reg) rbx => _,
            amd = in(reg) u64::from(IS_AMD.load(Relaxed)),
            inout("rax") number => answer,
            in("rcx") rcx,
            in("rdx") rdx,
            in("rsi") rsi,
            options(nostack),
        );
    }
    answer.cast_signed()
}

/// Whether this CPU calls its hypervisor by VMMCALL.
static IS_AMD: AtomicBool = AtomicBool::new(false);

/// Finds out what [`raw_hypercall`] must know.
pub(crate) fn init() {
    // Leaf 0 EBX of "AuthenticAMD".
    #[allow(unused_unsafe, reason = "safe since Rust 1.94")]
    // SAFETY: every 64-bit CPU has the instruction, and the leaf.
    let leaf = unsafe { core::arch::x86_64::__cpuid(0) };
    let amd = leaf.ebx == u32::from_le_bytes(*b"Auth");
    IS_AMD.store(amd, Relaxed);
}

/// Time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter; CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
