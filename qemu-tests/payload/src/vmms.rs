//! Runs in L1: VMMs that end while threads of their VM wait for pages.
//!
//! * `killed`: SIGKILL; `suspended`, `blocked`: the same, while the vCPU itself waits for a page, by the guest's wish or by KVM's.
//! * `polled`: the same, of slots that the host polls for.
//! * `exited`: the process ends by itself, and delivers nothing.
//! * `finished`: the guest is at its end, and the pages come when its vCPUs are closed.
//! * `closed`: the VM is closed, and the pages come after that.
//! * `held`: SIGKILL, while another process has the VM and the userfaultfd open.
//!
//! Each time: the VMM is gone at once, no thread is left, the VM is gone, and in the end memory is as it was.

mod left;
mod vmm;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::plan;
use crate::process;
use left::{Memory, Remains};
use vmm::Vmm;

/// What can be asked for.
pub const HOWS: [&str; 8] =
    ["killed", "polled", "suspended", "blocked", "exited", "finished", "closed", "held"];

/// What to do.
#[derive(Debug)]
pub struct Plan {
    how: &'static str,
    rounds: u32,
    outstanding: u32,
    kernel: String,
    vmm: String,
}

/// Longest time that anything may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Rounds before memory is measured for the first time: slabs and per-CPU lists fill.
const WARM_UP: u32 = 3;

impl Plan {
    /// Of these words; `None` if one of them is wrong.
    pub fn parse(how: &str, rounds: &str, outstanding: &str, files: [&str; 2]) -> Option<Plan> {
        let how = HOWS.into_iter().find(|known| *known == how)?;
        let (rounds, outstanding) = (rounds.parse().ok()?, outstanding.parse().ok()?);
        let [kernel, vmm] = files.map(str::to_owned);
        Some(Plan { how, rounds, outstanding, kernel, vmm })
    }

    fn vmm_options(&self) -> (&'static [&'static str], &'static str) {
        match self.how {
            "suspended" => (&[], "suspend"),
            "blocked" => (&[], "block"),
            "exited" => (&["--leave", "exit"], "exit"),
            "finished" => (&[], "exit"),
            "closed" => (&["--leave", "close"], "exit"),
            "held" => (&["--hold-fds"], "wait"),
            _ => (&[], "wait"),
        }
    }
}

/// Carries it out; prints the record.
pub fn run(plan: &Plan) -> Result<()> {
    let mut before = Memory::default();
    let mut worst = Duration::ZERO;
    for round in 0..plan.rounds + WARM_UP {
        if round == WARM_UP {
            before = Memory::settled()?;
        }
        worst = worst.max(one(plan)?);
    }
    let grown = Memory::settled()?.grown_since(&before);
    // A VM of the ordinary kind works as ever.
    let mut vmm = Vmm::start(plan, &[], "veapf.run=park_one")?;
    let record = vmm.wait_for("kind", "result", LIMIT * 4)?;
    ensure!(vmm.end(LIMIT)?.code() == Some(0), "the last VM: {record}");
    // A page may be there before its task sleeps.
    let count = |name: &str| record["ve_apf"][name].as_u64().unwrap_or(0);
    let parked = count("parked") + count("early");
    plan::print(&json!({
        "kind": "vmms",
        "how": plan.how,
        "rounds": plan.rounds,
        "outstanding": plan.outstanding,
        "slowest_us": worst.as_micros() as u64,
        "grown_kb": grown,
        "parked_after": parked,
        "wrong_bytes_after": record["wrong_bytes"],
    }));
    Ok(())
}

/// One VMM; returns how long it took from its end to the last trace of it.
fn one(plan: &Plan) -> Result<Duration> {
    let (options, then) = plan.vmm_options();
    let poll = if plan.how == "polled" { " veapf.poll=1" } else { "" };
    let cmdline =
        format!("veapf.run=hold veapf.outstanding={} veapf.then={then}{poll}", plan.outstanding);
    let mut vmm = Vmm::start(plan, options, &cmdline)?;
    let holder = match plan.how {
        "held" => vmm.wait_for("kind", "holder", LIMIT)?["pid"].as_i64(),
        _ => None,
    };
    let outstanding = vmm.wait_for("kind", "holding", LIMIT * 2)?["outstanding"].as_u64();
    ensure!(outstanding == Some(plan.outstanding.into()), "{outstanding:?} outstanding");
    let pid = vmm.pid();
    let mut began = Instant::now();
    if then != "exit" {
        // The guest goes on for a moment after it said so.
        std::thread::sleep(Duration::from_millis(50));
        let found = Remains::of(pid)?;
        ensure!(found.vms == 1, "before the end: {found:?}");
        ensure!(found.threads >= plan.outstanding as usize, "before the end: {found:?}");
        process::kill(pid, libc::SIGKILL)?;
        began = Instant::now();
    }
    if plan.how == "closed" {
        let closed = vmm.wait_for("kind", "closed", LIMIT * 2)?;
        let waiting = closed["threads_after_close"].as_u64();
        ensure!(waiting >= Some(plan.outstanding.into()), "{closed}");
        ensure!(closed["threads_after_pages"] == 0, "{closed}");
    }
    let status = vmm.end(LIMIT)?;
    ensure!((then != "exit") == status.code().is_none(), "the VMM ended with {status}");
    if let Some(holder) = holder {
        let found = Remains::of(pid)?;
        ensure!(found.threads == 0, "of a VMM whose VM lives: {found:?}");
        ensure!(found.vms == 1, "the VM does not live: {found:?}");
        process::kill(i32::try_from(holder)?, libc::SIGKILL)?;
    }
    loop {
        let found = Remains::of(pid)?;
        if found == Remains::default() {
            return Ok(began.elapsed());
        }
        if began.elapsed() > LIMIT {
            bail!("left behind: {found:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
