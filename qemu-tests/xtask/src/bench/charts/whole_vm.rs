//! Charts of several vCPUs, and of a VM that is restored.

use super::super::chart::{Group, Line, Scale, bars, lines};
use super::super::row::{Bench, Row};
use super::super::summary::MODES;
use super::{group, plain, stacked};

/// Most vCPUs of L2.
const VCPUS: u32 = 4;

/// Exits per fault over vCPUs.
pub(super) fn vcpus(bench: &Bench, lane: &str) -> Option<String> {
    let groups: Vec<Group> = (1..=VCPUS)
        .filter_map(|n| {
            group(&format!("{n} vCPU{}", if n == 1 { "" } else { "s" }), |mode| {
                bench.rate(lane, mode, n).map(stacked)
            })
        })
        .collect();
    bars("exits per fault over vCPUs", "exits", Scale::Linear, &groups, None)
}

/// How much faster several vCPUs are than one.
pub(super) fn speed(bench: &Bench, lane: &str) -> Option<String> {
    let points = |mode: &str| -> Vec<(f64, f64)> {
        (1..=VCPUS).filter_map(|n| Some((f64::from(n), bench.speedup(lane, mode, n)?))).collect()
    };
    let all: Vec<Line> = MODES
        .iter()
        .map(|mode| Line { class: format!("m-{mode}"), name: (*mode).into(), points: points(mode) })
        .filter(|line| !line.points.is_empty())
        .collect();
    lines("speed", ("vCPUs", "times"), Scale::Linear, &all, Some((3.5, "3.5")), &[])
}

/// Time to the first answer, and to the last.
pub(super) fn restored(bench: &Bench, lane: &str) -> Option<String> {
    of_restore(
        bench,
        lane,
        ("ms", 1000.0),
        Scale::Linear,
        &[("first answer", "first_answer_us"), ("all answers", "all_answers_us")],
    )
}

/// How long answers take.
pub(super) fn answers(bench: &Bench, lane: &str) -> Option<String> {
    of_restore(
        bench,
        lane,
        ("us", 1.0),
        Scale::Log,
        &[
            ("p50", "answer_p50_us"),
            ("p99", "answer_p99_us"),
            ("p99 without faults", "answer_quiet_p99_us"),
        ],
    )
}

fn of_restore(
    bench: &Bench,
    lane: &str,
    (unit, per): (&str, f64),
    scale: Scale,
    fields: &[(&str, &str)],
) -> Option<String> {
    let groups: Vec<Group> = fields
        .iter()
        .filter_map(|(label, field)| {
            group(label, |mode| {
                let row: &Row = bench.of(lane, mode, "restore").next()?;
                let value = row.number(field)? / per;
                Some(plain(mode, value, format!("{value:.0} {unit}")))
            })
        })
        .collect();
    bars("a restored server", unit, scale, &groups, None)
}
