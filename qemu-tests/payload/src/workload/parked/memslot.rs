//! What happens to the memslot while tasks wait for pages of it, and pages that may only be read. None of this is a failure.

use anyhow::Result;
use ve_apf_testdev::Mmu;

use super::party::Party;
use super::touch;
use crate::process::Status;

/// It is deleted, and created again.
pub(super) fn remade(p: &mut Party<'_>) -> Result<()> {
    without(p, Mmu::Remake)
}

/// It is moved elsewhere, and back.
pub(super) fn moved(p: &mut Party<'_>) -> Result<()> {
    without(p, Mmu::Move)
}

fn without(p: &mut Party<'_>, how: Mmu) -> Result<()> {
    p.park(touch::read)?;
    // There is one. Not again: the same access to the same page a third time in a row stops the vCPU until it is there.
    p.mmu(how, 0, false)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", Status::Exited(0))
}

/// The host's mapping of the pages is read-only while they are missing and while they are read.
pub(super) fn protected(p: &mut Party<'_>) -> Result<()> {
    read(p, Mmu::Protect)
}

/// Their memslots are.
pub(super) fn read_only(p: &mut Party<'_>) -> Result<()> {
    read(p, Mmu::ReadOnly)
}

fn read(p: &mut Party<'_>, how: Mmu) -> Result<()> {
    p.mmu(how, 1, true)?;
    p.park(touch::read)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", Status::Exited(0))?;
    p.mmu(how, 0, true)
}
