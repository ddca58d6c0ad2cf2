//! Completions wait while this CPU takes no interrupts: by its task priority, by RFLAGS.IF, or with its LAPIC switched off.
//! Meanwhile there is no storm of exits, HLT halts, and nobody wakes; once interrupts may come, all do.
//!
//! Options: `spin` (cycles of the TSC).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use ve_apf_metal::{lapic, sys, trap};
use ve_apf_testdev::{Nmi, PolicyArgs};
use x86_64::instructions::{hlt, interrupts};

use super::nmi;
use crate::suite::{Check, Test};
use crate::{arena, device};

/// The task priority is that of the highest class.
pub(crate) const PRIORITY: Test = Test::any("held", "held_priority", |check| {
    run(check, || lapic::hold_back(15), || lapic::hold_back(0));
});
/// Interrupts are off.
pub(crate) const FLAG: Test =
    Test::any("held", "held_flag", |check| run(check, interrupts::disable, interrupts::enable));
/// The LAPIC is switched off by software.
pub(crate) const LAPIC: Test = Test::any("held", "held_lapic", |check| {
    run(check, || lapic::set_enabled(false), || lapic::set_enabled(true));
});

const ROUND: u64 = 500;
/// NMIs that end a halt.
const NMIS: u64 = 5;
const PERIOD_US: u64 = 20_000;

static DONE: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn reader(page: usize) {
    WRONG.fetch_add(arena::wrong_bytes(page, ROUND), Relaxed);
    DONE.fetch_add(1, Relaxed);
}

fn run(check: &mut Check<'_>, mask: fn(), unmask: fn()) {
    trap::set_handler(trap::NMI, nmi::on_nmi);
    let (mut worst_spin, mut worst_halt, mut ended_by_completions) = (0, 0, 0);
    for outstanding in [0, 1, 61, 62] {
        park(check, outstanding);
        mask();
        check.equal("pages restored", device::restore_all(), outstanding as u64);
        let counts = check.counted(|check| {
            // A completion may end one halt, as may anything; and then it waits without a sound.
            ended_by_completions = ended_by_completions.max(halts(check, outstanding).0 - NMIS);
            worst_spin = worst_spin.max(exits_of(|check| check.boot.spin(1), check));
            worst_halt = worst_halt.max(halts(check, 0).1);
        });
        check.equal("interrupts while masked", counts.get("interrupts"), 0);
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, outstanding as u64);
        let came = check.counted(|check| {
            unmask();
            check.cpu.sched.join();
        });
        check.equal("tasks done", DONE.load(Relaxed), outstanding as u64);
        check.right(WRONG.load(Relaxed));
        // One interrupt while it was masked, however many completions; in the LAPIC, one vector waits once.
        check.that(
            format_args!("{} interrupts", came.get("interrupts")),
            outstanding == 0 || (1..=2).contains(&came.get("interrupts")),
        );
    }
    check.number("exits_while_spinning", worst_spin);
    check.number("exits_while_halted", worst_halt);
    check.number("halts_ended_early", ended_by_completions);
    check.number("nmis", NMIS);
}

fn park(check: &mut Check<'_>, outstanding: usize) {
    DONE.store(0, Relaxed);
    WRONG.store(0, Relaxed);
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    if outstanding > 0 {
        device::evict_arena(0..outstanding, ROUND);
    }
    for page in 0..outstanding {
        check.cpu.sched.spawn(reader, page);
    }
    (0..100).for_each(|_| check.cpu.sched.yield_now());
    check.equal("tasks asleep", check.cpu.sched.asleep() as u64, outstanding as u64);
}

fn exits_of(work: fn(&Check<'_>), check: &Check<'_>) -> u64 {
    device::stats_begin("held");
    work(check);
    device::stats_end("held")
}

/// Halts until some NMIs came, each of which ends one; returns halts, and exits. More halts than that, and those that the
/// completions of `outstanding` faults may end, are halts that spin.
fn halts(check: &mut Check<'_>, outstanding: usize) -> (u64, u64) {
    let began = nmi::handled().load(SeqCst);
    let mut halts = 0;
    device::stats_begin("held");
    device::nmi(Nmi::Storm, check.cpu.index(), PERIOD_US, 0);
    while nmi::handled().load(SeqCst) < began + NMIS {
        hlt();
        halts += 1;
    }
    device::nmi(Nmi::Stop, check.cpu.index(), PERIOD_US, 0);
    let exits = device::stats_end("held");
    check.that(
        format_args!("{halts} halts for {NMIS} NMIs, {outstanding} outstanding"),
        halts <= 2 * NMIS + outstanding as u64,
    );
    (halts.max(NMIS), exits)
}
