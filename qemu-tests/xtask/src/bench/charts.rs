//! Which charts there are, and what is in them.

use super::chart::{Bar, Group, Line, Scale, bars, lines};
use super::row::{Bench, COUNTED, Row};
use super::summary::{BreakEven, MODES};

mod whole_vm;

/// Reasons of exits, in the order in which they are stacked.
pub(super) const REASONS: [(&str, &str); 7] = [
    ("fault", "the fault"),
    ("doorbell", "doorbell or ACK"),
    ("kick", "kick"),
    ("halt", "halt ended"),
    ("window", "interrupt window"),
    ("eoi", "EOI"),
    ("waited", "vCPU stopped"),
];

/// Title, note, and the chart, if there is something to draw.
pub(super) type Chart = (&'static str, String, Option<String>);

/// All charts of a lane.
pub(super) fn charts(bench: &Bench, lane: &str) -> Vec<Chart> {
    let line = |field: &str| by_latency(bench, lane, field);
    let marks: Vec<(String, f64, String)> = MODES[1..]
        .iter()
        .filter_map(|mode| match bench.break_even(lane, mode)? {
            BreakEven::At(us) => Some((format!("m-{mode}"), us, format!("L* {mode}: {us:.0} us"))),
            _ => None,
        })
        .collect();
    let outside: Vec<String> = MODES[1..]
        .iter()
        .filter_map(|mode| match bench.break_even(lane, mode)? {
            BreakEven::At(_) => None,
            other => Some(format!("L* {mode} {other}.")),
        })
        .collect();
    vec![
        (
            "Exits per fault, by reason.",
            format!("One at a time, eight at a time, on one page, and in system calls.{}", eoi(bench, lane, "one_at_a_time_alone")),
            exits(bench, lane),
        ),
        ("Exits per fault in bursts.", "Tasks that fault together.".into(), bursts(bench, lane)),
        (
            "Useful share over latency.",
            "CPU time of the computing task beside eight that fault; its bound is 1.".into(),
            lines("useful share", ("latency, us", "share"), Scale::Linear, &line("useful_share"), Some((1.0, "bound")), &[]),
        ),
        (
            "What a fault costs the vCPU, over latency.",
            format!("us of the vCPU that the computing task loses per fault. Below L* a stopped vCPU is cheaper. {}", outside.join(" ")),
            lines("cost", ("latency, us", "us"), Scale::Log, &line("cost_us_per_fault"), None, &marks),
        ),
        (
            "Kernel-mode faults that parked.",
            "%".into(),
            parked(bench, lane),
        ),
        (
            "Bystander.",
            "p99 of how late a task is that has nothing to do with the faults, over the same without faults.".into(),
            bystander(bench, lane),
        ),
        (
            "Instructions of the guest.",
            "Median, hypercalls excluded: from the exception to __schedule(), and from interrupt to runnable.".into(),
            instructions(bench, lane, &[("park", "guest_insns_park"), ("wake", "guest_insns_wake")]),
        ),
        (
            "Instructions of the host per fault.",
            "KVM, its threads and the pager; the same pager in each mode.".into(),
            instructions(bench, lane, &[("host", "host_insns_per_fault")]),
        ),
        (
            "Exits per fault over vCPUs.",
            format!("One pager; tasks that work, then touch a page.{}", eoi(bench, lane, "rate")),
            whole_vm::vcpus(bench, lane),
        ),
        (
            "Faults per second over vCPUs, by instructions.",
            "Times one vCPU's: what a fault takes of all CPUs, and how that grows.".into(),
            whole_vm::speed(bench, lane),
        ),
        (
            "A restored server's first right answer.",
            "ms, with no page of the VM's memory there at first; and until all clients had all their answers.".into(),
            whole_vm::restored(bench, lane),
        ),
        (
            "A restored server's answers.",
            "us from a request to its answer while the memory comes back.".into(),
            whole_vm::answers(bench, lane),
        ),
    ]
}

/// What to know of this workload's exits.
fn eoi(bench: &Bench, lane: &str, workload: &str) -> String {
    let without =
        |row: &Row| row.key.lane == lane && row.key.workload == workload && row.without_pv_eoi();
    if !bench.records.iter().any(without) {
        return String::new();
    }
    format!(" PV EOI is off in {workload}: a completion interrupt has one exit more.")
}

fn by_latency(bench: &Bench, lane: &str, field: &str) -> Vec<Line> {
    #[expect(clippy::cast_precision_loss, reason = "microseconds")]
    let points = |mode: &str| -> Vec<(f64, f64)> {
        bench
            .of(lane, mode, "user_touch")
            .filter_map(|row| Some((row.key.latency_us as f64, row.number(field)?)))
            .collect()
    };
    MODES
        .iter()
        .map(|mode| Line { class: format!("m-{mode}"), name: (*mode).into(), points: points(mode) })
        .filter(|line| !line.points.is_empty())
        .collect()
}

/// A bar of one colour.
fn plain(mode: &str, value: f64, what: String) -> Bar {
    Bar { label: abbreviated(mode), parts: vec![(format!("m-{mode}"), value, what)] }
}

fn abbreviated(mode: &str) -> String {
    match mode {
        "blocking" => "blk",
        "kvm-apf" => "apf",
        "injected" => "inj",
        _ => "hw",
    }
    .to_owned()
}

fn stacked(row: &Row) -> Bar {
    let counts = row.by_reason();
    let faults = row.all_faults().max(1.0);
    let part = |(reason, name): &(&str, &str)| {
        let n = counts.iter().find(|(r, _)| r == reason)?.1 / faults;
        (n > 0.0).then(|| (format!("r-{reason}"), n, format!("{n:.2} {name}")))
    };
    Bar { label: abbreviated(&row.key.mode), parts: REASONS.iter().filter_map(part).collect() }
}

/// A group of what `pick` finds in each mode.
fn group(label: &str, pick: impl Fn(&str) -> Option<Bar>) -> Option<Group> {
    let bars: Vec<Bar> = MODES.iter().filter_map(|mode| pick(mode)).collect();
    (!bars.is_empty()).then(|| Group { label: label.to_owned(), bars })
}

fn exits(bench: &Bench, lane: &str) -> Option<String> {
    let workloads = [
        ("one_at_a_time_alone", "one at a time"),
        ("user_touch", "8 tasks, 1 ms"),
        ("same_page", "same page"),
        ("kernel_read", "read()"),
    ];
    let groups: Vec<Group> = workloads
        .into_iter()
        .filter_map(|(workload, label)| {
            group(label, |mode| {
                let mut rows = bench.of(lane, mode, workload);
                let row = rows.find(|r| workload != "user_touch" || r.key.latency_us == 1000)?;
                Some(stacked(row))
            })
        })
        .collect();
    bars("exits per fault", "exits", Scale::Linear, &groups, None)
}

fn bursts(bench: &Bench, lane: &str) -> Option<String> {
    let groups: Vec<Group> = [1, 4, 16, 62]
        .into_iter()
        .filter_map(|tasks| {
            let of = |mode: &str| {
                bench.of(lane, mode, "burst").find(|row| row.key.tasks == tasks).map(stacked)
            };
            group(&format!("{tasks}"), of)
        })
        .collect();
    bars("exits per fault in bursts", "exits", Scale::Linear, &groups, None)
}

fn parked(bench: &Bench, lane: &str) -> Option<String> {
    let workloads = [
        ("kernel_read", "read()"),
        ("kernel_write", "write() to a pipe"),
        ("page_cache", "page cache"),
        ("execve", "execve()"),
        ("futex_wait", "futex"),
    ];
    let groups: Vec<Group> = workloads
        .into_iter()
        .filter_map(|(workload, label)| {
            group(label, |mode| {
                let row = bench.of(lane, mode, workload).last()?;
                let (parked, all) = (row.number("kernel_parked")?, row.number("kernel_faults")?);
                Some(plain(mode, 100.0 * parked / all, format!("{parked} of {all}")))
            })
        })
        .collect();
    bars("kernel-mode faults that parked", "%", Scale::Linear, &groups, None)
}

fn bystander(bench: &Bench, lane: &str) -> Option<String> {
    let groups: Vec<Group> =
        [("bystander", "beside user-mode faults"), ("bystander_kernel", "beside read()")]
            .into_iter()
            .filter_map(|(workload, label)| {
                group(label, |mode| {
                    let row = bench.of(lane, mode, workload).last()?;
                    let (p99, quiet) =
                        (row.number("bystander_p99_us")?, row.number("bystander_quiet_p99_us")?);
                    Some(plain(
                        mode,
                        p99 / quiet.max(1.0),
                        format!("{p99} us, {quiet} us without faults"),
                    ))
                })
            })
            .collect();
    bars("bystander", "times", Scale::Log, &groups, Some((1.1, "1.1")))
}

fn instructions(bench: &Bench, lane: &str, fields: &[(&str, &str)]) -> Option<String> {
    let groups: Vec<Group> = fields
        .iter()
        .filter_map(|(label, field)| {
            group(label, |mode| {
                let n = bench.of(lane, mode, COUNTED).find_map(|row| row.number(field))?;
                Some(plain(mode, n, format!("{n} instructions")))
            })
        })
        .collect();
    bars("instructions", "instructions", Scale::Linear, &groups, None)
}
