//! INIT comes to a CPU while faults of its tasks are outstanding: its ring is never written again, though the pages come, and
//! the others go on. Those CPUs stay where they are, so this runs last.
//!
//! Options: `spin` (cycles of the TSC), `poll` (1: slots are handed in, and a host that polls finds them).

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

use ve_apf_metal::abi::access::{Bitmap, RingAccess};
use ve_apf_metal::cpu::{self, Cpu, Mode, this};
use ve_apf_metal::lapic;
use ve_apf_testdev::PolicyArgs;

use crate::suite::{self, Check, Test};
use crate::tests::poll;
use crate::{arena, device, smp};

/// All CPUs but the first.
pub(crate) const INIT: Test = Test::any("init", "init", init);

/// Of each CPU.
const OUTSTANDING: [usize; cpu::CPUS] = [0, 1, 61, 62];
const EACH: usize = 64;
/// This CPU is suspended over one page more when INIT comes.
const SUSPENDED: usize = 2;
const ROUND: u64 = 600;
/// What the rings are filled with once they are nobody's.
const MARK: u64 = 0x5a5a_6d65_7461_6c21;

static HARDWARE: AtomicUsize = AtomicUsize::new(0);
static POLL: AtomicBool = AtomicBool::new(false);
static UNRUNG: AtomicU64 = AtomicU64::new(0);
static PARKED: AtomicU64 = AtomicU64::new(0);

fn park(index: usize) {
    let mode = if HARDWARE.load(Relaxed) != 0 { Mode::Hardware } else { Mode::Injected };
    let outstanding = OUTSTANDING.get(index).copied().unwrap_or(0);
    if index == 0 || suite::switch_on(this(), mode).is_err() {
        return;
    }
    if POLL.load(Relaxed) {
        UNRUNG.fetch_add(poll::hand_in_all(this(), index * EACH, outstanding), SeqCst);
    } else {
        for number in 0..outstanding {
            this().sched.spawn(|page| _ = arena::read(page, 0), index * EACH + number);
        }
        (0..100).for_each(|_| this().sched.yield_now());
    }
    PARKED.fetch_add(this().ring().bits(Bitmap::Active).count_ones().into(), SeqCst);
    if index == SUSPENDED {
        // One fault more, where this CPU may not sleep.
        this().preempt_off.fetch_add(1, SeqCst);
        arena::read(index * EACH + outstanding, 0);
    }
}

fn words(cpu: &Cpu) -> impl Iterator<Item = *mut u64> + use<> {
    let at = cpu.ring.address() as usize;
    (0..512).map(move |word| core::ptr::with_exposed_provenance_mut(at + word * 8))
}

/// Fills the ring of a CPU that does not run any more.
pub(super) fn mark(cpu: &Cpu) {
    cpu.ring.get().expose_provenance();
    // SAFETY: nobody uses it; that the host does not is what is tested.
    words(cpu).for_each(|word| unsafe { word.write_volatile(MARK) });
}

/// Words of the ring that were written since.
pub(super) fn changed(cpu: &Cpu) -> u64 {
    // SAFETY: as above.
    words(cpu).filter(|word| unsafe { word.read_volatile() } != MARK).count() as u64
}

fn init(check: &mut Check<'_>) {
    let cpus = check.boot.cpus;
    HARDWARE.store((check.boot.mode == Mode::Hardware).into(), Relaxed);
    POLL.store(poll::asked_for(&check.boot.options), Relaxed);
    let missing = |index: usize| {
        let parked = OUTSTANDING.get(index).copied().unwrap_or(0);
        index * EACH..index * EACH + parked + usize::from(index == SUSPENDED)
    };
    let parked: usize = OUTSTANDING.iter().take(cpus).sum();
    let wanted: usize = (1..cpus).map(|index| missing(index).len()).sum();
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    let pages = (1..cpus).map(|index| arena::frames(missing(index)));
    device::evict(pages, device::Content::Pattern(ROUND));
    smp::begin(cpus, park);
    let suspended = cpu::all().get(SUSPENDED).filter(|_| cpus > SUSPENDED);
    let suspends = || suspended.is_none_or(|cpu| cpu.counters.values().get("suspended") == 1);
    check.boot.until(60, || PARKED.load(SeqCst) >= parked as u64 && suspends());
    check.boot.spin(1);
    check.equal("slots in use", PARKED.load(SeqCst), parked as u64);
    check.that("a CPU is not suspended", suspends());

    (1..cpus).for_each(|index| lapic::send(lapic::init_command(index)));
    check.boot.spin(1);
    for cpu in cpu::all().iter().take(cpus).skip(1) {
        mark(cpu);
    }
    check.equal("pages restored", device::restore_all(), wanted as u64);
    check.boot.spin(1);
    let changed = cpu::all().iter().take(cpus).skip(1).map(changed).sum();
    check.equal("words written to rings after INIT", changed, 0);
    let wrong = (1..cpus).flat_map(missing);
    check.right(wrong.map(|page| arena::wrong_bytes(page, ROUND)).sum());
    check.number("cpus", cpus as u64);
    check.number("outstanding", wanted as u64);
    check.number("unrung", UNRUNG.load(SeqCst));
    // This CPU is as it was.
    device::set_policy([], PolicyArgs::fixed(2000));
    device::evict_arena(0..4, ROUND + 1);
    let counts = check.counted(|check| {
        check.right((0..4).map(|page| arena::wrong_bytes(page, ROUND + 1)).sum());
    });
    check.equal("parked afterwards", counts.parked_or_early(), 4);
}
