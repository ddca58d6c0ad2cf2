//! L2's memory is swapped out: QEMU runs in a cgroup with a limit below what its guest uses.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::conclude;
use super::qemu::{Guest, MICROVM, Qemu};
use crate::sys::PAGE;

const CGROUP: &str = "/sys/fs/cgroup/vm";

/// Runs it, with the swap device `device` (a block device whose content is lost).
pub fn run(device: &str, append: &str) -> Result<()> {
    swap_on(device)?;
    // A cgroup of so few huge pages, all in use, is killed before it is swapped out.
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
        .context("transparent_hugepage")?;
    std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
        .context("cgroup: +memory")?;
    std::fs::create_dir_all(CGROUP).context(CGROUP)?;
    // Above `high` the cgroup is throttled while it is swapped out; a hard limit would kill QEMU where the disk is slow.
    std::fs::write(format!("{CGROUP}/memory.high"), "112M").context("memory.high")?;

    let before = pages_swapped_in()?;
    let append = format!("veapf.run=walk veapf.mib=128 veapf.tasks=8 veapf.seconds=20 {append}");
    let procs = format!("{CGROUP}/cgroup.procs");
    let guest = Guest {
        machine: MICROVM,
        memory: "224",
        vcpus: 1,
        append: &append,
        more: &[],
        cgroup: Some(&procs),
    };
    let mut qemu = Qemu::start("swap", &guest)?;
    let walk = qemu.wait_for("kind", "walk", Duration::from_secs(240))?;
    let swapped_in = pages_swapped_in()? - before;
    conclude("swap", &walk, json!({"swapped_in": swapped_in}))
}

fn pages_swapped_in() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/vmstat")?;
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
