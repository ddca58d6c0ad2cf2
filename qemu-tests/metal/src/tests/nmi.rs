//! NMIs, everywhere in the handler.
//!
//! Options: `period` (us between NMIs of a storm), `pages` (of a storm), `each` (one fault in an NMI per so many).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use ve_apf_metal::cpu::Cpu;
use ve_apf_metal::sched::Scheduler;
use ve_apf_metal::tables::Page;
use ve_apf_metal::trap::{self, Frame};
use ve_apf_metal::{lapic, sys};
use ve_apf_testdev::{Nmi, PolicyArgs};
use x86_64::registers::rflags::RFlags;

use crate::device::{self, Content};
use crate::suite::{Check, Test};
use crate::{arena, probe};

/// NMIs as they come, while tasks fault.
pub(crate) const STORM: Test =
    Test::any("nmi", "nmi_storm", |check| storm(check, Nmi::Storm, false));
/// Each only after the one before was handled: none may be lost.
pub(crate) const PACED: Test =
    Test::any("nmi", "nmi_paced", |check| storm(check, Nmi::Paced, false));
/// The same, and the NMI's handler reads a missing page.
pub(crate) const FAULTS: Test =
    Test::any("nmi", "nmi_faults", |check| storm(check, Nmi::Paced, true));
/// One at the very instruction that faults, before it or after.
pub(crate) const AT_FAULT: Test = Test::any("nmi", "nmi_at_fault", at_fault);
/// One before each instruction of the handler, from its entry until the task sleeps.
pub(crate) const STEP: Test = Test::any("nmi", "nmi_step", |check| step(check, false));
/// The same, and each NMI's handler reads a missing page.
pub(crate) const STEP_FAULTS: Test = Test::any("nmi", "nmi_step_faults", |check| step(check, true));

/// NMIs handled; the VMM reads it.
#[unsafe(link_section = ".keep")]
static HANDLED: Page<u64> = Page::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
/// A prepared command that takes [`PAGE`] away, for the handler of an NMI; 0: it does not fault.
static COMMAND: AtomicU64 = AtomicU64::new(0);
/// One in so many NMIs faults.
static EACH: AtomicU64 = AtomicU64::new(1);
/// An NMI is at it.
static FAULTING: AtomicBool = AtomicBool::new(false);
static FAULTED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);
static DEEPEST: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);

const PAGE: usize = 1500;
const ROUND: u64 = 300;

pub(super) fn handled() -> &'static AtomicU64 {
    // SAFETY: the word is aligned, and is accessed atomically only; the VMM just reads it.
    unsafe { AtomicU64::from_ptr(HANDLED.get()) }
}

/// Counts; and faults, if it is asked to and is not nested in one that does. It counts last: a paced storm then leaves the
/// interrupted code time for an instruction between two NMIs.
pub(super) fn on_nmi(cpu: &'static Cpu, _: &mut Frame) {
    let number = STARTED.fetch_add(1, SeqCst);
    DEEPEST.fetch_max(cpu.nmi_depth().into(), Relaxed);
    let command = COMMAND.load(Relaxed);
    let due = command != 0 && number.is_multiple_of(EACH.load(Relaxed));
    if due && !FAULTING.swap(true, SeqCst) {
        let word = (number % 512) as usize;
        device::run_prepared(command);
        let wrong = arena::read(PAGE, word) != arena::expected(PAGE, ROUND, word);
        WRONG.fetch_add(wrong.into(), Relaxed);
        FAULTED.fetch_add(1, Relaxed);
        FAULTING.store(false, SeqCst);
    }
    handled().fetch_add(1, SeqCst);
}

/// Sends this CPU an NMI; true if it came.
pub(super) fn one_comes(cpu: &Cpu) -> bool {
    let before = handled().load(SeqCst);
    lapic::send(lapic::nmi_command(cpu.index()));
    handled().load(SeqCst) == before + 1
}

fn prepare(check: &Check<'_>, faults: bool, each: u64) {
    trap::set_handler(trap::NMI, on_nmi);
    device::set_policy([], PolicyArgs::fixed(check.boot.options.number("latency", 500)));
    device::set_policy([arena::frames(PAGE..PAGE + 1)], PolicyArgs::fixed(0));
    handled().store(0, SeqCst);
    [&FAULTED, &WRONG, &DEEPEST, &STEPS].iter().for_each(|one| one.store(0, SeqCst));
    EACH.store(each, SeqCst);
    let command = [arena::frames(PAGE..PAGE + 1)];
    let command = device::prepare_evict(1, command, Content::Pattern(ROUND));
    COMMAND.store(if faults { command } else { 0 }, SeqCst);
}

