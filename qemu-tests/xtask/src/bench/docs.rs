//! docs/performance.md and docs/bench.md.

use super::fields;
use super::picture::{self, Pictures};
use super::row::{Bench, Row};
use super::sections;
use super::summary::{BreakEven, MODES};
use super::targets;
use std::fmt::Write;

/// The targets as a table in Markdown.
pub(super) fn targets(bench: &Bench) -> String {
    let mut out =
        String::from("| figure | target | measured | met | count |\n|---|---|---|---|---|\n");
    for v in targets::all(bench) {
        let met = match v.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "-",
        };
        let measured = v.measured.as_deref().unwrap_or("-");
        let _ = writeln!(out, "| {} | {} | {measured} | {met} | {} |", v.figure, v.target, v.count);
    }
    out
}

/// docs/performance.md, which has these pictures beside it.
pub(super) fn performance(bench: &Bench, pictures: &Pictures) -> String {
    let kind = if bench.quick { "a quick run (`--quick`)" } else { "a full run" };
    let mut out = format!(
        "# Performance\n\n\
         Written by `cargo xtask bench --docs` from target/bench/bench.json of {kind}, kernel {}. The fields of that file are\n\
         described in [bench.md](bench.md), what the figures mean in\n\
         [note 4](notes/0004-how-it-is-measured.md). PREEMPT, HZ=250, built with -O2; the same kernel in L1 and L2, the same VMM, pager,\n\
         workload and latency in every mode. Beside the tasks that fault one computes; where none does there is no useful share. Compare\n\
         rows with as many CPUs of L1 and instructions in a microsecond (mips) only. On svm, where times are the emulator's, what tasks do\n\
         of their own is an estimate, and a share can come out above 1.\n",
        bench.kernel
    );
    for name in bench.lanes() {
        let _ = writeln!(out, "\n* {name}: {}", bench.about(name));
    }
    out.push_str("\n* hardware-polling: hardware mode with a host that polls for submissions and gathers completions, `kvm.ve_apf_poll_ns` and\n  `kvm.ve_apf_gather_ns` as the boot of the case `polling` has them in qemu-tests/cases/bench.toml\n");
    let [met, not_met, unknown] = targets::counts(&targets::all(bench));
    let _ = write!(
        out,
        "\n## What must lead\n\n{met} figures are met, {not_met} are not, {unknown} were not measured. Where one is not met, the count says what bounds it; what the guest's instructions are made of is in note 4.\n\n{}",
        targets(bench)
    );
    if bench.runs > 1 {
        let differ =
            if bench.differences.is_empty() { "none".into() } else { bench.differences.join("; ") };
        let _ = write!(
            out,
            "\nRun {} times; exact fields that differed by more than 1 %: {differ}.\n",
            bench.runs
        );
    }
    for lane in bench.lanes() {
        if pictures.contains_key(lane) {
            let file = picture::name(lane);
            let _ = write!(out, "\n## {lane}\n\n![charts of {lane}]({file})\n");
        }
        let _ = write!(out, "\n## {lane}: break-even\n\n{}", break_even(bench, lane));
        out.push_str(&sections::sections(bench, lane));
        let _ = write!(out, "\n## {lane}: records\n\n{}", table(bench, lane));
    }
    out.push_str(LIMITS);
    out
}

fn break_even(bench: &Bench, lane: &str) -> String {
    let mut out = String::from(
        "The latency L* below which a stopped vCPU costs less than a task that parks (`cost_us_per_fault` of user_touch):\n\n\
         | mode | L* |\n|---|---|\n",
    );
    for mode in &MODES[1..] {
        if let Some(at) = bench.break_even(lane, mode) {
            let _ = writeln!(out, "| {mode} | {at} |");
        }
    }
    out.push_str("\nWhat needs no waiting the host resolves at once, and nothing parks: it first asks for the page with FOLL_NOWAIT.");
    let ours = MODES[2..].iter().filter_map(|mode| bench.break_even(lane, mode));
    if ours.clone().count() > 0 && ours.into_iter().all(|at| matches!(at, BreakEven::Below(_))) {
        out.push_str(" Below the\nshortest latency here there is nothing else, so that there is no wait that had better not be parked.");
    }
    out.push('\n');
    out
}

