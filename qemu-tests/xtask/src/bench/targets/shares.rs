//! Shares: of faults that parked, of the vCPU, and of a bystander's time.

use super::{EXACT, OURS, Verdict};
use crate::bench::row::{Bench, COUNTED, Row};

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
        let mut count = SLEEPABLE.map(of_workload).join(", ");
        // In hardware mode others are early, too: fresh pages, which KVM has at once.
        let early_one = |row: &&Row| -> Option<f64> {
            let not_parked = row.number("kernel_faults")? - row.number("kernel_parked")?;
            Some(row.number("early")?.min(not_parked.max(0.0)))
        };
        let early: f64 = rows.iter().filter_map(early_one).sum();
        if early > 0.0 {
            count.push_str(&format!(
                "; {early} had nothing to wait for, their page was there before the task slept"
            ));
        }
        let share = parked / (faults - early).max(1.0);
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
        COUNTED,
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
                    let count = format!("{}{}", lost(row), of_a_fault(bench, lane, mode, row));
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
            let of = |mode| bench.of(lane, mode, workload).find(|r| r.key.latency_us == LONG_US);
            let (row, stock) = (of(mode)?, of("kvm-apf")?);
            let (ours, bound) = (row.number("useful_share")?, row.number("bound")?);
            Some((row, ours, bound, stock.number("useful_share")?))
        });
        let ratio = |p: &(&Row, f64, f64, f64)| p.1 / p.3.max(1e-4);
        let worst = pairs.min_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        match worst {
            Some(p) => out.push(verdict.is(
                format!("{:.1} times", ratio(&p)),
                ratio(&p) >= 5.0 || p.1 >= 0.95 * p.2,
                format!("{:.3} of {:.2}, kvm-apf {:.3}; {}", p.1, p.2, p.3, lost(p.0)),
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
            .filter_map(|row| Some((bystander_p99(row)?, row)))
            .max_by(|a, b| a.0.0.total_cmp(&b.0.0));
        match worst {
            Some(((ratio, p99, quiet), row)) => {
                let workload = row.key.workload.as_str();
                let count = format!(
                    "{workload}: {p99} us against {quiet} us; kvm-apf {}, blocking {}{}",
                    bystander_ratio(bench, lane, "kvm-apf", workload),
                    bystander_ratio(bench, lane, "blocking", workload),
                    under_way(bench, lane, mode, row)
                );
                out.push(verdict.is(format!("{ratio:.2}"), ratio <= 1.1, count));
            }
            None if mode == "injected" || lane == EXACT => out.push(verdict),
            None => {}
        }
    }
}

/// The p99 beside faults over the one without, and the two.
fn bystander_p99(row: &Row) -> Option<(f64, f64, f64)> {
    let (p99, quiet) = (row.number("bystander_p99_us")?, row.number("bystander_quiet_p99_us")?);
    Some((p99 / quiet.max(1.0), p99, quiet))
}

fn bystander_ratio(bench: &Bench, lane: &str, mode: &str, workload: &str) -> String {
    bench
        .of(lane, mode, workload)
        .find_map(bystander_p99)
        .map_or_else(|| "not measured".into(), |(ratio, ..)| format!("{ratio:.2}"))
}

/// How much of the time a fault is what the vCPU's CPU does: of what more than a hundredth of the samples meet, a p99 has
/// at least one.
fn under_way(bench: &Bench, lane: &str, mode: &str, row: &Row) -> String {
    let (Some(us), Some(wall)) = (alone_us(bench, lane, mode, row), row.number("wall_us")) else {
        return String::new();
    };
    format!(
        "; a fault takes {us:.0} us of the vCPU's CPU, and with {:.2} in each ms one is under way for {:.1} % of the time",
        1000.0 * row.all_faults() / wall.max(1.0),
        100.0 * us * row.all_faults() / wall.max(1.0),
    )
}

/// What a fault takes of the vCPU's CPU, one at a time, in us of the machine that `row` is of: as many instructions.
fn alone_us(bench: &Bench, lane: &str, mode: &str, row: &Row) -> Option<f64> {
    let alone = bench.of(lane, mode, "one_at_a_time").next()?;
    let slower = match (alone.number("mips"), row.number("mips")) {
        (Some(alone), Some(here)) => alone / here,
        _ => 1.0,
    };
    Some(lost_us(alone) * slower)
}

/// The same, to be said of a figure.
fn of_a_fault(bench: &Bench, lane: &str, mode: &str, row: &Row) -> String {
    alone_us(bench, lane, mode, row).map_or_else(String::new, |us| {
        format!(
            "; one at a time a fault takes {us:.0} us of the vCPU's CPU, its host's part included"
        )
    })
}
