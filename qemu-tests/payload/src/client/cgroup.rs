//! Memory cgroups to run QEMU in, smaller than its guest, and the swap device that takes what does not fit.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use crate::sys::PAGE;

const ROOT: &str = "/sys/fs/cgroup";

/// Swaps to `device`, a block device whose content is lost, if L1 does not already.
pub(super) fn swap_to(device: &str) -> Result<()> {
    let swaps = fs::read_to_string("/proc/swaps").context("/proc/swaps")?;
    if !swaps.lines().any(|line| line.split_whitespace().next() == Some(device)) {
        swap_on(device)?;
    }
    // A cgroup of so few huge pages, all in use, is killed before it is swapped out.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
        .context("transparent_hugepage")?;
    fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory").context("cgroup: +memory")
}

/// A memory cgroup for one QEMU.
pub(super) struct Cgroup {
    dir: String,
}

impl Cgroup {
    /// Makes it.
    pub(super) fn create(name: &str) -> Result<Cgroup> {
        let dir = format!("{ROOT}/{name}");
        fs::create_dir_all(&dir).with_context(|| dir.clone())?;
        Ok(Cgroup { dir })
    }

    /// Who writes 0 to this file moves in.
    pub(super) fn procs(&self) -> String {
        format!("{}/cgroup.procs", self.dir)
    }

    /// Above so much, whoever needs more is throttled while it is swapped out; a hard limit would kill QEMU where the disk is
    /// slow.
    pub(super) fn set_high(&self, high: &str) -> Result<()> {
        fs::write(format!("{}/memory.high", self.dir), high).context("memory.high")
    }

    /// Swaps out so much, or what there is.
    pub(super) fn reclaim(&self, size: &str) -> Result<()> {
        match fs::write(format!("{}/memory.reclaim", self.dir), size) {
            // There was less.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            result => result.context("memory.reclaim"),
        }
    }

    /// May it have more memory than it has? If not, nothing more of it is swapped out, either.
    pub(super) fn grow(&self, may: bool) -> Result<()> {
        let file = |name: &str| format!("{}/{name}", self.dir);
        let current = fs::read_to_string(file("memory.current")).context("memory.current")?;
        let (swap, memory) = if may { ("max", "max") } else { ("0", current.trim()) };
        fs::write(file("memory.swap.max"), swap).context("memory.swap.max")?;
        fs::write(file("memory.max"), memory).context("memory.max")
    }

    /// How often memory could not be had.
    pub(super) fn out_of_memory(&self) -> Result<u64> {
        let events = fs::read_to_string(format!("{}/memory.events", self.dir))?;
        let line = events.lines().find_map(|line| line.strip_prefix("oom "));
        line.context("memory.events: no oom")?.trim().parse().context("memory.events")
    }
}

/// Pages swapped in since L1 booted.
pub(super) fn pages_swapped_in() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let line = text.lines().find_map(|line| line.strip_prefix("pswpin "));
    line.context("/proc/vmstat: no pswpin")?.trim().parse().context("pswpin")
}

/// What mkswap and swapon do: the header of `union swap_header` (include/linux/swap.h), then the system call.
fn swap_on(device: &str) -> Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file =
        OpenOptions::new().read(true).write(true).open(device).context(device.to_owned())?;
    let pages = file.seek(SeekFrom::End(0))? / PAGE as u64;
    ensure!(pages > 16, "{device}: only {pages} pages");
    let mut header = vec![0; PAGE];
    header[1024..1028].copy_from_slice(&1_u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&u32::try_from(pages - 1)?.to_le_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    file.write_all_at(&header, 0)?;
    file.sync_all()?;
    drop(file);
    let path = std::ffi::CString::new(device)?;
    // SAFETY: `path` is a C string that lives through the call.
    if unsafe { libc::swapon(path.as_ptr(), 0) } != 0 {
        bail!("swapon {device}: {}", std::io::Error::last_os_error());
    }
    Ok(())
}
