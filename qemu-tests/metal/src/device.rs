//! Driver of the VMM's test device.

use core::arch::asm;
use core::fmt::Write;
use core::ops::Range;

use spin::Mutex;
use ve_apf_metal::tables::Page;
use ve_apf_testdev::{
    CommandPage, DATA_SIZE, Loss, MAX_RUN, Nmi, Op, PAGE_SIZE, PORT, PolicyArgs, Run,
};

use crate::arena;
use crate::text::Text;

/// What the device reads and writes; never taken away.
#[unsafe(link_section = ".keep")]
static SHARED: Page<[u8; PAGE_SIZE]> = Page::new([0; PAGE_SIZE]);
/// Guards [`SHARED`].
static TURN: Mutex<()> = Mutex::new(());

/// Commands that are ready to be carried out by one `OUT`.
const PREPARED: usize = 4;
#[unsafe(link_section = ".keep")]
static COMMANDS: [Page<[u8; PAGE_SIZE]>; PREPARED] =
    [const { Page::new([0; PAGE_SIZE]) }; PREPARED];

/// What a page holds when it comes back.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// The pattern of this round.
    Pattern(u64),
    /// What it holds now.
    Kept,
}

fn out(frame: u64) {
    // SAFETY: the device carries out what the page says; it writes no memory but that page and the pages that it was told
    // of, which nothing in Rust refers to meanwhile.
    unsafe {
        asm!("out dx, eax", in("dx") PORT, in("eax") frame as u32, options(nostack, preserves_flags));
    }
}

fn exchange(page: &mut CommandPage) {
    let _turn = TURN.lock();
    // SAFETY: the lock makes it ours, until the device was told; it is done when `out` returns.
    unsafe {
        SHARED.get().write(*page.as_bytes());
        out(SHARED.address() / 4096);
        *page = CommandPage::from_bytes(SHARED.get().read());
    }
}

/// Carries out a command; its results, or an errno.
fn call(page: &mut CommandPage) -> Result<[u64; 4], i32> {
    exchange(page);
    if page.status() == 1 { Ok(page.args()) } else { Err(-page.status()) }
}

/// As [`call`], where a refusal is a mistake in this kernel.
fn demand(page: &mut CommandPage) -> [u64; 4] {
    let op = page.op();
    call(page).unwrap_or_else(|errno| panic!("test device: {op:?}: errno {errno}"))
}

fn with_frames(op: Op, frames: impl IntoIterator<Item = Range<u64>>) -> CommandPage {
    let mut page = CommandPage::new(op);
    let mut data = [0; DATA_SIZE];
    let mut chunks = data.chunks_exact_mut(8);
    let mut used = 0;
    for range in frames {
        let mut first = range.start;
        while first < range.end {
            let count = (range.end - first).min(MAX_RUN);
            let Some(chunk) = chunks.next() else { panic!("too many runs for one command") };
            chunk.copy_from_slice(&Run { first, count }.to_word().to_le_bytes());
            first += count;
            used += 8;
        }
    }
    page.set_data(data.get(..used).unwrap_or_default());
    page
}

/// These frames may be taken away.
pub(crate) fn declare(frames: impl IntoIterator<Item = Range<u64>>) {
    demand(&mut with_frames(Op::Declare, frames));
}

/// How missing pages of these frames come back, or of all if there are none.
pub(crate) fn set_policy(frames: impl IntoIterator<Item = Range<u64>>, policy: PolicyArgs) {
    let mut page = with_frames(Op::SetPolicy, frames);
    page.set_args(policy.to_args());
    demand(&mut page);
}

fn eviction(frames: impl IntoIterator<Item = Range<u64>>, content: Content) -> CommandPage {
    let mut page = with_frames(Op::Evict, frames);
    page.set_args(match content {
        Content::Pattern(round) => [round, 0, 0, 0],
        Content::Kept => [0, 1, 0, 0],
    });
    page
}

/// Takes frames away.
pub(crate) fn evict(frames: impl IntoIterator<Item = Range<u64>>, content: Content) {
    demand(&mut eviction(frames, content));
}

/// Takes pages of the arena away; the pattern of `round` comes back.
pub(crate) fn evict_arena(pages: Range<usize>, round: u64) {
    evict([arena::frames(pages)], Content::Pattern(round));
}

