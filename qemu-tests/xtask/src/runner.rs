//! Running cases: those of one boot share it, and a boot that dies costs only the case that was running.

use crate::bench::probe::Points;
use crate::boot::{Boot, Console, End, Section};
use crate::cases::{BootEntry, Case, Suite};
use crate::expect;
use crate::initrd::{Kernels, Programs, Step};
use crate::kernel::{Flavour, Kernel};
use crate::lane::Lane;
use crate::paths;
use crate::record::Record;
use crate::report::figures;
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

mod groups;

use groups::{Group, groups};

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Everything expected held.
    Passed,
    /// Something did not.
    Failed,
    /// It was not run.
    Skipped,
}

/// One case's result.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// The case.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) status: Status,
    /// Expectations that did not hold, or the reason for a skip.
    pub(crate) why: Vec<String>,
    /// Nothing failed but expectations that depend on how fast this machine is.
    #[serde(skip)]
    pub(crate) late: bool,
    /// It was run twice; `note` says why.
    #[serde(skip)]
    pub(crate) again: bool,
    /// What one should know of how it was run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
    /// How long it ran, in the host's time.
    pub(crate) ms: u64,
    /// Its part of the console.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log: Option<PathBuf>,
    /// What it reported.
    #[serde(skip)]
    pub(crate) records: Vec<Record>,
}

impl Outcome {
    /// A case that was not run.
    pub(crate) fn skipped(name: &str, why: &str) -> Self {
        Self::new(name, Status::Skipped, vec![why.into()])
    }

    /// A case that ended so; of it nothing else is known yet.
    pub(crate) fn new(name: &str, status: Status, why: Vec<String>) -> Self {
        Self {
            name: name.into(),
            status,
            why,
            late: false,
            again: false,
            note: String::new(),
            ms: 0,
            log: None,
            records: Vec::new(),
        }
    }
}

/// What is needed to boot.
pub(crate) struct Lab {
    /// The kernel of L1 and L2.
    pub(crate) kernel: Kernel,
    /// That of an L1 which watches itself, if a case wants it.
    pub(crate) debug: Option<Kernel>,
    /// Debian's, if a case wants it.
    pub(crate) stock: Option<Kernel>,
    /// Programs of L1 and L2.
    pub(crate) programs: Programs,
    /// Logs and images go here.
    pub(crate) dir: PathBuf,
}

/// Runs `cases`; every case has an outcome, in the order of the boots. A boot has one CPU of this machine, so that as many run beside
/// each other; those that want all CPUs come before, alone. A case that was only late is run once more at the end, in a new boot with
/// nothing beside it.
pub(crate) fn run(lab: &Lab, suite: &Suite, cases: &[&Case]) -> Result<Vec<Outcome>> {
    let (mut outcomes, groups) = groups(suite, cases);
    let mut of_groups: Vec<Vec<Outcome>> = groups.iter().map(|_| Vec::new()).collect();
    let all = groups.iter().zip(&mut of_groups);
    let (alone, mut beside): (Vec<_>, Vec<_>) = all.partition(|(group, _)| group.entry.parallel);
    for (group, outcomes) in alone {
        *outcomes = run_group(lab, group)?;
    }
    // The longest first, so that not one of them is left over at the end.
    beside.sort_by_key(|(group, _)| std::cmp::Reverse(group.limit()));
    let queue = Mutex::new(VecDeque::from(beside));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || -> Result<()> {
        while let Some((group, outcomes)) = next() {
            *outcomes = run_group(lab, group)?;
        }
        Ok(())
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let ends = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cpus).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    for end in ends {
        end.map_err(|_| anyhow::anyhow!("a thread that boots panicked"))??;
    }
    drop(queue);
    for (group, outcomes) in groups.iter().zip(&mut of_groups) {
        late_again(lab, group, outcomes)?;
    }
    outcomes.extend(of_groups.into_iter().flatten());
    Ok(outcomes)
}

/// Prints what failed; true if nothing did.
pub(crate) fn print_failures(outcomes: &[Outcome]) -> bool {
    let mut ok = true;
    for outcome in outcomes.iter().filter(|o| o.status == Status::Failed) {
        ok = false;
        println!("FAILED {}", outcome.name);
        for why in &outcome.why {
            println!("       {why}");
        }
        if let Some(log) = &outcome.log {
            println!("       log: {}", log.display());
        }
    }
    ok
}

