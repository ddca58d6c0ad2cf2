//! L2 moves between two QEMUs while it runs: it goes on at the destination when most of its memory is still at the
//! source.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::conclude;
use super::migration::{MIGRATION, allow_postcopy, start};
use super::qemu::Qemu;
use super::qmp::Qmp;

/// Runs it.
pub fn run(append: &str) -> Result<()> {
    let append = format!(
        // It stays until all of its memory has moved, or the source waits for a destination that is gone.
        "veapf.run=walk veapf.mib=96 veapf.tasks=8 veapf.seconds=25 veapf.stay=1 {append}"
    );
    let start = |name: &str, more: &[&str]| start(name, "192", &append, more, None);
    let (mut source, mut source_qmp) = start("source", &[])?;
    source.wait_for("kind", "walking", Duration::from_secs(120))?;
    // A guest that resets has failed; it stays to be looked at.
    let stays = ["-incoming", MIGRATION, "-action", "reboot=shutdown,shutdown=pause"];
    let (mut target, mut target_qmp) = start("target", &stays)?;
    let moved = migrate(&mut source_qmp, &mut target_qmp, &mut target);
    let (walk, requests) = moved.inspect_err(|_| {
        source_qmp.explain("source");
        target_qmp.explain("target");
    })?;
    conclude("postcopy", &walk, json!({"postcopy_requests": requests}))
}

/// Moves the guest; returns its record, and how many pages it asked for.
fn migrate(source: &mut Qmp, target: &mut Qmp, guest: &mut Qemu) -> Result<(Value, Value)> {
    allow_postcopy(source, target)?;
    source.run("migrate", json!({"uri": MIGRATION}))?;
    source.migration_until(&["active"], Duration::from_secs(30))?;
    source.run("migrate-start-postcopy", json!({}))?;
    let done = source.migration_until(&["completed"], Duration::from_secs(120))?;
    let walk = guest.wait_for("kind", "walk", Duration::from_secs(90))?;
    Ok((walk, done["ram"]["postcopy-requests"].clone()))
}