/// Makes a command that one `OUT` carries out, in place of the one that had this number; its frame.
pub(crate) fn prepare_evict(
    number: usize,
    frames: impl IntoIterator<Item = Range<u64>>,
    content: Content,
) -> u64 {
    prepare(number, &eviction(frames, content))
}

/// The same for an NMI to a CPU.
pub(crate) fn prepare_nmi(number: usize, cpu: usize) -> u64 {
    let mut page = CommandPage::new(Op::Nmi);
    page.set_args([Nmi::Once as u64, cpu as u64, 0, 0]);
    prepare(number, &page)
}

fn prepare(number: usize, page: &CommandPage) -> u64 {
    let Some(command) = COMMANDS.get(number) else { panic!("no prepared command {number}") };
    // SAFETY: each test uses numbers of its own, and nothing that could use this one runs now.
    unsafe { command.get().write(*page.as_bytes()) };
    command.address() / 4096
}

/// Carries out a prepared command; in any context.
pub(crate) fn run_prepared(frame: u64) {
    out(frame);
}

/// Brings everything back that is missing; how many pages.
pub(crate) fn restore_all() -> u64 {
    demand(&mut CommandPage::new(Op::Restore))[0]
}

/// These frames can never come, or they can again. Who waits for one finds out when it is brought back.
pub(crate) fn lose(frames: impl IntoIterator<Item = Range<u64>>, lost: bool) {
    let mut page = with_frames(Op::Lose, frames);
    let what = if lost { Loss::NoAccess } else { Loss::Back };
    page.set_args([what as u64, 0, 0, 0]);
    demand(&mut page);
}

/// Frames that were asked for since the last call, in order; as many as fit, and how many there were.
pub(crate) fn fault_log(into: &mut [u64]) -> usize {
    let mut page = CommandPage::new(Op::FaultLog);
    let count = demand(&mut page)[0] as usize;
    for (to, from) in into.iter_mut().zip(page.data().chunks_exact(8)) {
        *to = from.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    count.min(into.len())
}

/// NMIs: see [`Nmi`]. Returns how many were sent since the last start.
pub(crate) fn nmi(what: Nmi, cpu: usize, period_us: u64, counter: u64) -> u64 {
    let mut page = CommandPage::new(Op::Nmi);
    page.set_args([what as u64, cpu as u64, period_us, counter]);
    demand(&mut page)[0]
}

/// Counts VM exits and more under this label from now on.
pub(crate) fn stats_begin(label: &str) {
    let mut page = CommandPage::new(Op::StatsBegin);
    page.set_label(label);
    demand(&mut page);
}

/// Stops counting; the number of VM exits, of which the two commands are a part.
pub(crate) fn stats_end(label: &str) -> u64 {
    let mut page = CommandPage::new(Op::StatsEnd);
    page.set_label(label);
    demand(&mut page);
    let text = core::str::from_utf8(page.data()).unwrap_or("");
    let exits = text.split("\"exits\":").nth(1).unwrap_or("");
    let end = exits.find(|c: char| !c.is_ascii_digit()).unwrap_or(exits.len());
    exits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Prints a record, joined with what was counted under its label.
pub(crate) fn report(label: &str, text: &str) {
    let mut chunks = text.as_bytes().chunks(DATA_SIZE).peekable();
    while let Some(chunk) = chunks.next() {
        let mut page = CommandPage::new(Op::Report);
        page.set_label(label);
        page.set_data(chunk);
        page.set_args([chunks.peek().is_none().into(), 0, 0, 0]);
        demand(&mut page);
    }
}

/// Prints an error record, whoever was using the device.
pub(crate) fn report_panic(info: &core::panic::PanicInfo<'_>) {
    // SAFETY: this kernel is at its end; whoever holds the lock does not go on.
    unsafe { TURN.force_unlock() };
    let mut text = Text::<1024>::new();
    let _ = write!(text, "{{\"kind\":\"error\",\"where\":\"metal\"");
    text.string("error", info);
    let _ = text.write_char('}');
    report("", text.as_str());
}

/// Ends the VM.
pub(crate) fn exit(code: u8) -> ! {
    let mut page = CommandPage::new(Op::Exit);
    page.set_args([code.into(), 0, 0, 0]);
    loop {
        // SAFETY: as in `report_panic`; otherwise nobody uses the device.
        unsafe { TURN.force_unlock() };
        exchange(&mut page);
    }
}
