//! Completions that cannot be told, because the local APIC is off or holds all interrupts back: nothing comes meanwhile,
//! `HLT` halts, and all are told at once as soon as they can be.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use ve_apf_metal::{lapic, trap};
use ve_apf_testdev::{Nmi, PolicyArgs};
use x86_64::instructions::hlt;

use super::nmi;
use crate::suite::{Check, Test};
use crate::{arena, device};

/// Software-disabled (SDM vol. 3, 11.4.7.2): it takes NMIs only.
pub(crate) const OFF: Test =
    Test::any("masked", "masked_lapic_off", |check| held_back(check, |on| lapic::set_enabled(!on)));
/// The task priority is above every vector.
pub(crate) const PRIORITY: Test = Test::any("masked", "masked_priority", |check| {
    held_back(check, |on| lapic::set_priority(if on { 15 } else { 0 }))
});

const TASKS: usize = 16;
const ROUND: u64 = 700;
/// What wakes from `HLT` while completions wait: so many, this many microseconds apart.
const NMIS: u64 = 20;
const PERIOD_US: u64 = 5000;

static WRONG: AtomicU64 = AtomicU64::new(0);

fn read(number: usize) {
    WRONG.fetch_add(arena::wrong_bytes(number, ROUND), SeqCst);
}

fn held_back(check: &mut Check<'_>, mask: fn(bool)) {
    let cpu = check.cpu;
    let interrupts = || cpu.counters.values().get("interrupts");
    WRONG.store(0, SeqCst);
    trap::set_handler(trap::NMI, nmi::on_nmi);
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    device::evict_arena(0..TASKS, ROUND);
    for number in 0..TASKS {
        cpu.sched.spawn(read, number);
    }
    cpu.sched.yield_now();
    check.equal("tasks asleep", cpu.sched.asleep() as u64, TASKS as u64);

    let before = interrupts();
    mask(true);
    check.equal("restored", device::restore_all(), TASKS as u64);
    nmi::handled().store(0, SeqCst);
    let mut halts = 0;
    let exits = check.measure(|_| {
        device::nmi(Nmi::Storm, cpu.index(), PERIOD_US, 0);
        while nmi::handled().load(SeqCst) < NMIS {
            hlt();
            halts += 1;
        }
        device::nmi(Nmi::Stop, cpu.index(), 0, 0);
    });
    check.number("halts", halts);
    check.that(format_args!("{halts} halts, {NMIS} NMIs"), halts <= NMIS + 1);
    check.that(format_args!("{exits} exits, {NMIS} NMIs"), exits <= 20 * NMIS);
    check.equal("tasks still asleep", cpu.sched.asleep() as u64, TASKS as u64);
    check.equal("interrupts while masked", interrupts() - before, 0);

    mask(false);
    cpu.sched.join();
    check.equal("interrupts afterwards", interrupts() - before, 1);
    check.right(WRONG.load(SeqCst));
}
