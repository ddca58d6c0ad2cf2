//! The two QEMUs of a migration.

use anyhow::Result;

use super::qemu::{Guest, MICROVM, Qemu};
use super::qmp::Qmp;

/// Where they meet.
pub(super) const MIGRATION: &str = "unix:/tmp/migration";

/// Starts one, with `memory` MiB and a monitor; `append` is of L2's kernel command line, `more` are QEMU's arguments.
pub(super) fn start(name: &str, memory: &str, append: &str, more: &[&str]) -> Result<(Qemu, Qmp)> {
    let socket = format!("/tmp/qmp-{name}");
    let mut more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
    more.extend(["-qmp".to_owned(), format!("unix:{socket},server=on,wait=off")]);
    let guest = Guest { machine: MICROVM, memory, vcpus: 1, append, more: &more, cgroup: None };
    let qemu = Qemu::start(name, &guest)?;
    Ok((qemu, Qmp::connect(&socket)?))
}
