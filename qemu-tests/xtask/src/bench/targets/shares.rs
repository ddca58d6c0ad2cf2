//! Shares: of faults that parked, of the vCPU, and of a bystander's time.

use super::{EXACT, OURS, Verdict};
use crate::bench::row::{Bench, Row};

/// System calls on user data in code that may sleep.
const SLEEPABLE: [&str; 5] = ["kernel_read", "kernel_write", "page_cache", "futex_wait", "execve"];
/// The latency of the useful shares.
const LONG_US: u64 = 10_000;

/// Of system calls on user data in code that may sleep.
pub(super) fn kernel_parked(bench: &Bench, lane: &str, out: &mut Vec<Verdict>) {
    for mode in OURS {
        let verdict =
            Verdict::new(format!("kernel-mode faults that parked, {mode} ({lane})"), ">= 99 %");
        let rows: Vec<&Row> =
            SLEEPABLE.iter().flat_map(|workload| bench.of(lane, mode, workload)).collect();
        let sum = |field: &str| rows.iter().filter_map(|row| row.number(field)).sum::<f64>();
        let (faults, parked) = (sum("kernel_faults"), sum("kernel_parked"));
        if rows.is_empty() || faults == 0.0 {
            if mode == "injected" || lane == EXACT {
                out.push(verdict);
            }
            continue;
        }
        let of_workload = |name: &str| {
            let sum = |field: &str| {
                rows.iter()
                    .filter(|row| row.key.workload == name)
                    .filter_map(|row| row.number(field))
                    .sum::<f64>()
            };
            format!("{name} {}/{}", sum("kernel_parked"), sum("kernel_faults"))
        };
        let count = SLEEPABLE.map(of_workload).join(", ");
        let share = parked / faults;
        out.push(verdict.is(format!("{:.1} %", share * 100.0), share >= 0.99, count));
    }
}

/// Of the workloads with faults, the worst: those at long latencies, and the others.
pub(super) fn useful(bench: &Bench, lane: &str, out: &mut Vec<Verdict>) {
    const KINDS: [&str; 3] = [
        "worst workload at 10 ms",
        "tasks that work between touches, at a shorter latency",
        "tasks that only touch, worst of the shorter latencies",
    ];
    // Nobody computes, tasks wait for each other, or are themselves busy starting programs.
    const NOT_SHARED: [&str; 8] = [
        "one_at_a_time_alone",
        "one_at_a_time_counted",
        "bystander",
        "bystander_kernel",
        "burst",
        "execve",
        "restore",
        "rate",
    ];
    let kind = |row: &Row| match row.key.latency_us {
        LONG_US => KINDS[0],
        _ if row.key.workload == "work_touch" => KINDS[1],
        _ => KINDS[2],
    };
    for mode in OURS {
        for what in KINDS {
            let verdict = Verdict::new(
                format!("useful share over its bound, {what}, {mode} ({lane})"),
                ">= 0.95",
            );
            let rows = bench.records.iter().filter(|row| {
                let key = &row.key;
                let ours = key.lane == lane && key.mode == mode && key.vcpus == 1;
                let other = NOT_SHARED.contains(&key.workload.as_str());
                ours && !other && row.all_faults() > 0.0 && kind(row) == what
            });
            let share = |row: &Row| Some(row.number("useful_share")? / row.number("bound")?);
            let worst =
                rows.filter_map(|row| Some((row, share(row)?))).min_by(|a, b| a.1.total_cmp(&b.1));
            match worst {
                Some((row, share)) => {
                    let count = format!("{}{}", lost(row), of_a_fault(bench, lane, mode));
                    out.push(verdict.is(format!("{share:.3}"), share >= 0.95, count));
                }
                None if mode == "injected" || lane == EXACT => out.push(verdict),
                None => {}
            }
        }
    }
}

