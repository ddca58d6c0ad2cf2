//! What more vCPUs bring.

use super::{OURS, Verdict};
use crate::bench::row::{Bench, Row};
use crate::lane::Lane;

/// Of four vCPUs over one of the same VM. QEMU with -icount executes all CPUs one after the other, so a fault's time is the
/// instructions of all of them, those of waiting for a lock among them, and four CPUs at once are four times as fast.
pub(super) fn of_vcpus(bench: &Bench, out: &mut Vec<Verdict>) {
    let lane = Lane::Svm.name();
    for mode in OURS {
        let verdict =
            Verdict::new(format!("faults/s of 4 vCPUs over 1 vCPU, {mode} ({lane})"), ">= 3.5");
        match (bench.rate(lane, mode, 1), bench.rate(lane, mode, 4)) {
            (Some(one), Some(four)) => out.push(judge(bench, verdict, one, four)),
            _ if mode == "injected" => out.push(verdict),
            _ => {}
        }
    }
}

fn judge(bench: &Bench, verdict: Verdict, one: &Row, four: &Row) -> Verdict {
    let Some(ratio) = bench.speedup(&one.key.lane, &one.key.mode, 4) else { return verdict };
    let number = |row: &Row, name: &str| row.number(name).unwrap_or(0.0);
    verdict.is(
        format!("{ratio:.2}"),
        ratio >= 3.5,
        format!(
            "by instructions of all CPUs, pager not the limit: a fault takes {:.0} us of them with four, {:.0} us with one, of which {:.0} us are the task's work; {:.2} exits/fault, with one {:.2}",
            number(four, "us_per_fault"),
            number(one, "us_per_fault"),
            number(one, "work_us"),
            number(four, "exits_per_fault"),
            number(one, "exits_per_fault"),
        ),
    )
}
