//! An entry of the table, and how it becomes cases.

use super::{BootEntry, Case, Mode};
use crate::expect::Expectation;
use crate::initrd::{self, Step};
use crate::kernel::Flavour;
use crate::lane::Lane;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Each of them makes a case.
    pub(super) boot: OneOrMore,
    #[serde(default = "only_ve_apf")]
    pub(super) modes: Vec<Mode>,
    #[serde(default = "one")]
    vcpus: u32,
    #[serde(default = "mem_mib")]
    mem_mib: u32,
    timeout_s: u64,
    /// Runs in L2, under our VMM, one after the other.
    workload: Option<OneOrMore>,
    /// By mode: of so many of the workload's pages only one is touched.
    #[serde(default)]
    one_page_of: BTreeMap<String, usize>,
    #[serde(default)]
    params: BTreeMap<String, Param>,
    /// More kernel parameters of L2.
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    vmm_args: Vec<String>,
    /// The guest is the bare-metal test kernel.
    #[serde(default)]
    metal: bool,
    /// L2's kernel is Debian's.
    #[serde(default)]
    stock_guest: bool,
    /// L2 has its kernel in a file.
    #[serde(default)]
    kernel_inside: bool,
    /// L2 has Debian's memcached.
    #[serde(default)]
    server: bool,
    /// Runs in L1 instead of the VMM.
    argv: Option<Vec<String>>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Wants Debian's QEMU in L1.
    #[serde(default)]
    client: bool,
    #[serde(default)]
    exit: i64,
    #[serde(default)]
    expect: Vec<String>,
    #[serde(default)]
    expect_in: BTreeMap<String, Vec<String>>,
    skip: Option<String>,
    /// Takes more than two minutes.
    #[serde(default)]
    long: bool,
}

/// What every workload under our VMM must show: it reported, without an error, without a wrong byte and without a
/// complaint in the guest's kernel log.
const ALWAYS: &[&str] = &[
    "count(result) > 0",
    "count(error) == 0",
    "or_zero(result.wrong_bytes) == 0",
    "or_zero(result.bad) == 0",
];

/// The kernel's COMMAND_LINE_SIZE is 2048, and the VMM adds a few words.
const MAX_CMDLINE: usize = 1980;

/// A word, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::More(words) => words,
        }
    }
}

/// A workload's parameter.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Param {
    Number(i64),
    Text(String),
}

/// This run with one of so many of its pages.
fn with_fewer_pages(run: &str, of: usize) -> Result<String> {
    anyhow::ensure!(of > 1, "{of} makes nothing fewer: 2 or more");
    let (before, rest) =
        run.split_once(":pages=").with_context(|| format!("{run} does not say how many pages"))?;
    let (pages, after) = rest.find(':').map_or((rest, ""), |end| rest.split_at(end));
    let pages: usize = pages.parse().with_context(|| format!("{run}: pages={pages}"))?;
    anyhow::ensure!(
        pages > 0 && pages.is_multiple_of(of),
        "{run}: its pages are no multiple of {of}"
    );
    Ok(format!("{before}:pages={}{after}", pages / of))
}

fn only_ve_apf() -> Vec<Mode> {
    vec![Mode::VeApf]
}
fn one() -> u32 {
    1
}
fn mem_mib() -> u32 {
    256
}

impl Entry {
    /// This entry in one of its modes, on one of its boots.
    pub(super) fn case(&self, mode: Mode, boot: &str, on: &BootEntry) -> Result<Case> {
        let lane = on.lane;
        let mut name = self.name.clone();
        if self.modes.len() > 1 {
            name = format!("{name}@{}", mode.name());
        }
        if self.boot.as_slice().len() > 1 {
            name = format!("{name}/{}", lane.name());
        }
        anyhow::ensure!(!(self.kernel_inside && self.server), "kernel_inside or server, not both");
        let runs = self.runs(mode)?;
        let cmdline = self.l2_cmdline(&runs, mode, lane);
        anyhow::ensure!(
            cmdline.len() <= MAX_CMDLINE,
            "L2's command line is longer than {MAX_CMDLINE} bytes: the kernel would cut it off"
        );
        let argv = match (&self.workload, &self.argv) {
            (Some(_), None) => self.vmm_argv(&cmdline, mode, lane),
            (None, Some(argv)) => argv.iter().map(|a| self.fill_in(a, &cmdline, lane)).collect(),
            _ => anyhow::bail!("needs either a workload or an argv"),
        };
        let step =
            Step { name: name.clone(), argv, timeout_s: self.timeout_s, env: self.env.clone() };
        let mut expect = vec![format!("step.exit == {}", self.exit)];
        if self.workload.is_some() && self.exit == 0 {
            expect.extend(ALWAYS.iter().map(|e| (*e).to_owned()));
        }
        let expected = self.expect_in.keys().map(|mode| ("expect_in", mode));
        let fewer = self.one_page_of.keys().map(|mode| ("one_page_of", mode));
        for (key, name) in expected.chain(fewer) {
            anyhow::ensure!(
                self.modes.iter().any(|m| m.name() == name),
                "{key} names the mode {name}, which is not among its modes"
            );
        }
        expect.extend(self.expect_in.get(mode.name()).into_iter().flatten().cloned());
        expect.extend(self.expect.iter().cloned());
        let expect = expect
            .iter()
            .map(|text| Expectation::parse(text).map_err(|e| anyhow::anyhow!("{text}: {e}")))
            .collect::<Result<_>>()?;
        Ok(Case {
            name,
            boot: boot.to_owned(),
            lane,
            counts_time: on.counts_time(),
            l1_cpus: on.cpus(),
            mips: (on.lane == Lane::Vmx).then(|| on.mips()),
            mode,
            vcpus: self.vcpus,
            step,
            client: self.client,
            stock: self.stock_guest || on.kernel == Flavour::Stock,
            server: self.server,
            expect,
            skip: self.skip.clone(),
            long: self.long,
            counted: runs.matches(":magic=1").count(),
        })
    }

