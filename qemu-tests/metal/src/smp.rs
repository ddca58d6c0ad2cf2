//! The same work on every CPU.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ve_apf_metal::{cpu, lapic, sys, trap};
use x86_64::instructions::interrupts;

/// What a CPU does: it is told its number.
pub(crate) type Work = fn(usize);

static WORK: AtomicUsize = AtomicUsize::new(0);
/// CPUs that have not finished.
static BUSY: [AtomicUsize; cpu::CPUS] = [const { AtomicUsize::new(0) }; cpu::CPUS];

/// The life of every CPU but the first.
pub(crate) fn serve(index: usize) -> ! {
    let Some(busy) = BUSY.get(index) else { panic!("CPU {index}") };
    loop {
        interrupts::disable();
        if busy.load(SeqCst) == 0 {
            sys::enable_and_halt();
            continue;
        }
        interrupts::enable();
        let work = WORK.load(SeqCst);
        // SAFETY: `on_all` stored it before it said that there is something to do; no function is at 0.
        if let Some(work) = unsafe { core::mem::transmute::<usize, Option<Work>>(work) } {
            work(index);
        }
        busy.store(0, SeqCst);
        lapic::send(lapic::interrupt_command(0, trap::KERNEL));
    }
}

/// Has the first `cpus` CPUs do it, this one too, and waits until all have.
pub(crate) fn on_all(cpus: usize, work: Work) {
    begin(cpus, work);
    work(0);
    loop {
        interrupts::disable();
        if BUSY.iter().all(|busy| busy.load(SeqCst) == 0) {
            interrupts::enable();
            return;
        }
        sys::enable_and_halt();
    }
}

/// Has the first `cpus` CPUs but this one do it. They may never finish; then nothing else is to be done here.
pub(crate) fn begin(cpus: usize, work: Work) {
    trap::set_handler(trap::KERNEL, |cpu, _| lapic::end_of_interrupt(cpu));
    WORK.store(work as usize, SeqCst);
    for (index, busy) in BUSY.iter().enumerate().take(cpus).skip(1) {
        busy.store(1, SeqCst);
        lapic::send(lapic::interrupt_command(index, trap::KERNEL));
    }
}