/// Runs a group's late cases once more. What they show then counts; the note has what they were late with, and NAME.first.log the rest.
fn late_again(lab: &Lab, group: &Group<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let late = |name: &str| outcomes.iter().any(|o| o.late && o.name == name);
    let cases: Vec<&Case> = group.cases.iter().copied().filter(|c| late(&c.name)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    for case in &cases {
        let log = log_path(&lab.dir, &case.name);
        std::fs::rename(&log, log.with_extension("first.log")).context("keeping a log")?;
    }
    let again = Group { name: format!("{}.late", group.name), entry: group.entry.clone(), cases };
    for mut outcome in run_group(lab, &again)? {
        match outcomes.iter_mut().find(|o| o.name == outcome.name) {
            Some(first) => {
                let notes = [&first.note, &first.why.join("; "), &outcome.note];
                let notes: Vec<&str> =
                    notes.iter().map(|n| n.as_str()).filter(|n| !n.is_empty()).collect();
                outcome.again = true;
                outcome.note = format!("run again, alone: {}", notes.join("; "));
                *first = outcome;
            }
            None => outcomes.push(outcome),
        }
    }
    Ok(())
}

/// Boots until every case of the group had its turn.
fn run_group(lab: &Lab, group: &Group<'_>) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    let mut left = group.cases.as_slice();
    // The case that QEMU itself hung, and how that shows.
    let mut again: Option<(&str, String)> = None;
    for attempt in 1.. {
        if left.is_empty() {
            break;
        }
        let name = &group.name;
        let name = if attempt == 1 { name.clone() } else { format!("{name}.{attempt}") };
        let console = boot(lab, &name, &group.entry, left)?;
        let done = console.steps.len().min(left.len());
        for (case, section) in left.iter().zip(&console.steps) {
            let mut outcome = judge(lab, case, section)?;
            if let Some((_, lost)) = again.take_if(|(name, _)| *name == case.name) {
                outcome.again = true;
                outcome.note = format!("run again: {lost}");
            }
            outcomes.push(outcome);
        }
        left = &left[done..];
        if console.end == End::Complete {
            outcomes.push(l1_log(&name, &console));
            for case in left {
                let why = vec!["L1 ended its plan without running this".into()];
                outcomes.push(Outcome::new(&case.name, Status::Failed, why));
            }
            break;
        }
        let Some((case, rest)) = left.split_first() else {
            // Every case ended, and then L1 went away.
            outcomes.push(l1_log(&name, &console));
            break;
        };
        if let (Some(lost), None) = (&console.hang.lost, &again) {
            // L1 could not go on, whatever it ran.
            eprintln!("{}: {lost} (see {name}.log); it runs again", case.name);
            again = Some((&case.name, lost.clone()));
            continue;
        }
        let log = write_log(lab, case, &console.tail)?;
        let how = if console.end == End::TimedOut { "L1 hung" } else { "L1 died" };
        let why = std::iter::once(format!("{how} while this ran"))
            .chain(console.hang.cpus)
            .chain(last_words(&console.tail))
            .collect();
        outcomes.push(Outcome {
            again: again.take().is_some(),
            note: console.hang.lost.unwrap_or_default(),
            log: Some(log),
            records: console.tail.records,
            ..Outcome::new(&case.name, Status::Failed, why)
        });
        left = rest;
    }
    Ok(outcomes)
}

fn boot(lab: &Lab, name: &str, entry: &BootEntry, cases: &[&Case]) -> Result<Console> {
    let sections: usize = cases.iter().map(|case| case.counted).sum();
    let counted = entry.lane == Lane::Vmx && sections > 0;
    let points = counted.then(|| Points::of(&lab.kernel)).transpose()?;
    let plan: Vec<Step> = cases.iter().map(|c| c.step.clone()).collect();
    let initrd = lab.dir.join(format!("{name}.initrd"));
    let client = cases.iter().any(|c| c.client);
    let kernel = match entry.kernel {
        Flavour::Plain => &lab.kernel,
        Flavour::Debug => lab.debug.as_ref().context("no debug kernel was built")?,
        Flavour::Stock => lab.stock.as_ref().context("no kernel of Debian's")?,
    };
    let kernels = Kernels { l1: kernel, l2: &lab.kernel, stock: lab.stock.as_ref() };
    paths::write_atomic(&initrd, &lab.programs.l1(&kernels, &plan, client)?)?;
    let cmdline =
        format!("{} {}", entry.lane.l1_cmdline(entry.cpus(), entry.mips()), entry.cmdline);
    let boot = Boot {
        name,
        lane: entry.lane,
        kernel: &kernel.bzimage,
        initrd: &initrd,
        cpus: entry.cpus(),
        mem_mib: entry.mem_mib(),
        cmdline: cmdline.trim(),
        disk_mib: entry.disk_mib,
        one_cpu: !entry.parallel,
        icount: entry.icount,
        mips: entry.mips(),
        log: lab.dir.join(format!("{name}.log")),
        debugger: points.as_ref().map(|points| points.script(sections)),
        limits: plan.iter().map(|step| entry.limit(step)).collect(),
    };
    let mut console = boot.run()?;
    if let Some(points) = points {
        let mut probes = points.read(&boot.debugger_log()).into_iter();
        for (case, section) in cases.iter().zip(&mut console.steps) {
            // The last record has to stay the step's own.
            let of_case: Vec<Record> = probes.by_ref().take(case.counted).collect();
            section.records.splice(0..0, of_case);
        }
    }
    Ok(console)
}

fn judge(lab: &Lab, case: &Case, section: &Section) -> Result<Outcome> {
    let step = section.records.last();
    let mut why: Vec<String> = Vec::new();
    if step.is_some_and(|s| {
        s.value.get("timed_out").and_then(serde_json::Value::as_bool) == Some(true)
    }) {
        why.push(format!("timed out after {} s", case.step.timeout_s));
    }
    if let Some(name) = step.map(|s| s.text("name")).filter(|n| *n != case.name) {
        why.push(format!("L1 ran {name} in its place"));
    }
    let mut records = section.records.clone();
    records.iter_mut().for_each(figures::derive);
    why.extend(section.broken.iter().map(|line| format!("a record was cut: {}", shorten(line))));
    let (wrong, slow) = expect::unmet(&case.expect, &records);
    why.extend(wrong);
    // Where time is a count of instructions nothing is late because of this machine.
    let late = why.is_empty() && !slow.is_empty() && !case.counts_time;
    why.extend(slow);
    let ms = u64::try_from(section.took.as_millis()).unwrap_or(u64::MAX);
    let status = if why.is_empty() { Status::Passed } else { Status::Failed };
    let log = Some(write_log(lab, case, section)?);
    Ok(Outcome { late, ms, log, records, ..Outcome::new(&case.name, status, why) })
}

/// The kernel log of L1 counts as a case: what it complains of concerns all of them.
fn l1_log(name: &str, console: &Console) -> Outcome {
    let report =
        console.tail.records.iter().find(|r| r.kind() == "dmesg" && r.text("where") == "l1");
    let mut why: Vec<String> = match report.and_then(|r| r.value.get("bad")?.as_array()) {
        Some(bad) => bad.iter().map(|l| l.as_str().unwrap_or("?").to_owned()).collect(),
        None => vec!["L1 did not report its kernel log".into()],
    };
    if console.end != End::Complete {
        why.push("L1 did not end as it should".into());
        why.extend(console.hang.cpus.iter().cloned());
        why.extend(last_words(&console.tail));
    }
    let status = if why.is_empty() { Status::Passed } else { Status::Failed };
    let name = format!("{name}: kernel log of L1 is clean");
    Outcome::new(&name, status, why)
}

/// The lines that tell why, or else the last ones.
fn last_words(section: &Section) -> Vec<String> {
    const TELLING: [&str; 7] =
        ["Kernel panic", "BUG:", "WARNING:", "RIP: 0010", "Out of memory", "qemu: ", "bochs: "];
    let telling: Vec<String> = section
        .lines
        .iter()
        .filter(|l| TELLING.iter().any(|t| l.contains(t)))
        .map(|l| shorten(l))
        .take(6)
        .collect();
    if !telling.is_empty() {
        return telling;
    }
    let start = section.lines.len().saturating_sub(5);
    section.lines[start..].iter().map(|l| shorten(l)).collect()
}

fn shorten(line: &str) -> String {
    if line.chars().count() <= 160 {
        line.to_owned()
    } else {
        line.chars().take(157).collect::<String>() + "..."
    }
}

fn write_log(lab: &Lab, case: &Case, section: &Section) -> Result<PathBuf> {
    let path = log_path(&lab.dir, &case.name);
    let mut text = section.lines.join("\n");
    text.push('\n');
    paths::write_atomic(&path, text.as_bytes()).with_context(|| format!("log of {}", case.name))?;
    Ok(path)
}

fn log_path(dir: &Path, name: &str) -> PathBuf {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '-' };
    dir.join("cases").join(format!("{}.log", name.chars().map(safe).collect::<String>()))
}