    /// Where L1 has L2's kernel. QEMU starts no other than a bzImage.
    fn l2_kernel(&self, lane: Lane) -> &'static str {
        if self.metal {
            initrd::METAL
        } else if self.stock_guest {
            initrd::L2_STOCK
        } else if lane == Lane::Svm || self.client {
            initrd::L2_KERNEL
        } else {
            initrd::L2_VMLINUX
        }
    }

    fn l2_initrd(&self) -> &'static str {
        match (self.kernel_inside, self.server) {
            (true, _) => initrd::L2_INITRD_KERNEL,
            (_, true) => initrd::L2_INITRD_SERVER,
            _ => initrd::L2_INITRD,
        }
    }

    /// Its workload in this mode, as the payload wants to be told of it.
    fn runs(&self, mode: Mode) -> Result<String> {
        let Some(workload) = &self.workload else {
            anyhow::ensure!(self.one_page_of.is_empty(), "one_page_of is for a workload");
            return Ok(String::new());
        };
        let runs = workload.as_slice();
        anyhow::ensure!(
            !runs.is_empty() && runs.iter().all(|run| !run.is_empty() && !run.contains('+')),
            "workload must be a run or a list of them, none of them empty or with a +"
        );
        let Some(of) = self.one_page_of.get(mode.name()) else { return Ok(runs.join("+")) };
        let fewer: Result<Vec<_>> = runs.iter().map(|run| with_fewer_pages(run, *of)).collect();
        Ok(fewer.with_context(|| format!("one_page_of.{}", mode.name()))?.join("+"))
    }

    /// Kernel parameters of L2.
    fn l2_cmdline(&self, runs: &str, mode: Mode, lane: Lane) -> String {
        let mut words = vec![
            "console=ttyS0 quiet panic=-1".to_owned(),
            if self.stock_guest { "" } else { mode.cmdline() }.to_owned(),
            lane.l2_cmdline(),
            self.cmdline.clone(),
        ];
        if !runs.is_empty() {
            words.push(format!("veapf.run={runs}"));
        }
        for (name, value) in &self.params {
            words.push(match value {
                Param::Number(n) => format!("veapf.{name}={n}"),
                Param::Text(text) => format!("veapf.{name}={text}"),
            });
        }
        words.retain(|w| !w.is_empty());
        words.join(" ")
    }

    fn vmm_argv(&self, cmdline: &str, mode: Mode, lane: Lane) -> Vec<String> {
        let (vcpus, mem) = (self.vcpus.to_string(), self.mem_mib.to_string());
        // The VMM gives up first, so that it can say where the vCPUs are.
        let timeout = self.timeout_s.saturating_sub(5).max(5).to_string();
        let fixed = [
            initrd::VMM,
            "--kernel",
            self.l2_kernel(lane),
            "--initrd",
            self.l2_initrd(),
            "--cmdline",
            cmdline,
            "--vcpus",
            &vcpus,
            "--mem-mib",
            &mem,
            "--mode-label",
            mode.name(),
            "--timeout-s",
            &timeout,
            // vCPUs and the pager apart, because only then a kick costs what it costs elsewhere. (Where L1 has one CPU, all
            // are on it.)
            "--pin",
        ];
        let bare = self.metal.then_some("--bare");
        let fixed = fixed.into_iter().chain(bare).map(ToOwned::to_owned);
        fixed.chain(self.vmm_args.iter().cloned()).collect()
    }

    /// Replaces {kernel}, {initrd}, {cmdline}, {vcpus} and {mem_mib}.
    fn fill_in(&self, word: &str, cmdline: &str, lane: Lane) -> String {
        word.replace("{kernel}", self.l2_kernel(lane))
            .replace("{initrd}", initrd::L2_INITRD)
            .replace("{cmdline}", cmdline)
            .replace("{vcpus}", &self.vcpus.to_string())
            .replace("{mem_mib}", &self.mem_mib.to_string())
    }
}
