//! A host that polls: slots that this test fills itself, as the handler does in hardware mode, are found without SUBMIT.
//! So it runs in either mode. While the host says that it polls nothing is called; else SUBMIT is.
//!
//! Options: `latency` (us), `pages`, `pause` (cycles of the TSC between two faults, up to that).

use ve_apf_metal::abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_metal::abi::hypercall::{VE_APF_OP_SUBMIT, VE_APF_QUEUED};
use ve_apf_metal::abi::ring::{SlotIndex, VE_APF_HOST_POLLING};
use ve_apf_metal::abi::word::{SlotWord, State};
use ve_apf_metal::cpu::Cpu;
use ve_apf_metal::sys::{hypercall, tsc};
use ve_apf_testdev::PolicyArgs;

use crate::options::Options;
use crate::suite::{Check, Test};
use crate::{arena, device};

/// One slot at a time.
pub(crate) const ONE: Test = Test::any("poll", "poll_one", |check| run(check, 1));
/// Sixteen slots at a time, whose pages come together.
pub(crate) const BURST: Test = Test::any("poll", "poll_burst", |check| run(check, 16));

/// Does another test want its slots handed in by [`hand_in_all`]?
pub(super) fn asked_for(options: &Options) -> bool {
    options.number("poll", 0) != 0
}

/// What a slot of this test was told, and how often.
#[derive(Default)]
struct Told {
    rung: u64,
    unrung: u64,
    at_once: u64,
}

fn run(check: &mut Check<'_>, burst: usize) {
    let pages = check.boot.options.number("pages", 256);
    let pause = check.boot.options.number("pause", 0);
    let latency = check.boot.options.number("latency", 1000);
    let policy = PolicyArgs { burst: burst as u32, hold_us: 100_000, ..PolicyArgs::fixed(latency) };
    let policy = if burst == 1 { PolicyArgs::fixed(latency) } else { policy };
    device::set_policy([], policy);
    let round = 900 + burst as u64;
    device::evict_arena(0..pages, round);
    let mut told = Told::default();
    let mut wrong = 0;
    let mut random = 1_u64;
    let exits = check.measure(|check| {
        for first in (0..pages).step_by(burst) {
            for page in first..pages.min(first + burst) {
                hand_in(check.cpu, page - first, page, &mut told);
            }
            for page in first..pages.min(first + burst) {
                wrong += wait_for(check, page - first, page, round);
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let until = tsc() + (random >> 33) % (pause + 1);
            while tsc() < until {
                core::hint::spin_loop();
            }
        }
    });
    check.right(wrong);
    check.equal("faults", told.rung + told.unrung, pages as u64);
    check.number("faults", pages as u64);
    check.number("rung", told.rung);
    check.number("unrung", told.unrung);
    check.number("at_once", told.at_once);
    check.ratio("exits_per_fault", exits, pages as u64);
    check.equal("left in submitted", check.cpu.ring().bits(Bitmap::Submitted), 0);
}

/// Hands in this CPU's first slots for pages from `first` on; returns for how many it did not ring.
pub(super) fn hand_in_all(cpu: &Cpu, first: usize, count: usize) -> u64 {
    let mut told = Told::default();
    (0..count).for_each(|index| hand_in(cpu, index, first + index, &mut told));
    told.unrung
}

/// Publishes slot `index` for a page, and rings if need be.
fn hand_in(cpu: &Cpu, index: usize, page: usize, told: &mut Told) {
    let ring = cpu.ring();
    let Some(slot) = SlotIndex::new(index as u64) else { return };
    ring.set_bits(Bitmap::Active, slot.bit());
    let free = ring.word(slot);
    let fault = FaultInfo {
        reason: 48,
        qualification: 1,
        gpa: arena::address(page),
        ..FaultInfo::default()
    };
    ring.set_fault(slot, fault);
    let _ =
        ring.swap_word(slot, free, SlotWord::new(free.generation().next(), State::CAN_CONTINUE));
    // A full fence, on this CPU.
    ring.set_bits(Bitmap::Submitted, slot.bit());
    if ring.host_flags() & VE_APF_HOST_POLLING != 0 {
        told.unrung += 1;
        return;
    }
    told.rung += 1;
    let answer = hypercall(VE_APF_OP_SUBMIT, [slot.get().into(), 0, 0]);
    told.at_once += u64::from(answer != VE_APF_QUEUED.cast_signed());
}

/// Waits for the slot's outcome, looks at the page, and frees the slot; wrong bytes.
fn wait_for(check: &mut Check<'_>, index: usize, page: usize, round: u64) -> u64 {
    let ring = check.cpu.ring();
    let Some(slot) = SlotIndex::new(index as u64) else { return 0 };
    let began = tsc();
    while ring.word(slot).state().is_waiting() && tsc() - began < 1 << 33 {
        core::hint::spin_loop();
    }
    let word = ring.word(slot);
    check.that(format_args!("page {page}: {word:x?}"), word.state() == State::RESOLVED);
    let wrong = arena::wrong_bytes(page, round);
    let _ = ring.swap_word(slot, word, word.with_state(State::NONE));
    ring.clear_bits(Bitmap::Active, slot.bit());
    wrong
}
