//! Tasks that touch missing pages, sleep, and run again.
//!
//! Options: `latency` (us), `pages` (of each task).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use ve_apf_metal::cpu::{CPUS, this};
use ve_apf_testdev::{Order, PolicyArgs};

use crate::suite::{Check, Test};
use crate::{arena, device, smp, suite};

/// One task, one page at a time.
pub(crate) const ONE: Test = Test::any("park", "park_one", one);
/// Sixteen tasks, whose pages come together.
pub(crate) const BURST: Test = Test::any("park", "park_burst", burst);
/// Many tasks, one page.
pub(crate) const SAME_PAGE: Test = Test::any("park", "park_same_page", same_page);
/// Sixty tasks, pages in any order.
pub(crate) const RANDOM: Test = Test::any("park", "park_random", random);
/// The same on every CPU at once.
pub(crate) const EVERY_CPU: Test = Test::any("park", "park_every_cpu", every_cpu);

/// Pages of each task; set before tasks are spawned.
static EACH: AtomicUsize = AtomicUsize::new(0);
/// The round whose pattern they read.
static ROUND: AtomicU64 = AtomicU64::new(0);
/// What they found.
static WRONG: AtomicU64 = AtomicU64::new(0);

/// Reads pages `EACH * number` and on.
fn walk(number: usize) {
    let each = EACH.load(Relaxed);
    for page in number * each..(number + 1) * each {
        WRONG.fetch_add(arena::wrong_bytes(page, ROUND.load(Relaxed)), Relaxed);
    }
}

/// Has `tasks` tasks of this CPU walk, from task number `first` on, and waits for them.
fn run_tasks(first: usize, tasks: usize) {
    for number in first..first + tasks {
        if this().sched.spawn(walk, number).is_none() {
            panic!("too many tasks");
        }
    }
    this().sched.join();
}

/// `tasks` tasks with `each` pages; `policy` says how those come. Returns faults, and VM exits.
fn walk_all(check: &mut Check<'_>, tasks: usize, each: usize, policy: PolicyArgs) -> (u64, u64) {
    let round = ROUND.fetch_add(1, Relaxed) + 1;
    EACH.store(each, Relaxed);
    WRONG.store(0, Relaxed);
    device::set_policy([], policy);
    device::evict_arena(0..tasks * each, round);
    let mut exits = 0;
    let counts = check.counted(|check| exits = check.measure(|_| run_tasks(0, tasks)));
    check.right(WRONG.load(Relaxed));
    let faults = counts.get("faults");
    check.number("tasks", tasks as u64);
    check.number("faults", faults);
    check.number("parked", counts.get("parked"));
    check.ratio("exits_per_fault", exits, faults);
    check.equal("spurious #VE", counts.get("spurious"), 0);
    check.equal("parked, or just not", counts.parked_or_early(), faults);
    (faults, exits)
}

fn latency(check: &Check<'_>) -> u32 {
    check.boot.options.number("latency", 5000)
}

fn one(check: &mut Check<'_>) {
    let pages = check.boot.options.number("pages", 64);
    let policy = PolicyArgs::fixed(latency(check));
    let (faults, _) = walk_all(check, 1, pages, policy);
    check.equal("faults", faults, pages as u64);
}

fn burst(check: &mut Check<'_>) {
    let each = check.boot.options.number("pages", 64) / 4;
    let policy = PolicyArgs { burst: 16, hold_us: 100_000, ..PolicyArgs::fixed(latency(check)) };
    let (faults, _) = walk_all(check, 16, each, policy);
    check.equal("faults", faults, 16 * each as u64);
}

fn same_page(check: &mut Check<'_>) {
    const TASKS: usize = 32;
    let round = ROUND.fetch_add(1, Relaxed) + 1;
    WRONG.store(0, Relaxed);
    // It comes when all of them wait.
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    device::evict_arena(0..1, round);
    let read = |_| {
        WRONG.fetch_add(arena::wrong_bytes(0, ROUND.load(Relaxed)), Relaxed);
    };
    let counts = check.counted(|check| {
        for number in 0..TASKS {
            check.cpu.sched.spawn(read, number);
        }
        check.cpu.sched.yield_now();
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, TASKS as u64);
        check.equal("restored", device::restore_all(), 1);
        check.cpu.sched.join();
    });
    check.right(WRONG.load(Relaxed));
    check.equal("faults", counts.get("faults"), TASKS as u64);
    check.equal("parked", counts.get("parked"), TASKS as u64);
}

fn random(check: &mut Check<'_>) {
    let policy = PolicyArgs {
        min_us: 100,
        max_us: latency(check).max(101),
        order: Order::Random,
        ..PolicyArgs::fixed(0)
    };
    let (faults, _) = walk_all(check, 60, 16, policy);
    check.that("faults", faults >= 60 * 16);
}

fn every_cpu(check: &mut Check<'_>) {
    const TASKS: usize = 8;
    let cpus = check.boot.cpus;
    let round = ROUND.fetch_add(1, Relaxed) + 1;
    EACH.store(16, Relaxed);
    WRONG.store(0, Relaxed);
    device::set_policy([], PolicyArgs::fixed(latency(check)));
    device::evict_arena(0..cpus * TASKS * 16, round);
    static MODE_FAILED: AtomicU64 = AtomicU64::new(0);
    static HARDWARE: AtomicU64 = AtomicU64::new(0);
    HARDWARE.store(u64::from(check.boot.mode == ve_apf_metal::cpu::Mode::Hardware), Relaxed);
    let before = ve_apf_metal::cpu::all().each_ref().map(|cpu| cpu.counters.values());
    smp::on_all(cpus, |index| {
        use ve_apf_metal::cpu::Mode;
        let mode = if HARDWARE.load(Relaxed) != 0 { Mode::Hardware } else { Mode::Injected };
        if index != 0 && suite::switch_on(this(), mode).is_err() {
            MODE_FAILED.fetch_add(1, Relaxed);
        }
        run_tasks(index * TASKS, TASKS);
        if index != 0 {
            this().disable();
        }
    });
    check.equal("CPUs that refused", MODE_FAILED.load(Relaxed), 0);
    check.right(WRONG.load(Relaxed));
    let mut faults = 0;
    for (cpu, before) in ve_apf_metal::cpu::all().iter().zip(before).take(cpus) {
        let counts = cpu.counters.values().since(before);
        faults += counts.get("faults");
        check.equal("parked, or just not", counts.parked_or_early(), counts.get("faults"));
        check.equal("rescued", counts.get("rescued"), 0);
    }
    check.number("cpus", cpus.min(CPUS) as u64);
    check.number("faults", faults);
    check.that("faults", faults >= (cpus * TASKS * 16) as u64);
}
