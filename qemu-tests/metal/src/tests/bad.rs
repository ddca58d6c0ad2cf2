//! Bad input: refused as the ABI says, and what was in force stays in force.
//!
//! Options: `ranges` (declarations in a row).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use ve_apf_metal::abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_metal::abi::hypercall::{
    VE_APF_E2BIG, VE_APF_EINVAL, VE_APF_ENOSYS, VE_APF_FAIL, VE_APF_HYPERCALL, VE_APF_OP_RANGE,
    VE_APF_OP_STATUS, VE_APF_OP_SUBMIT, VE_APF_OP_SUSPEND, VE_APF_QUEUED, VE_APF_RANGE_WITHDRAW,
    VE_APF_RESOLVED, VE_APF_UNKNOWN,
};
use ve_apf_metal::abi::msr::{
    Caps, VE_APF_MSR_CAPS, VE_APF_MSR_EN, VE_APF_MSR_VEINFO, VE_APF_VEINFO_ENABLE as ON,
};
use ve_apf_metal::abi::ring::SlotIndex;
use ve_apf_metal::abi::word::{SlotWord, State};
use ve_apf_metal::cpu::{self, Cpu, Mode};
use ve_apf_metal::sched::Scheduler;
use ve_apf_metal::sys::{hypercall, raise, raw_hypercall, tsc, write_msr};
use ve_apf_metal::trap::{self, Frame};
use ve_apf_testdev::PolicyArgs;
use x86_64::registers::rflags::RFlags;

use crate::suite::{self, Check, Test};
use crate::{arena, device, probe, smp};

/// Values of VEINFO, CAPS and EN.
pub(crate) const MSRS: Test = Test::any("bad", "bad_msrs", msrs);
/// VEINFO while faults are outstanding, and while the ring is off.
pub(crate) const MOVED: Test = Test::hardware("bad", "bad_info_moved", moved);
/// Operations, slots, addresses and flags.
pub(crate) const CALLS: Test = Test::any("bad", "bad_calls", calls);
/// Ranges: overlapping, one page each, very many.
pub(crate) const RANGES: Test = Test::hardware("bad", "bad_ranges", ranges);
/// A VE info area that the CPU did not write.
pub(crate) const GARBAGE: Test = Test::hardware("bad", "bad_info", garbage);
/// The same, while the handler is at work: after so many instructions of it, for all of them (`stride`: each 7th).
pub(crate) const GARBAGE_STEP: Test = Test::hardware("bad", "bad_info_step", garbage_step);
/// The same, by another CPU, at any time.
pub(crate) const GARBAGE_STORM: Test = Test::hardware("bad", "bad_info_storm", garbage_storm);

const ROUND: u64 = 500;
const EINVAL: i64 = -VE_APF_EINVAL;
const ENOSYS: i64 = -VE_APF_ENOSYS;
const PAGE_BYTES: u64 = 4096;

/// A fault, as in [`super::park`]; how it was delivered is not this test's concern, unless `delivered` says so.
fn still_works(check: &mut Check<'_>, what: &str, delivered: bool) {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let round = ROUND + TURN.fetch_add(1, SeqCst);
    device::evict_arena(9..10, round);
    let counts = check.counted(|check| check.right(arena::wrong_bytes(9, round)));
    check.equal(format_args!("faults after {what}"), counts.get("faults"), 1);
    if delivered && check.boot.mode == Mode::Hardware {
        check.equal(format_args!("#VE after {what}"), counts.get("delivered"), 1);
    }
}

fn msrs(check: &mut Check<'_>) {
    let hardware = check.boot.mode == Mode::Hardware;
    // A host that could, and a guest that does not: for another day.
    let could = !hardware && cpu::caps().is_some_and(|caps| caps.contains(Caps::HARDWARE));
    let (info, ring) = (check.cpu.info[0].address(), check.cpu.ring.address());
    let ring_is_on = ring | 0x11b;
    // MSR, value, and whether it is refused on a host with hardware mode. One without refuses all of VEINFO.
    let table = [
        (VE_APF_MSR_VEINFO, info | ON | 2, true),
        (VE_APF_MSR_VEINFO, info | ON | 0x800, true),
        (VE_APF_MSR_VEINFO, info | 0x10, true),
        (VE_APF_MSR_VEINFO, info, true),
        (VE_APF_MSR_VEINFO, ring | ON, true),
        (VE_APF_MSR_VEINFO, 0xfee0_0000 | ON, true),
        (VE_APF_MSR_VEINFO, 1 << 45 | ON, true),
        (VE_APF_MSR_VEINFO, !0xfff | ON, true),
        (VE_APF_MSR_VEINFO, info | ON, false),
        (VE_APF_MSR_VEINFO, info | ON, false),
        (VE_APF_MSR_CAPS, 3, true),
        (VE_APF_MSR_EN, ring_is_on | 4, true),
        (VE_APF_MSR_EN, ring_is_on | 1 << 9, true),
        (VE_APF_MSR_EN, 0xfee0_011b, true),
    ];
    for (msr, value, refused) in table {
        if could && msr == VE_APF_MSR_VEINFO {
            continue;
        }
        let refused = refused || msr == VE_APF_MSR_VEINFO && !hardware;
        // SAFETY: a refused write changes nothing, and the others are what is in force.
        let result = unsafe { write_msr(msr, value) };
        let is = result.is_err();
        check.that(format_args!("MSR {msr:#x} = {value:#x}: refused {is}"), is == refused);
        if !is && refused {
            // The rest is to be about the rest.
            let _ = suite::switch_on(check.cpu, check.boot.mode);
        }
        still_works(check, "a bad MSR", true);
    }
}

