//! A VM that is swapped out now and then, whose tasks walk until they are told to end, and how far they are.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::cgroup::Cgroup;
use super::migration::start;
use super::qemu::Qemu;
use super::qmp::Qmp;

/// MiB of L2, of which its tasks use `WALKED`.
const MEMORY: &str = "96";
const WALKED: &str = "24";
/// Of its QEMU.
const RECLAIMED: &str = "48M";
/// No task may be without progress for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A QEMU, its monitor and its cgroup.
pub(super) struct Vm {
    pub(super) qemu: Qemu,
    pub(super) qmp: Qmp,
    pub(super) cgroup: Cgroup,
}

impl Vm {
    /// Starts one whose cgroup is `name`; `append` is of L2's kernel command line, `more` are QEMU's arguments.
    pub(super) fn start(name: &str, append: &str, more: &[&str]) -> Result<Vm> {
        let cgroup = Cgroup::create(name)?;
        let procs = cgroup.procs();
        let append = format!(
            "veapf.run=walk veapf.mib={WALKED} veapf.tasks=8 veapf.typed=1 veapf.rest_ms=10 veapf.every_ms=500 veapf.stay=1 {append}"
        );
        let (qemu, qmp) = start(name, MEMORY, &append, more, Some(&procs))?;
        Ok(Vm { qemu, qmp, cgroup })
    }

    /// Swaps most of it out, and lets its tasks meet that.
    pub(super) fn swap_out(&self) -> Result<()> {
        self.cgroup.reclaim(RECLAIMED)?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// Stops it; what its guest said before is forgotten.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.qmp.run("stop", json!({}))?;
        // What it wrote last is on its way through a pipe.
        std::thread::sleep(Duration::from_millis(50));
        self.qemu.forget();
        Ok(())
    }

    /// Lets it go on.
    pub(super) fn go_on(&mut self) -> Result<()> {
        self.qmp.run("cont", json!({}))?;
        Ok(())
    }

    /// Which slots of its ring are in use, while it is stopped: a bit for each fault that is outstanding, or whose task
    /// has not run since. `None` if the guest does not use ve-apf.
    pub(super) fn slots_in_use(&mut self, ring: Option<u64>) -> Result<Option<u64>> {
        let Some(ring) = ring else { return Ok(None) };
        let line = format!("xp /1gx {ring:#x}");
        let said = self.qmp.run("human-monitor-command", json!({"command-line": line}))?;
        let said = said.as_str().unwrap_or_default();
        let word =
            said.split_once(": 0x").and_then(|(_, word)| u64::from_str_radix(word.trim(), 16).ok());
        Ok(Some(word.with_context(|| format!("{line}: {said}"))?))
    }
}

/// What a test found over all its rounds.
#[derive(Default)]
pub(super) struct Story {
    /// Where the guest's ring is.
    pub(super) ring: Option<u64>,
    rounds: u64,
    outstanding: u64,
    slots: u64,
    slowest: Duration,
    /// The highest of what the guest said; a guest that goes back in time forgets.
    highest: Map<String, Value>,
}

impl Story {
    /// Waits until the guest's tasks begin; where its ring is may be new.
    pub(super) fn begun(&mut self, vm: &mut Vm) -> Result<()> {
        let walking = vm.qemu.wait_for("kind", "walking", Duration::from_secs(120))?;
        let en = walking["en"].as_u64().unwrap_or(0);
        // Bit 4: ve-apf (abi/src/msr.rs).
        self.ring = (en & 0x11 == 0x11).then_some(en & !0xfff);
        Ok(())
    }

    /// The VM is where it will go on from; it is stopped.
    pub(super) fn moment(&mut self, vm: &mut Vm) -> Result<()> {
        self.rounds += 1;
        println!("round {}", self.rounds);
        let slots = vm.slots_in_use(self.ring)?.unwrap_or(0);
        self.outstanding += u64::from(slots != 0);
        self.slots += u64::from(slots.count_ones());
        Ok(())
    }

    /// Waits until every task has verified a page since now.
    pub(super) fn all_run(&mut self, vm: &mut Vm) -> Result<()> {
        let began = Instant::now();
        let first = self.progress(vm)?;
        loop {
            let now = self.progress(vm)?;
            if first.iter().zip(&now).all(|(first, now)| first < now) {
                break;
            }
            if began.elapsed() > PATIENCE {
                bail!("a task is stuck: {first:?} touches, {now:?} after {} s", PATIENCE.as_secs());
            }
        }
        self.slowest = self.slowest.max(began.elapsed());
        Ok(())
    }

    /// Touches of each task.
    fn progress(&mut self, vm: &mut Vm) -> Result<Vec<u64>> {
        let record = vm.qemu.wait_for("kind", "walked", PATIENCE)?;
        for name in ["wrong", "bad", "failed", "rescued", "new_epochs"] {
            let (seen, now) =
                (self.highest.get(name).and_then(Value::as_u64), record[name].as_u64());
            if now > seen {
                self.highest.insert(name.to_owned(), json!(now));
            }
        }
        serde_json::from_value(record["touches"].clone()).context("touches")
    }

    /// Ends the walk; its record, and what all rounds showed.
    pub(super) fn end(mut self, vm: &mut Vm) -> Result<(Value, Value)> {
        vm.qemu.type_line("end")?;
        let walk = vm.qemu.wait_for("kind", "walk", Duration::from_secs(120))?;
        let slowest = u64::try_from(self.slowest.as_millis())?;
        let more = json!({
            "rounds": self.rounds, "outstanding": self.outstanding, "slots": self.slots, "slowest_ms": slowest,
            "highest": std::mem::take(&mut self.highest),
        });
        Ok((walk, more))
    }
}
