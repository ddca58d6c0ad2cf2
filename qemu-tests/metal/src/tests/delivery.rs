//! Pages that the CPU itself needs while it delivers an event or returns from one: no #VE is raised during a delivery, the
//! event must come once, and an NMI's `IRET` that faults must leave NMIs neither blocked nor lost.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use ve_apf_metal::cpu::{Cpu, this};
use ve_apf_metal::lapic;
use ve_apf_metal::tables::{IST_STACK, Page};
use ve_apf_metal::trap::{self, Frame};
use ve_apf_testdev::PolicyArgs;
use x86_64::instructions::interrupts;
use x86_64::registers::segmentation::{CS, SS, Segment};

use super::nmi;
use crate::device::{self, Content};
use crate::layout::{self, Name};
use crate::probe;
use crate::suite::{self, Check, Test};

/// An interrupt, or an NMI, whose delivery needs a page that is missing.
pub(crate) const EVENTS: Test = Test::any("delivery", "delivery", events);
/// The same, with those pages declared.
pub(crate) const EVENTS_ARMED: Test =
    Test::hardware("delivery", "delivery_armed", |check| suite::armed(check, events));
/// The end of an NMI, whose `IRET` needs a page that is missing, or returns to one.
pub(crate) const IRET: Test = Test::any("delivery", "nmi_iret", iret);
/// The same, with those pages declared.
pub(crate) const IRET_ARMED: Test =
    Test::hardware("delivery", "nmi_iret_armed", |check| suite::armed(check, iret));

static CAME: AtomicU64 = AtomicU64::new(0);
static COMMAND: AtomicU64 = AtomicU64::new(0);

/// What an `IRET` pops lies at the end of this page, and nothing else.
static FRAME: Page<[u64; 512]> = Page::new([0; 512]);
/// The stack it returns to.
static STACK: Page<[u64; 512]> = Page::new([0; 512]);
/// The word on that stack.
const MARK: u64 = 0x7665_5f61_7066;

fn function(address: *const ()) -> u64 {
    address.addr() as u64 / 4096
}

fn came(cpu: &'static Cpu, _: &mut Frame) {
    CAME.fetch_add(1, SeqCst);
    lapic::end_of_interrupt(cpu);
}

/// True if the page was asked for.
fn was_missed(frame: u64) -> bool {
    let mut log = [0; 64];
    let count = device::fault_log(&mut log);
    device::restore_all();
    log.iter().take(count).any(|asked| *asked == frame)
}

fn events(check: &mut Check<'_>) {
    device::set_policy([], PolicyArgs::fixed(500));
    trap::set_handler(trap::KERNEL_OWN_STACK, came);
    trap::set_handler(trap::NMI, nmi::on_nmi);
    let cpu = check.cpu;
    let stack = cpu.tables.own_stack.address() / 4096 + IST_STACK as u64 / 4096 - 1;
    // Where the call below will push.
    let here = (probe::stack_pointer() - 64) / 4096;
    // The interrupt switches stacks, and so needs the TSS; the NMI does not.
    let interrupt = lapic::interrupt_command(cpu.index(), trap::KERNEL_OWN_STACK);
    let nmi = lapic::nmi_command(cpu.index());
    let pages = [
        (cpu.tables.idt.address() / 4096, true),
        (cpu.tables.gdt.address() / 4096, true),
        (cpu.tables.tss.address() / 4096, false),
        (stack, false),
        (here, true),
        (layout::entry_frame(), true),
        (function(came as *const ()), false),
        (layout::PAGE_TABLES.start, true),
        (layout::PAGE_TABLES.start + 1, true),
        (layout::PAGE_TABLES.start + 2, true),
    ];
    let mut missed = 0;
    for (frame, in_nmi) in pages {
        let command = device::prepare_evict(3, core::iter::once(frame..frame + 1), Content::Kept);
        device::fault_log(&mut []);
        CAME.store(0, SeqCst);
        // SAFETY: the page comes back as it was, and the vector has a handler.
        unsafe { probe::send(command, interrupt) };
        check.equal(format_args!("interrupts without {}", Name(frame)), CAME.load(SeqCst), 1);
        check.that(format_args!("{} was not missed", Name(frame)), was_missed(frame));
        missed += 1;
        if in_nmi {
            let before = nmi::handled().load(SeqCst);
            // SAFETY: as above.
            interrupts::without_interrupts(|| unsafe { probe::send(command, nmi) });
            let came = nmi::handled().load(SeqCst) - before;
            check.equal(format_args!("NMIs without {}", Name(frame)), came, 1);
            check
                .that(format_args!("{} was not missed by the NMI", Name(frame)), was_missed(frame));
            missed += 1;
            check.that("an NMI comes afterwards", nmi::one_comes(cpu));
        }
    }
    check.number("events", missed);
}

/// The NMI's handler: leaves by an `IRET` of its own, from a stack that is missing by then.
fn leave_by_iret(cpu: &'static Cpu, frame: &mut Frame) {
    CAME.fetch_add(1, SeqCst);
    let stack = STACK.get().cast::<u64>().wrapping_add(511);
    let pops = [
        probe::landing(),
        CS::get_reg().0.into(),
        // Interrupts on.
        0x202,
        stack.addr() as u64,
        SS::get_reg().0.into(),
    ];
    let at = FRAME.get().cast::<u64>().wrapping_add(512 - pops.len());
    // SAFETY: inside pages that nothing else uses.
    unsafe {
        at.cast::<[u64; 5]>().write_volatile(pops);
        stack.write_volatile(MARK);
    }
    cpu.leave_nmi();
    // SAFETY: the frame and the stack are those just written.
    unsafe { probe::iret(COMMAND.load(SeqCst), at.addr() as u64, frame.r15) }
}

fn iret(check: &mut Check<'_>) {
    device::set_policy([], PolicyArgs::fixed(500));
    let cpu = this();
    let pages = [
        FRAME.address() / 4096,
        STACK.address() / 4096,
        probe::landing() / 4096,
        cpu.tables.gdt.address() / 4096,
        layout::PAGE_TABLES.start,
        layout::PAGE_TABLES.start + 2,
    ];
    for frame in pages {
        trap::set_handler(trap::NMI, leave_by_iret);
        COMMAND.store(
            device::prepare_evict(3, core::iter::once(frame..frame + 1), Content::Kept),
            SeqCst,
        );
        device::fault_log(&mut []);
        CAME.store(0, SeqCst);
        // SAFETY: the NMI's handler is the one above.
        let mark = unsafe { probe::through_nmi(cpu.index()) };
        check.equal(format_args!("stack after {}", Name(frame)), mark, MARK);
        check.equal(format_args!("NMIs without {}", Name(frame)), CAME.load(SeqCst), 1);
        check.that(format_args!("{} was not missed", Name(frame)), was_missed(frame));
        trap::set_handler(trap::NMI, nmi::on_nmi);
        for _ in 0..2 {
            check.that(format_args!("no NMI after {}", Name(frame)), nmi::one_comes(cpu));
        }
        check.equal("NMIs that this CPU is in", cpu.nmi_depth().into(), 0);
    }
    check.number("irets", pages.len() as u64);
}
