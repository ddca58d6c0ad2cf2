//! L2 moves from one QEMU to the next while it runs, and on to a third, and so on: with its memory before it, or after it.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use super::migration::{MIGRATION, allow_postcopy};
use super::walked::{Story, Vm};
use super::{cgroup, conclude};

/// QEMUs are called by turns: the name is their cgroup's, too.
const NAMES: [&str; 2] = ["here", "there"];

/// When its memory moves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All of it before L2 goes on at the destination.
    Precopy,
    /// What L2 asks for, while it runs there, and the rest.
    Postcopy,
}

impl How {
    /// As on the command line.
    pub fn named(name: &str) -> Result<How> {
        match name {
            "precopy" => Ok(How::Precopy),
            "postcopy" => Ok(How::Postcopy),
            other => bail!("{other}: neither precopy nor postcopy"),
        }
    }
}

/// Runs it `rounds` times.
pub fn run(device: &str, how: How, rounds: usize, append: &str) -> Result<()> {
    cgroup::swap_to(device)?;
    let mut vm = Vm::start(NAMES[rounds % 2], append, &[])?;
    let mut story = Story::default();
    story.begun(&mut vm)?;
    let mut requests = 0;
    for left in (0..rounds).rev() {
        vm.swap_out()?;
        // A guest that resets has failed; it stays to be looked at.
        let stays = ["-incoming", MIGRATION, "-action", "reboot=shutdown,shutdown=pause"];
        let mut next = Vm::start(NAMES[left % 2], append, &stays)?;
        let moved = migrate(&mut vm, &mut next, how, &mut story);
        requests += moved.inspect_err(|_| {
            vm.qmp.explain("source");
            next.qmp.explain("target");
        })?;
        vm = next;
    }
    story.all_run(&mut vm)?;
    let (walk, mut more) = story.end(&mut vm)?;
    more["postcopy_requests"] = json!(requests);
    let name = if how == How::Precopy { "precopy" } else { "postcopy" };
    conclude(name, &walk, more)
}

/// Moves it; returns how many pages the guest asked for.
fn migrate(source: &mut Vm, target: &mut Vm, how: How, story: &mut Story) -> Result<u64> {
    if how == How::Postcopy {
        allow_postcopy(&mut source.qmp, &mut target.qmp)?;
    } else {
        // As fast as it can, and stopped for as long as it takes: the guest writes to all its memory.
        let fast = json!({"max-bandwidth": 1_u64 << 34, "downtime-limit": 20_000});
        source.qmp.run("migrate-set-parameters", fast)?;
    }
    source.qmp.run("migrate", json!({"uri": MIGRATION}))?;
    if how == How::Postcopy {
        source.qmp.migration_until(&["active"], Duration::from_secs(30))?;
        source.swap_out()?;
        source.qmp.run("migrate-start-postcopy", json!({}))?;
        story.all_run(target)?;
    }
    let done = loop {
        // It comes back as it is sent.
        source.swap_out()?;
        let info = source.qmp.migration_until(
            &["active", "device", "postcopy-active", "completed"],
            Duration::from_secs(120),
        )?;
        if info["status"] == "completed" {
            break info;
        }
    };
    story.moment(source)?;
    story.all_run(target)?;
    Ok(done["ram"]["postcopy-requests"].as_u64().unwrap_or(0))
}
