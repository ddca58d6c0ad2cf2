//! Story two: a task sleeps in the #VE handler, and others fault.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ve_apf_metal::abi::access::{Bitmap, RingAccess};
use ve_apf_metal::abi::ring::{VE_APF_SLOT_MASK, VE_APF_SLOTS};
use ve_apf_testdev::PolicyArgs;

use crate::suite::{Check, Test};
use crate::{arena, device};

/// A second fault, from first to last, while the first one waits.
pub(crate) const SECOND: Test = Test::any("story2", "story2_second", second);
/// All slots in use, and one fault more.
pub(crate) const ALL_SLOTS: Test = Test::any("story2", "story2_all_slots", all_slots);

const ROUND: u64 = 200;
const SLOTS: usize = VE_APF_SLOTS as usize;

static DONE: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Reads page `number`.
fn reader(number: usize) {
    WRONG.fetch_add(arena::wrong_bytes(number, ROUND), Relaxed);
    DONE.fetch_add(1, Relaxed);
}

/// The pages below `never` do not come before they are asked for, the others soon.
fn prepare(never: usize, all: usize) {
    DONE.store(0, Relaxed);
    WRONG.store(0, Relaxed);
    device::set_policy([], PolicyArgs::fixed(2000));
    let policy = PolicyArgs { never: true, ..PolicyArgs::fixed(0) };
    // No frames at all would mean every frame.
    if never > 0 {
        device::set_policy([arena::frames(0..never)], policy);
    }
    device::evict_arena(0..all, ROUND);
}

fn second(check: &mut Check<'_>) {
    prepare(1, 3);
    let counts = check.counted(|check| {
        check.cpu.sched.spawn(reader, 0);
        check.cpu.sched.yield_now();
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, 1);
        // This very task faults and sleeps now; nobody but the idle task runs.
        check.right(arena::wrong_bytes(1, ROUND));
        check.right(arena::wrong_bytes(2, ROUND));
        check.equal("tasks done", DONE.load(Relaxed), 0);
        device::restore_all();
        check.cpu.sched.join();
    });
    check.right(WRONG.load(Relaxed));
    check.equal("faults", counts.get("faults"), 3);
    check.equal("parked", counts.parked_or_early(), 3);
    check.equal("suspended", counts.get("suspended"), 0);
}

fn all_slots(check: &mut Check<'_>) {
    prepare(SLOTS, SLOTS + 1);
    let hardware = check.boot.mode == ve_apf_metal::cpu::Mode::Hardware;
    let counts = check.counted(|check| {
        for number in 0..SLOTS {
            check.cpu.sched.spawn(reader, number);
        }
        // Each faults as soon as it runs; a fault may have to be repeated.
        (0..100).for_each(|_| check.cpu.sched.yield_now());
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, SLOTS as u64);
        let active = check.cpu.ring().bits(Bitmap::Active);
        check.equal("slots in use", active, VE_APF_SLOT_MASK);
        let without = check.counted(|check| {
            check.measure(|check| check.right(arena::wrong_bytes(SLOTS, ROUND)));
        });
        // There is no slot to park in: the vCPU stood still, by the guest's wish or by the host's.
        check.equal("faults without a slot", without.get("no_slot"), hardware.into());
        check.equal("parked without a slot", without.get("parked"), 0);
        check.equal("tasks done", DONE.load(Relaxed), 0);
        check.equal("restored", device::restore_all(), SLOTS as u64);
        check.cpu.sched.join();
    });
    check.right(WRONG.load(Relaxed));
    check.equal("tasks done", DONE.load(Relaxed), SLOTS as u64);
    check.equal("parked", counts.get("parked"), SLOTS as u64);
    // And afterwards it works as before.
    prepare(0, 1);
    let after = check.counted(|check| check.right(arena::wrong_bytes(0, ROUND)));
    check.equal("parked afterwards", after.parked_or_early(), 1);
}