/// Where the rest of the useful share went.
fn lost(row: &Row) -> String {
    let mut text = format!(
        "{} at {} us: {:.0} us of no use per fault ({:.2} faults/ms)",
        row.key.workload,
        row.key.latency_us,
        lost_us(row),
        1000.0 * row.all_faults() / row.number("wall_us").unwrap_or(1.0).max(1.0),
    );
    if let Some(suspended) = row.number("suspended").filter(|n| *n > 0.0) {
        text.push_str(&format!(", {suspended} of {} suspended the vCPU", row.all_faults()));
    }
    text
}

/// Wall time per fault that was of no use.
fn lost_us(row: &Row) -> f64 {
    let (share, wall) =
        (row.number("useful_share").unwrap_or(0.0), row.number("wall_us").unwrap_or(0.0));
    (1.0 - share) * wall / row.all_faults().max(1.0)
}

/// What a computing task gets beside system calls.
pub(super) fn against_stock(bench: &Bench, lane: &str, out: &mut Vec<Verdict>) {
    for mode in OURS {
        let verdict = Verdict::new(
            format!("useful share against kvm-apf, system calls at 10 ms, {mode} ({lane})"),
            ">= 5 times, or the bound",
        );
        let pairs = SLEEPABLE[..3].iter().filter_map(|workload| {
            let share = |mode: &str| {
                let row = bench.of(lane, mode, workload).find(|r| r.key.latency_us == LONG_US)?;
                Some((row.number("useful_share")?, row.number("bound")?))
            };
            let ((ours, bound), (stock, _)) = (share(mode)?, share("kvm-apf")?);
            Some((*workload, ours, bound, stock))
        });
        let ratio = |p: &(&str, f64, f64, f64)| p.1 / p.3.max(1e-4);
        let worst = pairs.min_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        match worst {
            Some(p) => out.push(verdict.is(
                format!("{:.1} times", ratio(&p)),
                ratio(&p) >= 5.0 || p.1 >= 0.95 * p.2,
                format!("{}: {:.3} of {:.2}, kvm-apf {:.3}", p.0, p.1, p.2, p.3),
            )),
            None if mode == "injected" || lane == EXACT => out.push(verdict),
            None => {}
        }
    }
}

/// Of the worse of user-mode faults and system calls.
pub(super) fn bystander(bench: &Bench, lane: &str, out: &mut Vec<Verdict>) {
    for mode in OURS {
        let verdict =
            Verdict::new(format!("bystander p99 over no-fault p99, {mode} ({lane})"), "<= 1.1");
        let ratios = ["bystander", "bystander_kernel"].iter().flat_map(|w| bench.of(lane, mode, w));
        let worst = ratios
            .filter_map(|row| {
                let (p99, quiet) =
                    (row.number("bystander_p99_us")?, row.number("bystander_quiet_p99_us")?);
                Some((p99 / quiet.max(1.0), p99, quiet, row.key.workload.as_str()))
            })
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match worst {
            Some((ratio, p99, quiet, workload)) => out.push(verdict.is(
                format!("{ratio:.2}"),
                ratio <= 1.1,
                format!(
                    "{workload}: {p99} us against {quiet} us; kvm-apf {}, blocking {}{}",
                    bystander_ratio(bench, lane, "kvm-apf", workload),
                    bystander_ratio(bench, lane, "blocking", workload),
                    of_a_fault(bench, lane, mode)
                ),
            )),
            None if mode == "injected" || lane == EXACT => out.push(verdict),
            None => {}
        }
    }
}

fn bystander_ratio(bench: &Bench, lane: &str, mode: &str, workload: &str) -> String {
    bench
        .of(lane, mode, workload)
        .find_map(|row| {
            Some(row.number("bystander_p99_us")? / row.number("bystander_quiet_p99_us")?.max(1.0))
        })
        .map_or_else(|| "not measured".into(), |ratio| format!("{ratio:.2}"))
}

/// What a fault takes of the vCPU's CPU, one at a time.
fn of_a_fault(bench: &Bench, lane: &str, mode: &str) -> String {
    bench.of(lane, mode, "one_at_a_time").next().map_or_else(String::new, |row| {
        format!(
            "; one at a time a fault takes {:.0} us of the vCPU's CPU, its host's part included",
            lost_us(row)
        )
    })
}
