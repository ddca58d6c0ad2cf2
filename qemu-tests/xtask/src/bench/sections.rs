//! Parts of docs/performance.md for workloads whose figures are their own.

use super::no_faults;
use super::row::{Bench, Row};
use super::summary::MODES;
use std::fmt::Write;

impl Bench {
    /// How so many vCPUs get over missing pages.
    pub(super) fn rate(&self, lane: &str, mode: &str, vcpus: u32) -> Option<&Row> {
        self.records.iter().find(|row| {
            let key = &row.key;
            let of = key.lane == lane && key.mode == mode && key.vcpus == vcpus;
            of && key.workload == "rate"
        })
    }

    /// How much faster so many vCPUs are than one, by the instructions that a fault takes.
    pub(super) fn speedup(&self, lane: &str, mode: &str, vcpus: u32) -> Option<f64> {
        let us = |n: u32| self.rate(lane, mode, n)?.number("us_per_fault").filter(|us| *us > 0.0);
        Some(f64::from(vcpus) * us(1)? / us(vcpus)?)
    }
}

fn number(row: &Row, name: &str, digits: usize) -> String {
    row.number(name).map_or_else(|| "-".into(), |n| format!("{n:.digits$}"))
}

/// A server that is restored, and rates; nothing of what was not measured.
pub(super) fn sections(bench: &Bench, lane: &str) -> String {
    let mut out = String::new();
    let restored: Vec<&Row> =
        MODES.iter().filter_map(|mode| bench.of(lane, mode, "restore").next()).collect();
    if let Some(row) = restored.first() {
        let _ = write!(
            out,
            "\n## {lane}: a restored server\n\n\
             Debian's memcached with four threads, in a new process of the VMM that has no page of the VM's memory: each comes {} us\n\
             after somebody touched it, kernel and libraries too. {} clients, tasks of the same guest, whose connections live through\n\
             the snapshot. Every byte of every answer was compared.\n\n\
             | mode | first right answer, ms | pages by then | all {} answers, ms | p50, us | p99, us | p99 without faults, us | faults | parked | suspended | exits/fault |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
            row.key.latency_us,
            row.key.tasks,
            number(row, "answers", 0),
        );
    }
    let ms = |row: &Row, name: &str| {
        row.number(name).map_or_else(|| "-".into(), |us| format!("{:.0}", us / 1000.0))
    };
    for row in restored {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {:.0} | {} | {} | {} |",
            row.key.mode,
            ms(row, "first_answer_us"),
            number(row, "first_answer_pages", 0),
            ms(row, "all_answers_us"),
            number(row, "answer_p50_us", 0),
            number(row, "answer_p99_us", 0),
            number(row, "answer_quiet_p99_us", 0),
            row.all_faults(),
            number(row, "parked", 0),
            number(row, "suspended", 0),
            number(row, "exits_per_fault", 2),
        );
    }
    no_faults::section(&mut out, bench, lane);
    rates(&mut out, bench, lane);
    out
}

fn rates(out: &mut String, bench: &Bench, lane: &str) {
    let rows: Vec<(&str, &Row)> =
        MODES.iter().filter_map(|mode| Some((*mode, bench.rate(lane, mode, 1)?))).collect();
    if let Some((_, one)) = rows.first() {
        let _ = write!(
            out,
            "\n## {lane}: several vCPUs\n\n\
             Tasks that work {} us, then touch a page that comes after {} us, both in system calls, {} on each vCPU, with a CPU of L1 for each vCPU and one\n\
             for the pager. QEMU with -icount: the time of a fault is the instructions of all CPUs, and the speed of n vCPUs is n times that of\n\
             one over how that grows. Waiting for a lock is executed; sleeping for one is not seen, nor a pager that is the limit. PV EOI is off.\n\n\
             | mode | vCPUs | us per fault | exits/fault | speed |\n|---|--:|--:|--:|--:|\n",
            number(one, "work_us", 0),
            one.key.latency_us,
            one.key.tasks,
        );
    }
    for (mode, _) in rows {
        for (n, row) in (1..=8).filter_map(|n| Some((n, bench.rate(lane, mode, n)?))) {
            let speed = bench.speedup(lane, mode, n);
            let speed = speed.map_or_else(|| "-".into(), |speed| format!("{speed:.2}"));
            let _ = writeln!(
                out,
                "| {mode} | {n} | {} | {} | {speed} |",
                number(row, "us_per_fault", 0),
                number(row, "exits_per_fault", 2)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{bench, row};
    use super::*;
    use crate::cases::Mode;
    use serde_json::json;

    #[test]
    fn only_what_was_measured_has_a_section() {
        let mut bench = bench(vec![row(Mode::VeApf, "user_touch", json!({}))]);
        assert_eq!(sections(&bench, "vmx"), "");
        let more = json!({"first_us": 12_345, "first_pages": 678, "answers": 128, "pager": {"restored": 900}});
        bench.records.push(row(Mode::VeApf, "restore", more));
        let rate = |vcpus: u32, us: u64| {
            let more = json!({"wall_us": us * 100, "work_us": 500, "busy_vcpus": vcpus});
            let mut row = row(Mode::VeApf, "rate", more);
            row.key.vcpus = vcpus;
            row
        };
        bench.records.extend([rate(1, 1000), rate(4, 1100)]);
        let text = sections(&bench, "vmx");
        assert!(text.contains("| injected | 12 | 678 | - | - | - | - | 900 |"), "{text}");
        assert!(text.contains("| injected | 1 | 1000 | 2.00 | 1.00 |"), "{text}");
        assert!(text.contains("| injected | 4 | 1100 | 2.00 | 3.64 |"), "{text}");
    }
}
