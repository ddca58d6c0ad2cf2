//! `cargo xtask test`: host tests, booted cases, a summary.

use crate::cases::{self, Case, Suite};
use crate::error::{Kind, fail};
use crate::host_tests::{self, Counts};
use crate::initrd::Programs;
use crate::kernel::Flavour;
use crate::lane::Lane;
use crate::report::failures::Table;
use crate::runner::{self, Lab, Outcome, Status};
use crate::{kernel, paths, setup};
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// The name under which the filter finds the host tests.
const HOST: &str = "host tests";

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only cases whose name contains this ("host tests" is one name)
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only this lane
    #[arg(long, value_name = "LANE")]
    lane: Option<Lane>,
    /// Boot this bzImage instead of building one; it has to be patched and configured like ours
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
    /// Add a case that must fail; success means that exactly it failed
    #[arg(long)]
    self_check: bool,
    /// Also the cases that take more than two minutes each
    #[arg(long)]
    long: bool,
    /// Print the cases, run nothing
    #[arg(long)]
    list: bool,
    /// Write docs/failures.md from this run (target/test/failures.md is written always)
    #[arg(long)]
    docs: bool,
}

/// Runs it; true if everything was as it should be.
pub(crate) fn run(args: &TestArgs) -> Result<bool> {
    let dir = paths::root().join("qemu-tests/cases");
    let mut suite = cases::load(&dir, "test")?;
    if !args.long {
        suite.skip_long();
    }
    let names: Vec<&str> = suite.cases.iter().map(|case| case.name.as_str()).collect();
    let failures = Table::load(&paths::root().join("qemu-tests/failures.toml"), &names)?;
    let wanted = |name: &str| args.filter.as_deref().is_none_or(|f| name.contains(f));
    let chosen = |c: &&Case| wanted(&c.name) && args.lane.is_none_or(|l| l == c.lane);
    let host = wanted(HOST);
    let stock_wanted = suite.cases.iter().filter(chosen).any(|c| c.stock && c.skip.is_none());
    let mut stock = None;
    if stock_wanted && !args.list {
        match kernel::ensure(Flavour::Stock) {
            Ok(kernel) => stock = Some(kernel),
            Err(why) => suite.skip_stock(&format!("no kernel of Debian's: {why:#}")),
        }
    }
    let selected: Vec<&Case> = suite.cases.iter().filter(chosen).collect();
    if args.list {
        list(&selected, host);
        return Ok(true);
    }
    if selected.is_empty() && !host && !args.self_check {
        return Err(fail(
            Kind::Usage,
            "no case has that in its name",
            "see `cargo xtask test --list`",
        ));
    }
    setup::ensure()?;
    let out = paths::target().join("test");
    let mut outcomes = Vec::new();
    let mut counts = Counts::default();
    if host {
        let (outcome, n) = host_tests::run(&out.join("host-tests.log"))?;
        counts = n;
        outcomes.push(outcome);
    }
    let must_fail = if args.self_check { Some(cases::load(&dir, "self-check")?) } else { None };
    let mut self_checks = Vec::new();
    if !selected.is_empty() || must_fail.is_some() {
        let boots = selected.iter().filter(|case| case.skip.is_none()).map(|case| &case.boot);
        let debug =
            boots.flat_map(|boot| suite.boots.get(boot)).any(|b| b.kernel == Flavour::Debug);
        let lab = Lab {
            kernel: kernel::given_or_built(args.kernel.as_deref())?,
            debug: debug.then(|| kernel::ensure(Flavour::Debug)).transpose()?,
            stock,
            programs: Programs::build()?,
            dir: out.clone(),
        };
        outcomes.extend(runner::run(&lab, &suite, &selected)?);
        if let Some(suite) = &must_fail {
            let all: Vec<&Case> = suite.cases.iter().collect();
            self_checks = runner::run(&lab, suite, &all)?;
        }
    }
    let first_self_check = outcomes.len();
    outcomes.append(&mut self_checks);
    let totals = summarize(&outcomes, host.then_some(&counts));
    write_results(&out.join("results.json"), &outcomes, &totals)?;
    let page = failures.render(&outcomes);
    paths::write_atomic(&out.join("failures.md"), page.as_bytes())?;
    if args.docs {
        paths::write_atomic(&paths::root().join("docs/failures.md"), page.as_bytes())?;
    }
    let again = outcomes.iter().filter(|o| o.again).count();
    let again =
        if again == 0 { String::new() } else { format!("; {again} of them were run again") };
    println!(
        "{} passed, {} failed, {} skipped{again}",
        totals.passed, totals.failed, totals.skipped
    );
    Ok(match &must_fail {
        None => totals.failed == 0,
        Some(suite) => self_check_ok(&outcomes, first_self_check, suite),
    })
}

