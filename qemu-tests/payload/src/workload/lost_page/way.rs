//! How a page is lost, and how it comes back.

use anyhow::{Result, bail};
use ve_apf_testdev::Loss;

use crate::device::Device;

/// `loss=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::workload) enum Way {
    /// Not at all: what every site comes to without.
    Not,
    /// The host finds that the page is gone.
    Lost(Loss),
    /// The page is the pager's to deliver, and the pager died: whoever waits, waits for the deadline.
    DeadPager,
}

impl Way {
    /// The one of this name.
    pub(in crate::workload) fn named(name: &str) -> Result<Way> {
        Ok(match name {
            "none" => Way::Not,
            "no_access" => Way::Lost(Loss::NoAccess),
            "truncated" => Way::Lost(Loss::Truncated),
            "uffd_poison" => Way::Lost(Loss::UffdPoison),
            "hw_poison" => Way::Lost(Loss::HwPoison),
            "dead_pager" => Way::DeadPager,
            other => bail!("veapf.loss={other}: unknown"),
        })
    }

    /// These frames are lost from now on.
    pub(in crate::workload) fn lose(self, device: &Device, frames: &[u64]) -> Result<()> {
        match self {
            Way::Not => Ok(()),
            Way::Lost(loss) => device.lose(frames, loss),
            Way::DeadPager => {
                device.run_pager(false)?;
                device.evict_keep(frames)
            }
        }
    }

    /// They are there again, with what they held.
    pub(in crate::workload) fn bring_back(self, device: &Device, frames: &[u64]) -> Result<()> {
        match self {
            Way::Not => Ok(()),
            Way::Lost(_) => device.lose(frames, Loss::Back),
            Way::DeadPager => {
                device.run_pager(true)?;
                device.restore_all().map(drop)
            }
        }
    }
}
