//! The case table: TOML files in qemu-tests/cases, one entry per case. See README.md there.

use crate::error::{Kind, fail};
use crate::expect::Expectation;
use crate::initrd::Step;
use crate::kernel::Flavour;
use crate::lane::{BOCHS_MIPS, Lane};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

mod entry;
mod mode;

use entry::Entry;
pub(crate) use mode::Mode;

/// One file of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Which command runs it.
    suite: String,
    #[serde(default)]
    boot: BTreeMap<String, BootEntry>,
    #[serde(default)]
    case: Vec<Entry>,
}

/// How L1 is booted for a group of cases.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BootEntry {
    /// The machine.
    pub(crate) lane: Lane,
    cpus: Option<u32>,
    mem_mib: Option<u32>,
    /// More kernel parameters of L1.
    pub(crate) cmdline: String,
    /// Size of an empty disk, /dev/vda.
    pub(crate) disk_mib: u32,
    /// The kernel of L1.
    pub(crate) kernel: Flavour,
    /// QEMU has all CPUs of this machine, and nothing runs beside it. Else it has one of them, where what one of its threads does to a
    /// word of a CPU's state in one instruction is not lost to another (docs/notes/0004).
    pub(crate) parallel: bool,
    /// Time is a count of instructions, each of which takes 2^N ns.
    pub(crate) icount: Option<u8>,
    /// Millions of instructions that are a second for a CPU in Bochs.
    mips: Option<u32>,
}

impl BootEntry {
    /// CPUs of L1.
    pub(crate) fn cpus(&self) -> u32 {
        self.cpus.unwrap_or_else(|| self.lane.cpus())
    }

    /// Memory of L1.
    pub(crate) fn mem_mib(&self) -> u32 {
        self.mem_mib.unwrap_or_else(|| self.lane.mem_mib())
    }

    /// Millions of instructions that are a second for a CPU in Bochs.
    pub(crate) fn mips(&self) -> u32 {
        self.mips.unwrap_or(BOCHS_MIPS)
    }

    /// Its time is a count of instructions, so that a busy machine changes nothing.
    pub(crate) fn counts_time(&self) -> bool {
        self.lane == Lane::Vmx || self.icount.is_some()
    }

    /// What a step may take, in the host's time: L1 kills it in its own time, and this is for an L1 that does not.
    pub(crate) fn limit(&self, step: &Step) -> Duration {
        Duration::from_secs(step.timeout_s + 10) * self.slowness()
    }

    /// Seconds of the host that a second of L1 may take.
    pub(crate) fn slowness(&self) -> u32 {
        // With -icount QEMU runs all CPUs in one thread, and executes every instruction that time is made of: as Bochs does.
        match self.counts_time() {
            true => (Lane::Vmx.slowness() * self.mips()).div_ceil(BOCHS_MIPS),
            false => self.lane.slowness(),
        }
    }

    fn check(&self, name: &str) -> Result<()> {
        anyhow::ensure!(
            self.lane == Lane::Svm || self.disk_mib == 0,
            "boot {name}: no disk_mib on the lane vmx, whose kernel has no driver for it"
        );
        anyhow::ensure!(
            self.lane == Lane::Svm || self.icount.is_none(),
            "boot {name}: no icount on the lane vmx, where time is a count of instructions anyway"
        );
        anyhow::ensure!(
            self.icount.is_none_or(|shift| shift <= 10),
            "boot {name}: icount must be 0 to 10, QEMU's limit"
        );
        anyhow::ensure!(
            self.lane == Lane::Vmx || self.mips.is_none(),
            "boot {name}: mips is of the lane vmx; on svm there is icount"
        );
        anyhow::ensure!(
            self.mips.is_none_or(|mips| (1..=4000).contains(&mips)),
            "boot {name}: mips must be 1 to 4000, Bochs's limit"
        );
        anyhow::ensure!(
            self.lane == Lane::Svm || self.kernel != Flavour::Stock,
            "boot {name}: Debian's kernel has no KVM for the lane vmx here"
        );
        Ok(())
    }
}

