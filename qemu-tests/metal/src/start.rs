//! From the VMM's jump to the tests, and the end.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ve_apf_metal::cpu::{self, CPUS, Mode};
use ve_apf_metal::tables::Page;
use ve_apf_metal::{lapic, sys};

use crate::options::Options;
use crate::suite::{self, Boot};
use crate::{device, smp};

/// Bytes of the stack of a CPU's first task: tests run on it.
pub(crate) const STACK: usize = 0x1_0000;

/// The stacks of the first tasks.
pub(crate) static STACKS: [Page<[u8; STACK]>; CPUS] = [const { Page::new([0; STACK]) }; CPUS];

// In: RDI number of this CPU, RSI command line, RDX number of CPUs. RCX becomes the time.
#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".global _start",
    "_start:",
    "mov r8, rdx",
    "rdtsc",
    "shl rdx, 32",
    "lea rcx, [rax + rdx]",
    "mov rdx, r8",
    "lea rax, [rdi + 1]",
    "imul rax, rax, {stack}",
    "lea rsp, [rip + {stacks}]",
    "add rsp, rax",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".popsection",
    stack = const STACK,
    stacks = sym STACKS,
    main = sym enter,
);

/// Every CPU's first function in Rust.
extern "C" fn enter(index: usize, cmdline: *const u8, cpus: usize, entered: u64) -> ! {
    // SAFETY: `_start` calls this once on each CPU, which the VMM numbers from 0, in the state it promises: 64-bit,
    // interrupts off, memory mapped to itself.
    let cpu = unsafe { cpu::init(index) };
    lapic::init(cpu);
    x86_64::instructions::interrupts::enable();
    if index != 0 {
        smp::serve(index);
    }
    // SAFETY: the VMM put it there, zero at its end, and nobody changes it.
    let options = Options::new(unsafe { core::ffi::CStr::from_ptr(cmdline.cast()) });
    let mode = match options.text("ve-apf", "injected") {
        "hardware" => Mode::Hardware,
        _ => Mode::Injected,
    };
    let boot = Boot { mode, cpus: cpus.min(CPUS), options, entered, ready: sys::tsc() };
    let code = suite::run(&boot);
    device::exit(code)
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    static ONCE: AtomicBool = AtomicBool::new(false);
    if !ONCE.swap(true, SeqCst) {
        device::report_panic(info);
    }
    device::exit(2)
}