/// True if the cases made to fail did, for the reason they were made to, and nothing else failed.
fn self_check_ok(outcomes: &[Outcome], first: usize, suite: &Suite) -> bool {
    let (others, checks) = outcomes.split_at(first);
    let made_to_fail = |name: &str| suite.cases.iter().any(|c| c.name == name);
    let mut ok = others.iter().all(|o| o.status != Status::Failed);
    for outcome in checks {
        let as_intended = if made_to_fail(&outcome.name) {
            // One expectation, the last one, is the wrong one; the guest itself must have run well.
            let wrong =
                suite.cases.iter().find(|c| c.name == outcome.name).and_then(|c| c.expect.last());
            outcome.status == Status::Failed
                && outcome.why.len() == 1
                && wrong.is_some_and(|w| {
                    outcome.why[0].starts_with(&w.text) && outcome.why[0].contains(": is ")
                })
        } else {
            outcome.status == Status::Passed
        };
        ok &= as_intended;
    }
    let verdict =
        if ok { "ok, exactly the case made to fail was reported" } else { "FAILED, see the table" };
    println!("self-check: {verdict}");
    ok
}

fn list(cases: &[&Case], host: bool) {
    if host {
        println!("{HOST}");
    }
    for case in cases {
        let skip = case.skip.as_ref().map(|s| format!("  skipped: {s}")).unwrap_or_default();
        println!(
            "{:<40} lane={} boot={} mode={} vcpus={} expectations={}{skip}",
            case.name,
            case.lane.name(),
            case.boot,
            case.mode.name(),
            case.vcpus,
            case.expect.len()
        );
    }
}

/// What the summary line says.
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Prints the table. Host tests count one by one.
fn summarize(outcomes: &[Outcome], host: Option<&Counts>) -> Totals {
    let mut totals = Totals { passed: 0, failed: 0, skipped: 0 };
    println!();
    for outcome in outcomes {
        match (outcome.name == HOST, host) {
            (true, Some(counts)) => {
                totals.passed += counts.passed;
                totals.failed += counts.failed;
                totals.skipped += counts.ignored;
            }
            _ => match outcome.status {
                Status::Passed => totals.passed += 1,
                Status::Failed => totals.failed += 1,
                Status::Skipped => totals.skipped += 1,
            },
        }
        let word = match outcome.status {
            Status::Passed => "ok",
            Status::Failed => "FAILED",
            Status::Skipped => "skipped",
        };
        #[expect(clippy::cast_precision_loss, reason = "a duration in ms")]
        let seconds = outcome.ms as f64 / 1000.0;
        println!("{word:<8} {:<48} {seconds:>7.1} s  {}", outcome.name, outcome.note);
        for why in &outcome.why {
            println!("         {why}");
        }
        if let (Status::Failed, Some(log)) = (outcome.status, &outcome.log) {
            println!("         log: {}, which ends", log.display());
            for line in ends_with(log) {
                println!("         | {line}");
            }
        }
    }
    println!();
    totals
}

/// The last lines of a log, for whoever has only what was printed, and may have not much of that. Records are long; the
/// beginning tells enough of all but those of a machine that hangs.
fn ends_with(log: &Path) -> Vec<String> {
    const LINES: usize = 14;
    let width = |line: &str| {
        let hangs = ["\"kind\":\"hung\"", "\"kind\":\"timeout\""];
        if hangs.iter().any(|kind| line.contains(kind)) { 1500 } else { 180 }
    };
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    last.iter().map(|line| line.chars().take(width(line)).collect()).collect()
}

fn write_results(path: &Path, outcomes: &[Outcome], totals: &Totals) -> Result<()> {
    let value = json!({
        "passed": totals.passed,
        "failed": totals.failed,
        "skipped": totals.skipped,
        "cases": outcomes.iter().map(|o| {
            let results: Vec<_> = o.records.iter().filter(|r| r.kind() != "trace").map(|r| &r.value).collect();
            json!({ "name": o.name, "status": o.status, "why": o.why, "again": o.again, "note": o.note, "ms": o.ms, "log": o.log, "records": results })
        }).collect::<Vec<_>>(),
    });
    paths::write_atomic(path, serde_json::to_string_pretty(&value)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite() -> Suite {
        let dir = paths::root().join("qemu-tests/cases");
        cases::load(&dir, "self-check").unwrap()
    }

    fn outcome(name: &str, status: Status, why: &[&str]) -> Outcome {
        let why = why.iter().map(|w| (*w).to_owned()).collect();
        Outcome::new(name, status, why)
    }

    #[test]
    fn self_check_accepts_exactly_the_intended_failure() {
        let suite = suite();
        let name = suite.cases[0].name.as_str();
        let wrong = format!("{}: is 8", suite.cases[0].expect.last().unwrap().text);
        let good = || outcome("a", Status::Passed, &[]);
        let failed = || outcome(name, Status::Failed, &[&wrong]);
        assert!(self_check_ok(&[good(), failed()], 1, &suite));
        assert!(!self_check_ok(&[good(), outcome(name, Status::Passed, &[])], 1, &suite));
        assert!(!self_check_ok(
            &[good(), outcome(name, Status::Failed, &["L1 died while this ran"])],
            1,
            &suite
        ));
        assert!(!self_check_ok(&[outcome("a", Status::Failed, &["x"]), failed()], 1, &suite));
        let no_field = format!("{}: no field x", suite.cases[0].expect.last().unwrap().text);
        assert!(!self_check_ok(&[good(), outcome(name, Status::Failed, &[&no_field])], 1, &suite));
    }
}
