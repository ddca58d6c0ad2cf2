//! The figures in which ve-apf must lead: what was asked for, what was measured, and what bounds it.

use super::row::{Bench, COUNTED};

mod no_faults;
mod rate;
mod shares;

/// One figure.
#[derive(Debug)]
pub(super) struct Verdict {
    /// What it is.
    pub(super) figure: String,
    /// What is asked for.
    pub(super) target: String,
    /// What was measured, if it was.
    pub(super) measured: Option<String>,
    /// Is it met? `None`: not measured.
    pub(super) met: Option<bool>,
    /// The count behind it; where it is not met, what bounds it.
    pub(super) count: String,
}

impl Verdict {
    fn new(figure: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            figure: figure.into(),
            target: target.into(),
            measured: None,
            met: None,
            count: "not measured in this run".into(),
        }
    }

    fn is(mut self, measured: impl Into<String>, met: bool, count: impl Into<String>) -> Self {
        self.measured = Some(measured.into());
        self.met = Some(met);
        self.count = count.into();
        self
    }

    fn not_measured(mut self, why: &str) -> Self {
        self.count = why.to_owned();
        self
    }
}

/// How many are met, how many are not, and of how many it is not known.
pub(super) fn counts(verdicts: &[Verdict]) -> [usize; 3] {
    [Some(true), Some(false), None].map(|met| verdicts.iter().filter(|v| v.met == met).count())
}

/// Counts are taken where they are exact.
const EXACT: &str = "vmx";
const OURS: [&str; 2] = ["injected", "hardware"];
/// All of them.
pub(super) fn all(bench: &Bench) -> Vec<Verdict> {
    let mut out = Vec::new();
    exits(bench, &mut out);
    let lanes = bench.lanes();
    for lane in &lanes {
        shares::kernel_parked(bench, lane, &mut out);
        shares::against_stock(bench, lane, &mut out);
    }
    // Where times are an emulator's they say little of a share, unless there is nothing better.
    if let Some(best) = lanes.first() {
        shares::useful(bench, best, &mut out);
        shares::bystander(bench, best, &mut out);
    }
    instructions(bench, &mut out);
    no_faults::all(bench, &mut out);
    rate::of_vcpus(bench, &mut out);
    out
}

fn exits(bench: &Bench, out: &mut Vec<Verdict>) {
    for (what, workload, tasks, limit, polled) in [
        ("exits per fault, one at a time", "one_at_a_time_alone", 1, 2.05, 1.1),
        ("the same beside a task that computes", "one_at_a_time", 1, 2.05, 1.1),
        ("exits per fault, bursts of 16", "burst", 16, 1.15, 0.2),
    ] {
        for mode in OURS {
            let verdict = Verdict::new(format!("{what}, {mode}"), format!("<= {limit}"));
            let row = bench.of(EXACT, mode, workload).find(|row| row.key.tasks == tasks);
            out.push(match row.and_then(|row| Some((row, row.number("exits_per_fault")?))) {
                None => verdict,
                Some((row, n)) => {
                    let entered =
                        row.by_reason().iter().any(|(name, n)| name == "fault" && *n > 0.0);
                    let met = n <= limit && !(mode == "hardware" && entered);
                    verdict.is(format!("{n:.2}"), met, row.reasons())
                }
            });
        }
        if workload == "one_at_a_time" {
            continue;
        }
        let verdict =
            Verdict::new(format!("{what}, hardware with a polling host"), format!("<= {polled}"));
        let row = bench.of(EXACT, "hardware-polling", workload).find(|row| row.key.tasks == tasks);
        out.push(match row.and_then(|row| Some((row, row.number("exits_per_fault")?))) {
            None => verdict.not_measured("no host of this run polls"),
            Some((row, n)) => verdict.is(format!("{n:.2}"), n <= polled, row.reasons()),
        });
    }
}

fn instructions(bench: &Bench, out: &mut Vec<Verdict>) {
    for (what, field, limit, target) in [
        (
            "guest instructions from #VE to __schedule()",
            "guest_insns_park",
            0.7,
            "<= 0.7 of kvm-apf's",
        ),
        (
            "guest instructions from interrupt to runnable",
            "guest_insns_wake",
            0.7,
            "<= 0.7 of kvm-apf's",
        ),
        ("host instructions per fault", "host_insns_per_fault", 1.0, "<= kvm-apf's"),
    ] {
        let of = |mode: &str, field: &str| {
            bench.of(EXACT, mode, COUNTED).find_map(|row| row.number(field))
        };
        let count = |mode: &str| of(mode, field);
        for mode in OURS {
            let verdict = Verdict::new(format!("{what}, {mode}"), target);
            out.push(match (count(mode), count("kvm-apf")) {
                (Some(ours), Some(stock)) => {
                    let mut text = format!("{ours} against {stock}");
                    let scheduler = of(mode, "guest_insns_scheduler");
                    if let Some(n) = scheduler.filter(|_| field == "guest_insns_wake") {
                        text.push_str(&format!(
                            "; {n} of it are the scheduler's, from try_to_wake_up() on, which both call; {limit} of kvm-apf's are {:.0}",
                            limit * stock
                        ));
                    }
                    verdict.is(format!("{:.2}", ours / stock.max(1.0)), ours <= limit * stock, text)
                }
                _ => verdict,
            });
        }
    }
}

#[cfg(test)]
mod tests;