fn moved(check: &mut Check<'_>) {
    let info = check.cpu.info[0].address() | ON;
    let never = PolicyArgs { never: true, ..PolicyArgs::fixed(0) };
    device::set_policy([arena::frames(0..3)], never);
    device::evict_arena(0..3, ROUND);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    WRONG.store(0, SeqCst);
    for page in 0..3 {
        // Each task faults with the area at one place, and it moves while that task sleeps.
        let body = |page| {
            WRONG.fetch_add(arena::wrong_bytes(page, ROUND), SeqCst);
        };
        check.cpu.sched.spawn(body, page);
        check.cpu.sched.yield_now();
        let moved = check.cpu.set_info(1 - page % 2).is_ok();
        check.that("VEINFO could not be moved", moved);
        still_works(check, "VEINFO was moved", true);
    }
    check.equal("tasks asleep", check.cpu.sched.asleep() as u64, 3);
    // SAFETY: off; then refused; faults are the host's to deliver.
    let off = unsafe { write_msr(VE_APF_MSR_VEINFO, 0) };
    check.that("VEINFO could not be switched off", off.is_ok());
    still_works(check, "VEINFO was switched off", false);
    check.that("VEINFO could not be switched on", check.cpu.set_info(0).is_ok());
    // With the ring off every task goes on, and faults again with nobody to tell it.
    device::set_policy([], PolicyArgs::fixed(1000));
    check.cpu.disable();
    // SAFETY: refused, as the ring is off; 0 is always fine.
    let (on, off) =
        unsafe { (write_msr(VE_APF_MSR_VEINFO, info), write_msr(VE_APF_MSR_VEINFO, 0)) };
    check.that("VEINFO without a ring was accepted", on.is_err());
    check.that("VEINFO = 0 without a ring was refused", off.is_ok());
    device::restore_all();
    check.cpu.sched.join();
    check.right(WRONG.load(SeqCst));
    check.that("cannot switch it on again", suite::switch_on(check.cpu, check.boot.mode).is_ok());
    still_works(check, "off and on", true);
}

fn calls(check: &mut Check<'_>) {
    let hardware = check.boot.mode == Mode::Hardware;
    let could = !hardware && cpu::caps().is_some_and(|caps| caps.contains(Caps::HARDWARE));
    let arena = arena::range().start;
    let resolved = VE_APF_RESOLVED.cast_signed();
    let unknown = VE_APF_UNKNOWN.cast_signed();
    let table = [
        (0, [0, 0, 0], ENOSYS),
        (99, [0, 0, 0], ENOSYS),
        (VE_APF_OP_SUBMIT, [62, 0, 0], EINVAL),
        (VE_APF_OP_SUBMIT, [u64::MAX, 0, 0], EINVAL),
        (VE_APF_OP_SUBMIT, [5, 0, 0], EINVAL),
        (VE_APF_OP_SUSPEND, [1 << 51, 2, 0], EINVAL),
        (VE_APF_OP_SUSPEND, [0xfee0_0000, 2, 0], EINVAL),
        (VE_APF_OP_SUSPEND, [arena, 1, 0], resolved),
        (VE_APF_OP_SUSPEND, [arena, u64::MAX, 0], resolved),
        (VE_APF_OP_STATUS, [62, 0, 0], EINVAL),
        (VE_APF_OP_STATUS, [0, 77_777, 0], unknown),
    ];
    let ranges = [
        ([arena + 1, PAGE_BYTES, 0], EINVAL),
        ([arena, PAGE_BYTES - 1, 0], EINVAL),
        ([arena, 0, 0], EINVAL),
        ([arena, 1 << 52, 0], EINVAL),
        ([arena, u64::MAX - 4095, 0], EINVAL),
        ([!0xfff, PAGE_BYTES, 0], EINVAL),
        ([arena, PAGE_BYTES, 2], EINVAL),
        ([arena, PAGE_BYTES, u64::MAX], EINVAL),
        // No memory there; and none of the VM's.
        ([1 << 40, PAGE_BYTES, 0], EINVAL),
        ([0xfee0_0000, PAGE_BYTES, 0], EINVAL),
        // All there is; and taken back.
        ([0, 1 << 52, 0], 0),
        ([0, 1 << 52, VE_APF_RANGE_WITHDRAW], 0),
        ([arena, PAGE_BYTES, VE_APF_RANGE_WITHDRAW], 0),
        ([arena, arena::range().end - arena, 0], 0),
    ];
    let ranges = ranges
        .map(|(args, answer)| (VE_APF_OP_RANGE, args, if hardware { answer } else { ENOSYS }));
    let ranges = ranges.into_iter().filter(|_| !could);
    for (op, args, wanted) in table.into_iter().chain(ranges) {
        let answer = hypercall(op, args);
        check.that(format_args!("call {op} {args:x?}: {answer}, not {wanted}"), answer == wanted);
    }
    for gpa in [1 << 51, u64::MAX, 0xfee0_0000, 1 << 40, arena] {
        for state in [State::CAN_CONTINUE, State::SUSPEND_ME] {
            let answer = submit_by_hand(check, gpa, state);
            // There is no such page, or it is there: nobody waits for it for ever.
            let known = [EINVAL, resolved, VE_APF_FAIL.cast_signed()].contains(&answer);
            check.that(format_args!("submitted {gpa:#x}: {answer}"), known);
        }
    }
    let other = raw_hypercall(VE_APF_HYPERCALL + 1, [1, 0, 0, 0]);
    check.that(format_args!("another hypercall: {other}"), other == ENOSYS);
    still_works(check, "bad calls", true);
}

