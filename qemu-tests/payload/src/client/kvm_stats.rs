//! What KVM counts for one process's VMs: /sys/kernel/debug/kvm/PID-FD.

use std::fs;

use anyhow::{Context, Result};

const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// A counter, of all vCPUs.
pub(super) fn read(pid: u32, name: &str) -> Result<u64> {
    let prefix = format!("{pid}-");
    let mut sum = 0;
    for entry in fs::read_dir(DEBUGFS).context(DEBUGFS)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)) {
            let file = path.join(name);
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            sum += text.trim().parse::<u64>().with_context(|| file.display().to_string())?;
        }
    }
    Ok(sum)
}
