//! What happens to the CPU, or its ring, while tasks are parked on it. The ring goes, so they wake and fault again: on another
//! CPU, or when there is a ring again.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::party::Party;
use super::touch::{self, Touch};
use crate::guest_counters::GuestCounters;
use crate::process::Status;
use crate::sys;
use crate::workload::msr;

/// CPU 1 goes offline, which makes it wait for INIT, and comes back, three times.
pub(super) fn offlined(p: &mut Party<'_>) -> Result<()> {
    taken_away(p, touch::read_on_1)
}

/// The same with tasks that wait inside of a system call.
pub(super) fn offlined_in_kernel(p: &mut Party<'_>) -> Result<()> {
    taken_away(p, touch::write_on_1)
}

fn taken_away(p: &mut Party<'_>, how: Touch) -> Result<()> {
    ensure!(sys::cpus_online() > 1, "needs two CPUs");
    let before = parked()?;
    p.park(how)?;
    for round in 0..3 {
        p.timed("offline_us", || switch(false))?;
        if round == 0 {
            let wanted = before + 2 * p.outstanding as u64;
            p.until("parked_elsewhere_us", || Ok(parked()? >= wanted))?;
        }
        p.quiet()?;
        p.timed("online_us", || switch(true))?;
    }
    p.quiet()?;
    p.come()?;
    p.all("ended_us", Status::Exited(0))
}

fn switch(online: bool) -> Result<()> {
    let path = "/sys/devices/system/cpu/cpu1/online";
    std::fs::write(path, if online { "1" } else { "0" }).context(path)
}

/// Faults over which tasks slept so far.
pub(super) fn parked() -> Result<u64> {
    let counters = GuestCounters::read().ve_apf.context("no ve-apf in this guest")?;
    counters.get("parked").copied().context("ve-apf does not count what is parked")
}

/// EN is written 0 and then what it was, behind the kernel's back: it learns of it with its next completion interrupt, or
/// when it next asks how its tasks are.
pub(super) fn ring_off(p: &mut Party<'_>) -> Result<()> {
    rewritten(p, true)
}

/// EN is written again with what it holds.
pub(super) fn ring_again(p: &mut Party<'_>) -> Result<()> {
    rewritten(p, false)
}

fn rewritten(p: &mut Party<'_>, off: bool) -> Result<()> {
    let before = parked()?;
    p.park(touch::read)?;
    let file = msr::open(0)?;
    let mut en = [0; 8];
    file.read_exact_at(&mut en, msr::EN)?;
    ensure!(en != [0; 8], "the ring is off");
    p.timed("rewritten_us", || {
        if off {
            file.write_all_at(&[0; 8], msr::EN)?;
        }
        Ok(file.write_all_at(&en, msr::EN)?)
    })?;
    let wanted = before + 2 * p.outstanding as u64;
    p.until("parked_again_us", || Ok(parked()? >= wanted))?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", Status::Exited(0))
}