fn table(bench: &Bench, lane: &str) -> String {
    let mut out = String::from(
        "| workload | vCPUs | tasks | L, us | mode | CPUs | mips | faults | parked | exits/fault | by reason | useful share | p50 - L, us | p99 - L, us |\n\
         |---|--:|--:|--:|---|--:|--:|--:|--:|--:|---|--:|--:|--:|\n",
    );
    let mut rows: Vec<&Row> =
        bench.records.iter().filter(|r| r.key.lane == lane && r.all_faults() > 0.0).collect();
    let mode = |row: &Row| MODES.iter().position(|m| *m == row.key.mode);
    rows.sort_by_key(|r| {
        (r.key.workload.clone(), r.key.vcpus, r.key.tasks, r.key.latency_us, mode(r))
    });
    let (mut unresolved, mut without_pv_eoi) = (false, false);
    for row in rows {
        let number = |name: &str, digits: usize| {
            row.number(name).map_or_else(|| "-".into(), |n| format!("{n:.digits$}"))
        };
        let parked =
            row.number("parked").unwrap_or(0.0) + row.number("kernel_parked").unwrap_or(0.0);
        let late =
            row.values.get("latency_resolved").and_then(serde_json::Value::as_bool) == Some(false);
        unresolved |= late;
        without_pv_eoi |= row.without_pv_eoi();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {}{} | {} | {} | {} | {:.0} | {:.1} % | {}{} | {} | {} | {} | {} |",
            row.key.workload,
            row.key.vcpus,
            row.key.tasks,
            row.key.latency_us,
            if late { " (!)" } else { "" },
            row.key.mode,
            number("l1_cpus", 0),
            number("mips", 0),
            row.all_faults(),
            100.0 * parked / row.all_faults(),
            number("exits_per_fault", 2),
            if row.without_pv_eoi() { " (e)" } else { "" },
            row.reasons(),
            number("useful_share", 3),
            number("late_p50_us", 0),
            number("late_p99_us", 0),
        );
    }
    if unresolved {
        out.push_str("\n(!): the pager delivered later than asked for by more than a fifth of the latency, on this emulator: compare the\nmodes with each other, not with the latency.\n");
    }
    if without_pv_eoi {
        out.push_str("\n(e): PV EOI is off (note 4), so that each completion interrupt has one exit more, `eoi`.\n");
    }
    out
}

const LIMITS: &str = "
## Not measured

* No faults: timer ticks, which meet each boot elsewhere; an idle vCPU, whose time passes without instructions; and fork() and
  execve(), of which no two take the same number of instructions.
* Instructions per fault under svm: QEMU has nothing that counts them between two addresses, with -icount or without.
";

/// docs/bench.md.
pub(super) fn schema() -> String {
    let mut out = String::from(
        "# bench.json\n\n\
         `cargo xtask bench` writes target/bench/bench.json and target/bench/report.html; `--quick` leaves out what takes long, `--runs 2` checks that what\n\
         is exact repeats within 1 %, `--docs` writes docs/performance.md, its pictures and this page. A file has `schema` (3), `quick`, `runs`,\n\
         `kernel` (a hash of its version, patches, Rust sources, configuration and compilers, not a commit), `differences` (exact fields\n\
         that did not repeat) and `records`. No two records have the same `lane` (svm, vmx), `mode`\n\
         (blocking, kvm-apf, injected, hardware, hardware-polling), `workload`, `vcpus`, `tasks` and `latency_us`. Injected mode is what the case\n\
         tables call ve-apf. Of the fields below each record has all. One that has no value is null, and `absent` says why; of the others\n\
         `how` says how they were taken, and `exact` lists those that repeat.\n\n\
         | field | meaning | how | exact |\n|---|---|---|---|\n",
    );
    for field in fields::all() {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            field.name,
            field.what,
            field.how,
            field.exact.name()
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::row::SCHEMA;
    use super::super::row::tests::{bench, row};
    use super::*;
    use crate::cases::Mode;
    use crate::paths;
    use serde_json::json;

    #[test]
    fn the_schema_is_documented() {
        let page = std::fs::read_to_string(paths::root().join("docs/bench.md")).unwrap();
        assert_eq!(
            page,
            schema(),
            "`cargo xtask bench --from target/bench/bench.json --docs` writes it"
        );
        assert!(schema().contains(&format!("`schema` ({SCHEMA})")));
    }

    #[test]
    fn the_page_says_how_it_was_run_and_which_latencies_were_not_kept() {
        let late = json!({"pager": {"deliveries": 1, "late_us": 9000}});
        let records = vec![
            row(Mode::VeApf, "user_touch", late),
            row(Mode::Blocking, "user_touch", json!({})),
        ];
        let mut bench = Bench { kernel: "abc".into(), ..bench(records) };
        let page = performance(&bench, &picture::pictures(&bench));
        assert!(
            page.contains("quick run") && page.contains("kernel abc") && page.contains("10000 (!)")
        );
        let blocking = page.lines().find(|l| l.contains("| blocking |")).unwrap();
        assert!(
            blocking.contains("| 10000 | blocking | 1 | 200 | 100 | 99.0 % | 2.00 |"),
            "{blocking}"
        );
        bench.quick = false;
        assert!(performance(&bench, &Pictures::new()).contains("full run"));
        let columns = |line: &str| line.matches(" | ").count();
        assert!(targets(&bench).lines().skip(2).all(|line| columns(line) == 4));
    }
}