/// Submits a slot for an address of this test's choice; the answer, or in the end the outcome.
fn submit_by_hand(check: &Check<'_>, gpa: u64, state: State) -> i64 {
    let ring = check.cpu.ring();
    let Some(slot) = SlotIndex::new(61) else { return i64::MIN };
    ring.set_bits(Bitmap::Active, slot.bit());
    let free = ring.word(slot);
    ring.set_fault(slot, FaultInfo { reason: 48, qualification: 2, gpa, ..FaultInfo::default() });
    let _ = ring.swap_word(slot, free, SlotWord::new(free.generation().next(), state));
    let mut answer = hypercall(VE_APF_OP_SUBMIT, [slot.get().into(), 0, 0]);
    let began = tsc();
    while answer == VE_APF_QUEUED.cast_signed() && tsc() - began < 1 << 32 {
        answer = match ring.word(slot).state() {
            State::RESOLVED => VE_APF_RESOLVED.cast_signed(),
            State::FAIL => VE_APF_FAIL.cast_signed(),
            _ => answer,
        };
    }
    let word = ring.word(slot);
    let _ = ring.swap_word(slot, word, word.with_state(State::NONE));
    ring.clear_bits(Bitmap::Active, slot.bit());
    answer
}

fn ranges(check: &mut Check<'_>) {
    let range = arena::range();
    let all = range.end - range.start;
    let declare = |gpa, length, flags| hypercall(VE_APF_OP_RANGE, [gpa, length, flags]);
    check.equal("withdrawn", declare(range.start, all, VE_APF_RANGE_WITHDRAW).cast_unsigned(), 0);
    still_works(check, "all was withdrawn", false);
    let counts = check.counted(|check| still_works(check, "all was withdrawn", false));
    check.equal("#VE where nothing is declared", counts.get("delivered"), 0);
    // Overlapping ones.
    for page in 0..64 {
        let answer = declare(range.start + page * PAGE_BYTES, 8 * PAGE_BYTES, 0);
        check.equal("overlapping", answer.cast_unsigned(), 0);
    }
    still_works(check, "ranges that overlap", true);
    // Every second page, until there is no room; what was declared stays.
    let mut accepted = 0;
    let mut answer = 0;
    for page in (128..arena::PAGES as u64).step_by(2) {
        answer = declare(range.start + page * PAGE_BYTES, PAGE_BYTES, 0);
        accepted += u64::from(answer == 0);
    }
    check.number("separate_ranges", accepted);
    check.that(format_args!("the last one: {answer}"), answer == 0 || answer == -VE_APF_E2BIG);
    still_works(check, "many ranges", true);
    // The same one again and again, and back again.
    let count = check.boot.options.number("ranges", 20_000);
    let bad = (0..count).filter(|i| declare(range.start, PAGE_BYTES, i % 2) != 0).count();
    check.equal("declarations that were refused", bad as u64, 0);
    check.number("declarations", count);
    declare(range.start, all, VE_APF_RANGE_WITHDRAW);
    check.equal("declared", declare(range.start, all, 0).cast_unsigned(), 0);
    still_works(check, "all was declared", true);
}