fn conclude(check: &mut Check<'_>) {
    COMMAND.store(0, SeqCst);
    check.number("nmis_handled", handled().load(SeqCst));
    check.number("nmis_that_faulted", FAULTED.load(SeqCst));
    check.number("nmi_depth", DEEPEST.load(SeqCst));
    check.right(8 * WRONG.load(SeqCst));
    check.equal("NMIs that this CPU is in", check.cpu.nmi_depth().into(), 0);
    check.that("an NMI comes afterwards", one_comes(check.cpu));
}

fn storm(check: &mut Check<'_>, kind: Nmi, faults: bool) {
    prepare(check, faults, check.boot.options.number("each", 3));
    let pages = check.boot.options.number("pages", 512);
    device::evict_arena(0..pages, ROUND);
    let period = check.boot.options.number("period", 50);
    let mut sent = 0;
    let counts = check.counted(|check| {
        check.measure(|check| {
            device::nmi(kind, 0, period, HANDLED.address());
            for number in 0..8 {
                check.cpu.sched.spawn(
                    |number| {
                        let each = (PAGE - 1) / 8;
                        let pages =
                            (number * each..(number + 1) * each).filter(|page| *page % 8 == 0);
                        // Pages beyond `pages` are there: NMIs hit code that does not fault, too.
                        pages.for_each(|page| {
                            let _ = arena::read(page, 0);
                        });
                    },
                    number,
                );
            }
            check.cpu.sched.join();
            // And in the order in which they lie.
            let wrong = (0..pages).map(|page| arena::wrong_bytes(page, ROUND)).sum();
            check.right(wrong);
            sent = device::nmi(Nmi::Stop, 0, 0, 0);
        });
    });
    check.number("nmis_sent", sent);
    check.number("nested", counts.get("suspended_nested"));
    check.that("few NMIs came", handled().load(SeqCst) > 20);
    match kind {
        // One that comes while another one waits is the same one.
        Nmi::Storm => check.that("more NMIs came than were sent", handled().load(SeqCst) <= sent),
        _ => check.equal("NMIs handled", handled().load(SeqCst), sent),
    }
    conclude(check);
}

fn at_fault(check: &mut Check<'_>) {
    const TIMES: u64 = 32;
    prepare(check, true, 1);
    let counts = check.counted(|check| {
        for _ in 0..TIMES {
            // Anew, since the answer takes the place of the arguments.
            let command = device::prepare_nmi(2, check.cpu.index());
            device::evict_arena(0..1, ROUND);
            // SAFETY: the arena is mapped, and NMIs have a handler.
            let value = unsafe { probe::load(command, arena::address(0)) };
            check.right(8 * u64::from(value != arena::expected(0, ROUND, 0)));
        }
    });
    check.equal("NMIs handled", handled().load(SeqCst), TIMES);
    check.equal("NMIs that faulted", FAULTED.load(SeqCst), TIMES);
    check.that("the task did not sleep", counts.parked_or_early() >= TIMES);
    conclude(check);
}

/// Between two instructions of the #VE handler.
fn on_step(cpu: &'static Cpu, frame: &mut Frame) {
    let sleeps = frame.cpu.instruction_pointer.as_u64() == Scheduler::switch_address();
    if sleeps || cpu.nmi_depth() > 0 {
        // The task is parked; or this is the handler of a fault of the NMI itself.
        frame.cpu.cpu_flags.remove(RFlags::TRAP_FLAG);
    } else {
        STEPS.fetch_add(1, Relaxed);
        lapic::send(lapic::nmi_command(cpu.index()));
    }
}

fn step(check: &mut Check<'_>, faults: bool) {
    prepare(check, faults, 1);
    trap::set_handler(trap::DEBUG, on_step);
    // It comes when its task sleeps, and another one runs: not before.
    let never = PolicyArgs { never: true, ..PolicyArgs::fixed(0) };
    device::set_policy([arena::frames(0..1)], never);
    device::evict_arena(0..2, ROUND);
    let restore = |_| {
        device::restore_all();
    };
    check.cpu.sched.spawn(restore, 0);
    let started = sys::tsc();
    let counts = check.counted(|check| {
        // One that parks, and one that may not sleep.
        probe::stepped(check.cpu, || {
            let _ = arena::read(0, 0);
            x86_64::instructions::interrupts::without_interrupts(|| arena::read(1, 0));
        });
        check.right(arena::wrong_bytes(0, ROUND) + arena::wrong_bytes(1, ROUND));
    });
    check.number("step_tsc", sys::tsc() - started);
    check.number("steps", STEPS.load(SeqCst));
    check.number("nested", counts.get("suspended_nested"));
    check.equal("NMIs handled", handled().load(SeqCst), STEPS.load(SeqCst));
    check.that("few instructions were stepped", STEPS.load(SeqCst) > 100);
    if faults {
        check.equal("NMIs that faulted", FAULTED.load(SeqCst), STEPS.load(SeqCst));
    }
    check.cpu.sched.join();
    check.equal("parked", counts.parked_or_early(), 1);
    conclude(check);
}
