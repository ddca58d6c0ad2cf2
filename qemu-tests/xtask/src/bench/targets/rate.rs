//! What more vCPUs bring.

use super::{EXACT, OURS, Verdict};
use crate::bench::row::{Bench, Row};

/// Of four vCPUs over one of the same VM.
pub(super) fn of_vcpus(bench: &Bench, out: &mut Vec<Verdict>) {
    for mode in OURS {
        let verdict =
            Verdict::new(format!("faults/s of 4 vCPUs over 1 vCPU, {mode} ({EXACT})"), ">= 3.5");
        match (bench.rate(EXACT, mode, 1), bench.rate(EXACT, mode, 4)) {
            (Some(one), Some(four)) => out.push(judge(verdict, one, four)),
            _ if mode == "injected" => out.push(verdict),
            _ => {}
        }
    }
}

fn judge(verdict: Verdict, one: &Row, four: &Row) -> Verdict {
    let number = |row: &Row, name: &str| row.number(name).unwrap_or(0.0);
    let rate = |row: &Row| number(row, "faults_per_s");
    let ratio = rate(four) / rate(one).max(1.0);
    // Of a vCPU, which is busy all the time.
    let cost =
        |row: &Row| f64::from(row.key.vcpus) * 1e6 / rate(row).max(1.0) - number(row, "work_us");
    verdict.is(
        format!("{ratio:.2}"),
        ratio >= 3.5,
        format!(
            "{} against {} faults/s of simulated time, with {} us of work before each; a fault costs {:.0} us of a vCPU, with one {:.0} us; the pager was late by {:.0} us, with one {:.0} us; {:.2} exits/fault, with one {:.2}",
            rate(four),
            rate(one),
            number(one, "work_us"),
            cost(four),
            cost(one),
            number(four, "pager_late_us"),
            number(one, "pager_late_us"),
            number(four, "exits_per_fault"),
            number(one, "exits_per_fault"),
        ),
    )
}