/// Writes words of the VE info area of the first CPU: busy, qualification, linear and physical address, index.
fn scribble(busy: u32, words: [u64; 3], index: u64) {
    let page = ve_apf_metal::cpu::all()[0].info[0].get().cast::<u64>();
    for (i, word) in words.into_iter().chain([index]).enumerate() {
        // SAFETY: an aligned word of that page, which is accessed atomically only.
        unsafe { AtomicU64::from_ptr(page.wrapping_add(1 + i)) }.store(word, SeqCst);
    }
    // SAFETY: as above.
    unsafe { AtomicU64::from_ptr(page) }.store(u64::from(busy) << 32 | 48, SeqCst);
}

fn garbage(check: &mut Check<'_>) {
    check.may_rescue();
    let present = arena::address(3);
    let ring = check.cpu.ring.address();
    let table = [
        (1, [0, 0, 0]),
        (1, [1, 0, present]),
        (u32::MAX, [u64::MAX, u64::MAX, u64::MAX]),
        (u32::MAX, [2, 0, 1 << 51]),
        (u32::MAX, [2, 0, 0xfee0_0000]),
        (7, [2, 0, ring]),
        (7, [1, present, present + 4095]),
    ];
    for (busy, words) in table {
        scribble(busy, words, u64::MAX);
        // The host answers that there is no such page, or that it is there.
        let _ = raise();
        still_works(check, "garbage in VEINFO", true);
    }
    // Without a #VE: the violation exits, the host injects, and the handler takes up what it finds in the page.
    scribble(3, [u64::MAX; 3], 0);
    device::evict_arena(5..6, ROUND);
    check.right(arena::wrong_bytes(5, ROUND));
    // The slot that the host filled is still to be taken up.
    let _ = raise();
    still_works(check, "a word that was set", true);
}

/// Steps until the garbage is written, and what is written; see [`garbage_step`].
static STEPS_LEFT: AtomicU64 = AtomicU64::new(0);
static BUSY: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

fn on_step(_: &'static Cpu, frame: &mut Frame) {
    let left = STEPS_LEFT.load(SeqCst);
    if left == 0 || frame.cpu.instruction_pointer.as_u64() == Scheduler::switch_address() {
        frame.cpu.cpu_flags.remove(RFlags::TRAP_FLAG);
        return;
    }
    STEPS_LEFT.store(left - 1, SeqCst);
    if left == 1 {
        let address = ADDRESS.load(SeqCst);
        scribble(BUSY.load(SeqCst) as u32, [address & 7, address, address], 0);
    }
}

fn garbage_step(check: &mut Check<'_>) {
    check.may_rescue();
    trap::set_handler(trap::DEBUG, on_step);
    let stride = check.boot.options.number("stride", 7);
    let mut written = 0;
    for (busy, address) in [(0, 0), (1, arena::address(3)), (u64::from(u32::MAX), 1 << 51)] {
        BUSY.store(busy, SeqCst);
        ADDRESS.store(address, SeqCst);
        for step in (1..).step_by(stride) {
            STEPS_LEFT.store(step, SeqCst);
            device::evict_arena(7..8, ROUND);
            probe::stepped(check.cpu, || {
                let _ = arena::read(7, 0);
            });
            check.right(arena::wrong_bytes(7, ROUND));
            // What is left to be taken up, if anything.
            let _ = raise();
            if STEPS_LEFT.load(SeqCst) != 0 {
                break;
            }
            written += 1;
        }
    }
    still_works(check, "garbage at every step", true);
    check.number("scribbles", written);
    check.that("little garbage was written", written * stride as u64 > 300);
}

static STOP: AtomicBool = AtomicBool::new(false);

fn garbage_storm(check: &mut Check<'_>) {
    check.may_rescue();
    if check.boot.cpus < 2 {
        check.number("skipped", 1);
        return;
    }
    STOP.store(false, SeqCst);
    device::evict_arena(0..256, ROUND);
    static WRONG: AtomicU64 = AtomicU64::new(0);
    WRONG.store(0, SeqCst);
    smp::on_all(2, |index| {
        if index == 0 {
            WRONG.store((0..256).map(|page| arena::wrong_bytes(page, ROUND)).sum(), SeqCst);
            STOP.store(true, SeqCst);
            return;
        }
        let mut turn = 0;
        while !STOP.load(SeqCst) {
            turn += 1;
            scribble(turn % 3, [turn.into(), 0, arena::address(turn as usize)], turn.into());
        }
        scribble(0, [0; 3], 0);
    });
    check.right(WRONG.load(SeqCst));
    // A slot that the host filled while the word said that the CPU did.
    let _ = raise();
    still_works(check, "a storm of garbage", true);
}
