//! QEMU with TCG, which emulates AMD's SVM.

use super::Boot;
use super::machine::Machine;
use super::monitor::Monitor;
use crate::error::{Kind, fail};
use crate::lane::Lane;
use crate::tools::Qemu;
use anyhow::{Context, Result};
use std::path::Path;

pub(super) fn machine(boot: &Boot<'_>) -> Result<Machine> {
    let qemu = Qemu::find()?.ok_or_else(|| {
        fail(Kind::Environment, "QEMU is not installed", "run `cargo xtask setup`")
    })?;
    let monitor = Monitor::new(boot.cpus, boot.kernel)?;
    let mut command = qemu.command();
    command
        .args(speed(boot.icount))
        .args(["-smp", &boot.cpus.to_string(), "-m", &boot.mem_mib.to_string()])
        .args(["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio"])
        .args(monitor.option())
        .arg("-no-reboot")
        .arg("-kernel")
        .arg(boot.kernel)
        .arg("-initrd")
        .arg(boot.initrd)
        .args(["-append", boot.cmdline]);
    let disk = disk(boot)?;
    if let Some(disk) = &disk {
        command
            .arg("-drive")
            .arg(format!("file={},format=raw,if=none,id=disk,cache=unsafe", disk.path().display()));
        command.args(["-device", "virtio-blk-pci,drive=disk"]);
    }
    Ok(Machine { lane: Lane::Svm, command, _disk: disk, log: None, monitor: Some(monitor) })
}

/// How it executes. With `-icount` nothing may depend on the host: neither time, nor random numbers, nor which CPU runs when.
fn speed(icount: Option<u8>) -> Vec<String> {
    let fixed = match icount {
        None => "-accel tcg,thread=multi -cpu max".to_owned(),
        Some(shift) => format!(
            "-accel tcg,thread=single -icount shift={shift},sleep=off -cpu max,-rdrand,-rdseed -seed 1 \
             -rtc base=2026-01-01,clock=vm"
        ),
    };
    fixed.split(' ').filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
}

/// A sparse file that is gone when this boot is over.
fn disk(boot: &Boot<'_>) -> Result<Option<tempfile::NamedTempFile>> {
    if boot.disk_mib == 0 {
        return Ok(None);
    }
    let dir = boot.log.parent().unwrap_or(Path::new("."));
    let file =
        tempfile::Builder::new().prefix("disk-").tempfile_in(dir).context("creating a disk")?;
    file.as_file().set_len(u64::from(boot.disk_mib) << 20).context("creating a disk")?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_instructions_depends_on_nothing_of_the_host() {
        let usual = speed(None).join(" ");
        assert_eq!(usual, "-accel tcg,thread=multi -cpu max");
        let counted = speed(Some(3)).join(" ");
        for word in ["thread=single", "shift=3,sleep=off", "-rdrand", "-seed", "clock=vm"] {
            assert!(counted.contains(word), "{counted}");
        }
    }
}
