//! One fault more than was parked: with all slots of the ring in use it cannot be told, and the CPU that meets it stands still
//! but for what interrupts it. This thread is on that CPU.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::cpu::parked;
use super::party::Party;
use super::touch;
use crate::process::{self, Status};

/// A page that is not there, beyond those that are outstanding.
const ONE_MORE: usize = super::MOST;

/// After this time the first page comes; all others have been asked for by then, on a busy machine too.
const FIRST: Duration = Duration::from_secs(8);

/// A slot becomes free: who has waited for one is told of the fault, though the page is not there.
pub(super) fn crowded(p: &mut Party<'_>) -> Result<()> {
    let before = parked()?;
    p.comes_after(0, Some(FIRST))?;
    p.park(touch::read)?;
    let wanted = before + p.outstanding as u64 + 1;
    p.park_one_more(ONE_MORE, touch::read)?;
    if let Some(first) = p.children.first().copied().filter(|_| p.outstanding > 1) {
        p.quiet()?;
        // Its slot stays in use until its page comes, and then the completion interrupt finds it abandoned.
        process::kill(first, libc::SIGKILL)?;
        let mut others = p.children.split_off(1);
        p.all("killed_us", Status::Killed(libc::SIGKILL))?;
        p.children.append(&mut others);
        let pending = p.outstanding as u64;
        ensure!(p.device().pager_state()?.pending == pending, "the first page was there too early");
        let device = p.device();
        p.until("first_us", || Ok(device.pager_state()?.pending < pending))?;
        p.outstanding -= 1;
    }
    p.until("parked_without_its_page_us", || Ok(parked()? >= wanted))?;
    p.comes_after(0, None)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", Status::Exited(0))
}

/// No page comes before the deadline that the VMM set: everyone is told, and whoever asks again then finds a page that has come.
pub(super) fn expired(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    p.park_one_more(ONE_MORE, touch::read)?;
    p.all("expired_us", Status::Killed(libc::SIGBUS))?;
    p.come()
}
