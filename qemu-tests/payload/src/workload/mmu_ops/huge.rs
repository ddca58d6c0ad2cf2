//! Steps for memory that the host has in huge pages.

use anyhow::Result;
use ve_apf_testdev::Mmu;

use super::{Slots, Steps};

/// Pages in a huge page.
pub(super) const BLOCK: usize = 512;
/// The one that goes, or that stays.
const ONE: usize = 100;

pub(super) fn run(steps: &mut Steps, slots: &Slots) -> Result<()> {
    let (first, second): (Vec<usize>, Vec<usize>) =
        ((0..BLOCK).collect(), (BLOCK..2 * BLOCK).collect());
    let all = [&first[..], &second[..]].concat();

    // One page of a huge one goes, and takes the entry of all 512 along.
    steps.evict("one", &[ONE])?;
    let rest: Vec<usize> = (0..BLOCK).filter(|page| *page != ONE).collect();
    steps.touch("one_rest", &rest, false)?;
    steps.touch("one_touch", &[ONE], false)?;
    steps.op("collapse", Mmu::Collapse, 0, &first)?;
    steps.touch("collapse_touch", &all, true)?;
    steps.op("collapsed", Mmu::Check, 0, &[])?;

    // The host takes a huge page apart; all of it stays.
    steps.op("split", Mmu::Split, 0, &second)?;
    steps.touch("split_touch", &all, true)?;
    steps.op("split_collapse", Mmu::Collapse, 0, &second)?;

    // All but one go: what comes back must not bring the others along.
    steps.evict("all_but_one", &rest)?;
    steps.touch("all_but_one_there", &[ONE], false)?;
    steps.op("all_but_one_check", Mmu::Check, 0, &[])?;
    steps.touch("all_but_one_touch", &rest, false)?;
    steps.op("all_but_one_collapse", Mmu::Collapse, 0, &first)?;
    steps.touch("all_but_one_again", &all, true)?;

    // All of a huge page goes.
    steps.evict("whole", &second)?;
    steps.touch("whole_touch", &second, false)?;
    steps.op("whole_collapse", Mmu::Collapse, 0, &second)?;
    steps.touch("whole_again", &all, true)?;

    steps.flip("flip_huge", 0)?;

    // Dirty logging splits what is huge in KVM alone.
    steps.op("log_on", Mmu::Log, 1, &[])?;
    steps.evict("log_evict", &rest[..64])?;
    steps.touch("log_write", &all, true)?;
    steps.op("log_get", Mmu::GetLog, 0, &all)?;
    steps.touch("log_read", &all, false)?;
    steps.op("log_get_read", Mmu::GetLog, 0, &all)?;
    steps.op("log_off", Mmu::Log, 0, &[])?;
    steps.op("log_collapse", Mmu::Collapse, 0, &first)?;
    steps.touch("log_off_touch", &all, true)?;
    steps.op("log_end", Mmu::Check, 0, &[])?;

    steps.op("age", Mmu::Age, 0, &all)?;
    steps.touch("age_touch", &all, true)?;

    // A memslot goes and comes while one page of a huge one is missing.
    steps.evict("remake_evict", &[ONE])?;
    steps.op("remake", Mmu::Remake, slots.of_arena, &[])?;
    // The other huge page may lie in another memslot.
    steps.touch("remake_touch", &first, false)?;
    steps.declare_all("remake_declare")?;
    steps.evict("remake_again", &[ONE])?;
    steps.touch("remake_again_touch", &first, false)
}
