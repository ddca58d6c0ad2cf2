//! A CPU reads a missing page with its interrupts off, so it cannot be told: it stands still until the page comes. NMIs reach it
//! meanwhile, interrupts wait; and INIT ends it. That CPU stays where it is then, so this runs last.
//!
//! Options: `spin` (cycles of the TSC).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use ve_apf_metal::cpu::{self, Mode, this};
use ve_apf_metal::{lapic, sys, trap};
use ve_apf_testdev::PolicyArgs;
use x86_64::instructions::interrupts;

use super::{init, nmi};
use crate::suite::{self, Check, Test};
use crate::{arena, device, smp};

/// The second CPU stands.
pub(crate) const STOPPED: Test = Test::any("stopped", "stopped", stopped);

const CPU: usize = 1;
const PAGE: usize = 1600;
const ROUND: u64 = 700;
const NMIS: u64 = 5;
/// Times `spin` that what should not happen gets, and after which what should happen never will.
const WAIT: u64 = 10;
const NEVER: u64 = 100;

static DONE: AtomicBool = AtomicBool::new(false);
static WRONG: AtomicU64 = AtomicU64::new(0);
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

fn stand(_: usize) {
    if suite::switch_on(this(), Mode::Injected).is_err() {
        return;
    }
    interrupts::without_interrupts(|| WRONG.fetch_add(arena::wrong_bytes(PAGE, ROUND), SeqCst));
    DONE.store(true, SeqCst);
}

/// The CPU stands over the page.
fn begin(check: &mut Check<'_>) {
    device::evict_arena(PAGE..PAGE + 1, ROUND);
    let mut log = [0; 64];
    device::fault_log(&mut log);
    DONE.store(false, SeqCst);
    smp::begin(CPU + 1, stand);
    let asked = check.boot.until(NEVER, || {
        let count = device::fault_log(&mut log);
        log.iter().take(count).any(|frame| *frame == arena::frame(PAGE))
    });
    check.that("nobody asks for the page", asked);
}

fn stopped(check: &mut Check<'_>) {
    trap::set_handler(trap::NMI, nmi::on_nmi);
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    begin(check);
    trap::set_handler(trap::KERNEL, |cpu, _| {
        INTERRUPTS.fetch_add(u64::from(cpu.index() == CPU), SeqCst);
        lapic::end_of_interrupt(cpu);
    });
    lapic::send(lapic::interrupt_command(CPU, trap::KERNEL));
    let before = nmi::handled().load(SeqCst);
    for number in 1..=NMIS {
        lapic::send(lapic::nmi_command(CPU));
        check.boot.until(NEVER, || nmi::handled().load(SeqCst) == before + number);
    }
    check.equal("NMIs while it stands", nmi::handled().load(SeqCst) - before, NMIS);
    check.equal("interrupts while it stands", INTERRUPTS.load(SeqCst), 0);
    check.that("it went on without its page", !DONE.load(SeqCst));
    check.equal("pages restored", device::restore_all(), 1);
    let done = check.boot.until(NEVER, || DONE.load(SeqCst) && INTERRUPTS.load(SeqCst) == 1);
    check.that("it does not go on, or the interrupt is lost", done);
    check.right(WRONG.load(SeqCst));

    begin(check);
    lapic::send(lapic::init_command(CPU));
    check.boot.spin(WAIT);
    if let Some(cpu) = cpu::all().get(CPU) {
        init::mark(cpu);
        check.equal("pages restored", device::restore_all(), 1);
        check.boot.spin(WAIT);
        check.equal("words written to its ring after INIT", init::changed(cpu), 0);
    }
    check.that("it goes on after INIT", !DONE.load(SeqCst));
    check.number("nmis", NMIS);
}
