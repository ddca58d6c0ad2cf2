//! L2's memory is swapped out: QEMU runs in a cgroup with a limit below what its guest uses.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::cgroup::{self, Cgroup};
use super::conclude;
use super::qemu::{Guest, MICROVM, Qemu};

/// Runs it, with the swap device `device` (a block device whose content is lost).
pub fn run(device: &str, append: &str) -> Result<()> {
    cgroup::swap_to(device)?;
    let cgroup = Cgroup::create("vm")?;
    cgroup.set_high("112M")?;
    let procs = cgroup.procs();
    let before = cgroup::pages_swapped_in()?;
    let append = format!("veapf.run=walk veapf.mib=128 veapf.tasks=8 veapf.seconds=20 {append}");
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
    let swapped_in = cgroup::pages_swapped_in()? - before;
    conclude("swap", &walk, json!({"swapped_in": swapped_in}))
}
