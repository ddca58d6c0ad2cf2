//! Pages that can never come: the host's memory behind them is gone, and whoever waits for one is told.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use ve_apf_metal::sys;
use ve_apf_testdev::PolicyArgs;
use x86_64::instructions::interrupts;

use crate::suite::{Check, Test};
use crate::{arena, device};

/// Sixteen tasks sleep when it goes.
pub(crate) const WHILE_WAITING: Test = Test::any("fail", "fail_while_waiting", while_waiting);
/// It is gone already: the host says so at once. (A host that injects must give up the VM.)
pub(crate) const AT_ONCE: Test = Test::hardware("fail", "fail_at_once", at_once);

/// One instruction meets one page missing again and again, and each time the VM's deadline is over first.
pub(crate) const AGAIN: Test = Test::any("deadline", "deadline_again", again);

const ROUND: u64 = 600;
const TASKS: usize = 16;
const ROUNDS: u64 = 6;
const LATE: usize = 40;

static REFUSED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Reads a word of page `number`, which may never come.
fn try_read(number: usize) {
    // SAFETY: a word of the arena, which is mapped.
    match unsafe { sys::load(core::ptr::with_exposed_provenance(arena::address(number) as usize)) }
    {
        Err(sys::Refused) => REFUSED.fetch_add(1, SeqCst),
        Ok(word) => WRONG.fetch_add(u64::from(word != arena::expected(number, ROUND, 0)), SeqCst),
    };
}

fn while_waiting(check: &mut Check<'_>) {
    [&REFUSED, &WRONG].iter().for_each(|one| one.store(0, SeqCst));
    let never = PolicyArgs { never: true, ..PolicyArgs::fixed(0) };
    device::set_policy([arena::frames(0..2 * TASKS)], never);
    device::evict_arena(0..2 * TASKS, ROUND);
    let counts = check.counted(|check| {
        for number in 0..2 * TASKS {
            check.cpu.sched.spawn(try_read, number);
        }
        (0..100).for_each(|_| check.cpu.sched.yield_now());
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, 2 * TASKS as u64);
        // The host looks for all of them again, and half of them are gone.
        device::lose([arena::frames(0..TASKS)], true);
        check.equal("restored", device::restore_all(), 2 * TASKS as u64);
        check.cpu.sched.join();
    });
    device::lose([arena::frames(0..TASKS)], false);
    check.right(8 * WRONG.load(SeqCst));
    check.equal("reads that were refused", REFUSED.load(SeqCst), TASKS as u64);
    check.equal("failures", counts.get("failed"), TASKS as u64);
    check.that("tasks did not park", counts.get("parked") >= 2 * TASKS as u64);
}

fn at_once(check: &mut Check<'_>) {
    [&REFUSED, &WRONG].iter().for_each(|one| one.store(0, SeqCst));
    device::lose([arena::frames(0..2)], true);
    let counts = check.counted(|_| {
        try_read(0);
        // Where a task may not sleep, too.
        interrupts::without_interrupts(|| try_read(1));
    });
    device::lose([arena::frames(0..2)], false);
    check.equal("reads that were refused", REFUSED.load(SeqCst), 2);
    check.equal("failures", counts.get("failed"), 2);
    device::evict_arena(0..2, ROUND);
    check.right(arena::wrong_bytes(0, ROUND) + arena::wrong_bytes(1, ROUND));
}

fn again(check: &mut Check<'_>) {
    [&REFUSED, &WRONG].iter().for_each(|one| one.store(0, SeqCst));
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    let mut wrong = 0;
    let counts = check.counted(|check| {
        for round in ROUND..ROUND + ROUNDS {
            device::evict_arena(LATE..LATE + 1, round);
            check.cpu.sched.spawn(try_read, LATE);
            check.cpu.sched.join();
            check.equal("restored", device::restore_all(), 1);
            wrong += arena::wrong_bytes(LATE, round);
        }
    });
    check.right(wrong);
    check.equal("reads that were refused", REFUSED.load(SeqCst), ROUNDS);
    check.equal("failures", counts.get("failed"), ROUNDS);
    check.equal("tasks parked", counts.get("parked"), ROUNDS);
}
