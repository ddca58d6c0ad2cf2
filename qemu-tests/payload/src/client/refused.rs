//! L2 is to move to a VM that ve-apf is not offered to, as on a host without it: the destination says so and ends, and L2 goes on
//! at the source as if nothing had been.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::conclude;
use super::migration::{MIGRATION, start};
use super::qemu::CPU;

/// Runs it.
pub fn run(append: &str) -> Result<()> {
    let append = format!("veapf.run=walk veapf.mib=64 veapf.tasks=8 veapf.seconds=25 {append}");
    let start = |name: &str, more: &[&str]| start(name, "160", &append, more, None);
    let (mut source, mut qmp) = start("source", &[])?;
    source.wait_for("kind", "walking", Duration::from_secs(120))?;
    // Asynchronous page faults by interrupt are what ve-apf is offered beside. The last -cpu counts.
    let without = format!("{CPU},kvm-asyncpf-int=off,kvm-pv-enforce-cpuid=on");
    let (mut target, mut target_qmp) =
        start("target", &["-cpu", &without, "-incoming", MIGRATION])?;
    // So that the source hears of what becomes of it.
    let path = json!({"capabilities": [{"capability": "return-path", "state": true}]});
    qmp.run("migrate-set-capabilities", path.clone())?;
    target_qmp.run("migrate-set-capabilities", path)?;
    qmp.run("migrate", json!({"uri": MIGRATION}))?;
    let status = qmp.migration_ended(Duration::from_secs(120))?;
    let ended = target.ended(Duration::from_secs(20))?.context("the destination runs on")?;
    let running = qmp.run("query-status", json!({}))?["running"].clone();
    let walk = source.wait_for("kind", "walk", Duration::from_secs(120))?;
    let more = json!({
        "migration": status, "target_ok": ended.success(), "target": ended.to_string(),
        "source_running": running,
    });
    conclude("refused", &walk, more)
}
