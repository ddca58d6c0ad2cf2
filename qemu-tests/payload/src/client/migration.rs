//! QEMUs with a monitor, and what two of them need for a migration.

use anyhow::Result;
use serde_json::json;

use super::qemu::{Guest, MICROVM, Qemu};
use super::qmp::Qmp;

/// Where they meet.
pub(super) const MIGRATION: &str = "unix:/tmp/migration";

/// Starts one, with `memory` MiB and a monitor, in the cgroup of `cgroup`, its `cgroup.procs`; `append` is of L2's kernel
/// command line, `more` are QEMU's arguments.
pub(super) fn start(
    name: &str,
    memory: &str,
    append: &str,
    more: &[&str],
    cgroup: Option<&str>,
) -> Result<(Qemu, Qmp)> {
    let socket = format!("/tmp/qmp-{name}");
    let mut more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
    more.extend(["-qmp".to_owned(), format!("unix:{socket},server=on,wait=off")]);
    let guest = Guest { machine: MICROVM, memory, vcpus: 1, append, more: &more, cgroup };
    let qemu = Qemu::start(name, &guest)?;
    Ok((qemu, Qmp::connect(&socket)?))
}

/// Memory may move after the guest; slowly, so that the guest at the destination meets missing pages.
pub(super) fn allow_postcopy(source: &mut Qmp, target: &mut Qmp) -> Result<()> {
    for qmp in [&mut *source, target] {
        let postcopy = json!({"capabilities": [{"capability": "postcopy-ram", "state": true}]});
        qmp.run("migrate-set-capabilities", postcopy)?;
    }
    let slow = json!({"max-bandwidth": 4 << 20, "max-postcopy-bandwidth": 12 << 20});
    source.run("migrate-set-parameters", slow)?;
    Ok(())
}