/// A case, for one mode.
#[derive(Debug)]
pub(crate) struct Case {
    /// `entry@mode` if the entry has several modes, and `/lane` behind it if it has several boots.
    pub(crate) name: String,
    /// The boot that runs it.
    pub(crate) boot: String,
    /// Which machine.
    pub(crate) lane: Lane,
    /// Its time is a count of instructions.
    pub(crate) counts_time: bool,
    /// CPUs of L1.
    pub(crate) l1_cpus: u32,
    /// On vmx: millions of instructions that are a second for each.
    pub(crate) mips: Option<u32>,
    /// The guest's way with missing pages.
    pub(crate) mode: Mode,
    /// vCPUs of L2.
    pub(crate) vcpus: u32,
    /// What L1 runs.
    pub(crate) step: Step,
    /// Wants Debian's QEMU in L1.
    pub(crate) client: bool,
    /// Wants Debian's kernel.
    pub(crate) stock: bool,
    /// Wants Debian's memcached.
    pub(crate) server: bool,
    /// What must hold.
    pub(crate) expect: Vec<Expectation>,
    /// Why it is not run.
    pub(crate) skip: Option<String>,
    /// Run only if long ones are asked for.
    pub(crate) long: bool,
    /// Sections in which Bochs's debugger counts instructions.
    pub(crate) counted: usize,
}

/// A suite: its boots and its cases, in the table's order.
#[derive(Debug)]
pub(crate) struct Suite {
    /// By name.
    pub(crate) boots: BTreeMap<String, BootEntry>,
    /// Every case.
    pub(crate) cases: Vec<Case>,
}

impl Suite {
    /// Long cases are not run.
    pub(crate) fn skip_long(&mut self) {
        for case in self.cases.iter_mut().filter(|c| c.long) {
            case.skip.get_or_insert_with(|| "takes long: --long runs it".to_owned());
        }
    }

    /// Cases that want Debian's memcached are not run, because of `why`.
    pub(crate) fn skip_server(&mut self, why: &str) {
        for case in self.cases.iter_mut().filter(|c| c.server) {
            case.skip.get_or_insert_with(|| why.to_owned());
        }
    }

    /// Cases that want Debian's kernel are not run, because of `why`.
    pub(crate) fn skip_stock(&mut self, why: &str) {
        for case in self.cases.iter_mut().filter(|c| c.stock) {
            case.skip.get_or_insert_with(|| why.to_owned());
        }
    }
}

/// Reads every file of `suite` in `dir`, by name.
pub(crate) fn load(dir: &Path, suite: &str) -> Result<Suite> {
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    paths.sort();
    let mut all = Suite { boots: BTreeMap::new(), cases: Vec::new() };
    for path in paths {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        parse(&text, suite, &mut all).map_err(|e| {
            fail(Kind::Usage, format!("{}: {e:#}", path.display()), "correct the case table")
        })?;
    }
    Ok(all)
}

fn parse(text: &str, suite: &str, all: &mut Suite) -> Result<()> {
    let file: File = toml::from_str(text)?;
    if file.suite != suite {
        return Ok(());
    }
    for (name, boot) in file.boot {
        boot.check(&name)?;
        all.boots.insert(name, boot);
    }
    for entry in &file.case {
        let before = all.cases.len();
        for name in entry.boot.as_slice() {
            let boot = all
                .boots
                .get(name)
                .with_context(|| format!("case {}: no [boot.{name}]", entry.name))?;
            for mode in entry.modes.iter().copied().filter(|m| m.is_on(boot.lane)) {
                let case =
                    entry.case(mode, name, boot).with_context(|| format!("case {}", entry.name))?;
                anyhow::ensure!(
                    all.cases.iter().all(|c| c.name != case.name),
                    "case {} is there twice",
                    case.name
                );
                all.cases.push(case);
            }
        }
        anyhow::ensure!(
            all.cases.len() > before,
            "case {}: its boots have none of its modes",
            entry.name
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
