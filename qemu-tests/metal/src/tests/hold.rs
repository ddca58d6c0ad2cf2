//! Faults outstanding that nobody ends: whoever started this VM does something to it. Runs alone.
//!
//! Options: `outstanding` (62), `then` (`wait`: for ever; `exit`: ends the VM at once; `suspend`, `block`: touches one page more
//! where it may not sleep, or where no fault can be delivered, so that the vCPU stands still; `ring`: the same, of a page that
//! the host cannot tell of, since the ring's own is missing), `poll` (1: nobody touches a page; the slots are handed in, and a
//! host that polls finds them).

use core::sync::atomic::Ordering::SeqCst;

use ve_apf_metal::abi::access::{Bitmap, RingAccess};
use ve_apf_metal::abi::msr::{VE_APF_EN_RING_MASK, VE_APF_MSR_EN};
use ve_apf_metal::sys;
use ve_apf_testdev::PolicyArgs;
use x86_64::instructions::interrupts;

use crate::arena;
use crate::device::{self, Content};
use crate::suite::{Check, Test};
use crate::tests::poll;

/// Says `holding` when as many faults wait as were asked for.
pub(crate) const HOLD: Test = Test::any("hold", "hold", hold);

/// Tasks of this CPU, as many as it has slots, each asleep over a page that does not come.
pub(super) fn park(check: &mut Check<'_>, outstanding: usize, first: usize, round: u64) {
    device::set_policy([], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    if outstanding > 0 {
        device::evict_arena(first..first + outstanding, round);
    }
    if poll::asked_for(&check.boot.options) {
        let unrung = poll::hand_in_all(check.cpu, first, outstanding);
        check.that("the host does not poll", unrung > 0 || outstanding < 2);
    } else {
        for page in first..first + outstanding {
            check.cpu.sched.spawn(|page| _ = arena::read(page, 0), page);
        }
        // Each faults as soon as it runs; a fault may have to be repeated.
        (0..100).for_each(|_| check.cpu.sched.yield_now());
        check.equal("tasks asleep", check.cpu.sched.asleep() as u64, outstanding as u64);
    }
    let active = check.cpu.ring().bits(Bitmap::Active).count_ones();
    check.equal("slots in use", active.into(), outstanding as u64);
}

fn hold(check: &mut Check<'_>) {
    let outstanding: usize = check.boot.options.number("outstanding", 62);
    park(check, outstanding, 0, 400);
    device::evict_arena(outstanding..outstanding + 1, 400);
    let kind = if check.passes() { "holding" } else { "error" };
    let mut text = crate::text::Text::<100>::new();
    let _ = core::fmt::Write::write_char(&mut text, '{');
    text.string("kind", kind);
    text.field("outstanding", outstanding);
    let _ = core::fmt::Write::write_char(&mut text, '}');
    device::report("", text.as_str());
    match check.boot.options.text("then", "wait") {
        "exit" => device::exit(0),
        "suspend" => {
            check.cpu.preempt_off.fetch_add(1, SeqCst);
            arena::read(outstanding, 0);
        }
        "ring" => {
            let en = sys::read_msr(VE_APF_MSR_EN).unwrap_or(0);
            let frame = (en & VE_APF_EN_RING_MASK) / 4096;
            device::evict(core::iter::once(frame..frame + 1), Content::Kept);
            arena::read(outstanding, 0);
        }
        "block" => interrupts::without_interrupts(|| _ = arena::read(outstanding, 0)),
        _ => {}
    }
    loop {
        sys::enable_and_halt();
    }
}
