//! Story one: a task faults, and what the #VE handler touches next is missing too.
//!
//! The page is taken away by the instruction before the one that faults, so that the handler is the first to miss it. Until
//! the handler has cleared the busy word (or the host may inject again) such a violation exits, and the host stops the
//! vCPU for it; later it is a fault like any other, of code that may not sleep.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ve_apf_metal::counters::Values;
use ve_apf_testdev::PolicyArgs;

use crate::device::{self, Content};
use crate::layout::{self, Name};
use crate::suite::{self, Check, Test};
use crate::{arena, probe};

/// All of the kernel's own pages at once; finds out which of them are touched.
pub(crate) const ALL_AT_ONCE: Test = Test::any("story1", "story1_all_at_once", all_at_once);
/// One by one, each page that is touched.
pub(crate) const EACH_PAGE: Test = Test::any("story1", "story1_each_page", each_page);
/// The same, with the kernel's own pages declared: they would raise #VE.
pub(crate) const ARMED_AT_ONCE: Test =
    Test::hardware("story1", "story1_all_at_once_armed", |check| suite::armed(check, all_at_once));
/// See [`ARMED_AT_ONCE`].
pub(crate) const ARMED_EACH_PAGE: Test =
    Test::hardware("story1", "story1_each_page_armed", |check| suite::armed(check, each_page));

/// A page table that nothing but the handler's stack needs.
pub(crate) const PAGE_TABLE: Test = Test::any("story1", "story1_page_table", page_table);
/// See [`ARMED_AT_ONCE`].
pub(crate) const ARMED_PAGE_TABLE: Test =
    Test::hardware("story1", "story1_page_table_armed", |check| suite::armed(check, page_table));

/// More than one fault touches.
const MOST: usize = 96;
/// The page of the arena that the task reads.
const PAGE: usize = 77;

static ROUND: AtomicU64 = AtomicU64::new(100);

/// What one fault met.
struct Met {
    /// Frames that were asked for, in order; the task's own is among them.
    log: [u64; MOST],
    count: usize,
    counts: Values,
}

impl Met {
    fn frames(&self) -> impl Iterator<Item = u64> {
        self.log.iter().copied().take(self.count).filter(|frame| *frame != arena::frame(PAGE))
    }
}

/// A task reads [`PAGE`], which is missing, and so are `frames`.
fn fault(check: &mut Check<'_>, frames: impl IntoIterator<Item = Range<u64>>) -> Met {
    fault_by(check, frames, probe::load)
}

/// The same by `load`.
fn fault_by(
    check: &mut Check<'_>,
    frames: impl IntoIterator<Item = Range<u64>>,
    load: unsafe fn(u64, u64) -> u64,
) -> Met {
    let round = ROUND.fetch_add(1, Relaxed);
    device::set_policy([arena::frames(PAGE..PAGE + 1)], PolicyArgs::fixed(2000));
    device::evict_arena(PAGE..PAGE + 1, round);
    let command = device::prepare_evict(0, frames, Content::Kept);
    let mut met = Met { log: [0; MOST], count: 0, counts: check.cpu.counters.values() };
    device::fault_log(&mut met.log);
    let first = check.cpu.counters.logged();
    // SAFETY: the arena is mapped; the command takes away pages that come back as they were.
    let value = unsafe { load(command, arena::address(PAGE)) };
    let last = check.cpu.counters.logged();
    met.counts = check.cpu.counters.values().since(met.counts);
    met.count = device::fault_log(&mut met.log);
    check.right(8 * u64::from(value != arena::expected(PAGE, round, 0)));
    check.right(arena::wrong_bytes(PAGE, round));
    // What came between left the information about the first fault alone.
    let own =
        (first..last).filter(|i| check.cpu.counters.gpa(*i) == Some(arena::address(PAGE))).count();
    check.equal("times that the handler saw the task's page", own as u64, 1);
    device::restore_all();
    met
}

fn all_at_once(check: &mut Check<'_>) {
    let met = fault(check, layout::own_frames());
    check.number("touched", met.frames().count() as u64);
    check.list("pages", met.frames().map(Name));
    check.that("several pages were touched", met.frames().count() > 5);
}

fn each_page(check: &mut Check<'_>) {
    let all = fault(check, layout::own_frames());
    // Asked for, and the handler saw one fault only: the host stopped the vCPU for the page. Declared pages do that
    // while the busy word is set, and during the delivery of an event, and only then.
    let mut stopped = [false; MOST];
    let mut handled = [false; MOST];
    check.measure(|check| {
        for ((frame, stopped), handled) in all.frames().zip(&mut stopped).zip(&mut handled) {
            let met = fault(check, core::iter::once(frame..frame + 1));
            let missed = met.frames().any(|asked| asked == frame);
            let alone = met.counts.get("faults") == 1;
            (*stopped, *handled) = (missed && alone, missed && !alone);
            let parked = met.counts.parked_or_early();
            check.that(format_args!("parked {parked} times without {}", Name(frame)), parked >= 1);
        }
    });
    let names = |which: [bool; MOST]| {
        all.frames().zip(which).filter(|(_, is)| *is).map(|(frame, _)| Name(frame))
    };
    check.list("waited_in_the_host", names(stopped));
    check.list("seen_by_the_handler", names(handled));
    // Some are only touched because others are missing.
    let missed = names(stopped).count() + names(handled).count();
    check.number("pages", all.frames().count() as u64);
    check.number("missed", missed as u64);
    check.that("few pages were missed alone", missed >= 10);
}

fn page_table(check: &mut Check<'_>) {
    layout::map_again();
    let frame = layout::SECOND_DIRECTORY;
    let met = fault_by(check, core::iter::once(frame..frame + 1), probe::load_on_second_stack);
    check.equal(
        "times that the page table was missed",
        met.frames().filter(|asked| *asked == frame).count() as u64,
        1,
    );
    check.equal("faults", met.counts.get("faults"), 1);
}
