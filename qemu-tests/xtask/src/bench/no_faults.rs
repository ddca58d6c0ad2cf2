//! no_faults: what each kind of thing takes that programs do all the time, and what a mode adds to it.

use super::fields::{Exact, Field};
use super::row::{Bench, Row};
use super::source::Source;
use serde_json::{Map, Value};
use std::fmt::Write;

const OTHERS: &str = "no_faults only";

/// Its fields.
pub(super) const FIELDS: &[Field] = &[
    Field {
        name: "tsc",
        what: "time-stamp counts of no_faults' workload, in which no timer tick comes; on vmx these are instructions of guest and host together",
        how: "of each kind, the least count by RDTSC of the times that it is done, less that of doing nothing; added up",
        exact: Exact::Counted,
        absent: OTHERS,
        take: |s| s.count("tsc").filter(|_| of(s)).map(Value::from),
    },
    Field {
        name: "tsc_by_kind",
        what: "`tsc` divided: of doing each kind of thing once",
        how: "as `tsc`",
        exact: Exact::Counted,
        absent: OTHERS,
        take: |s| by_kind(s, "tsc"),
    },
    Field {
        name: "tick_free_exits",
        what: "VM exits of the same workload",
        how: "of each kind, the fewest of several sections in which it is done once, by KVM's binary statistics, less those of an empty one; added up",
        exact: Exact::Counted,
        absent: OTHERS,
        take: |s| s.count("tick_free_exits").filter(|_| of(s)).map(Value::from),
    },
    Field {
        name: "exits_by_kind",
        what: "`tick_free_exits` divided: of doing each kind of thing once",
        how: "as `tick_free_exits`",
        exact: Exact::Counted,
        absent: OTHERS,
        take: |s| by_kind(s, "exits"),
    },
];

fn of(source: &Source<'_>) -> bool {
    source.result.text("workload") == "no_faults"
}

fn by_kind(source: &Source<'_>, what: &str) -> Option<Value> {
    let kinds = source.result.value.get("kinds")?.as_object().filter(|_| of(source))?;
    let one = |(name, kind): (&String, &Value)| Some((name.clone(), kind.get(what)?.clone()));
    kinds.iter().map(one).collect::<Option<Map<String, Value>>>().map(Value::Object)
}

/// The record of a mode.
pub(super) fn row<'a>(bench: &'a Bench, lane: &'a str, mode: &'a str) -> Option<&'a Row> {
    bench.of(lane, mode, "no_faults").next()
}

/// What one field has for each kind.
fn kinds<'a>(row: &'a Row, field: &str) -> impl Iterator<Item = (&'a str, i64)> {
    let all = row.values.get(field).and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(name, n)| Some((name.as_str(), n.as_i64()?)))
}

/// What a mode adds, of those kinds to which it adds something or from which it takes: "exit to the VMM +11 of 4384".
pub(super) fn extra(ours: &Row, stock: &Row, field: &str) -> String {
    let of = |name: &str| kinds(stock, field).find(|(other, _)| *other == name).map(|(_, n)| n);
    let extra = kinds(ours, field).filter_map(|(name, n)| {
        let stock = of(name)?;
        (n != stock).then(|| format!("{name} {:+} of {stock}", n - stock))
    });
    extra.collect::<Vec<_>>().join(", ")
}

/// A table for docs/performance.md, where the counts are instructions.
pub(super) fn section(out: &mut String, bench: &Bench, lane: &str) {
    const MODES: [&str; 4] = ["kvm-apf", "blocking", "injected", "hardware"];
    let rows = MODES.map(|mode| row(bench, lane, mode));
    let Some(stock) = rows[0].filter(|_| lane == "vmx") else { return };
    out.push_str(
        "\n## vmx: no faults\n\n\
         Instructions of guest and host together for doing each thing once, where no timer tick comes. The first two columns are a guest\n\
         with no-ve-apf; ve-apf is built into guest and host there too.\n\n\
         | what | exits | kvm-apf | blocking | injected | hardware |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for (name, exits) in kinds(stock, "exits_by_kind") {
        let _ = write!(out, "| {name} | {exits} |");
        for row in &rows {
            let count = row.and_then(|row| kinds(row, "tsc_by_kind").find(|k| k.0 == name));
            let _ = match count {
                Some((_, n)) => write!(out, " {n} |"),
                None => write!(out, " - |"),
            };
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{bench, row};
    use super::*;
    use crate::cases::Mode;
    use serde_json::json;

    #[test]
    fn kinds_are_compared_one_by_one() {
        let none = |mode, call: u64, exit: u64| {
            let kinds =
                json!({"call": {"tsc": call, "exits": 0}, "exit": {"tsc": exit, "exits": 1}});
            row(
                mode,
                "no_faults",
                json!({"tsc": call + exit, "tick_free_exits": 1, "kinds": kinds}),
            )
        };
        let (stock, ours) = (none(Mode::KvmApf, 300, 4384), none(Mode::VeApf, 300, 4395));
        assert_eq!(extra(&ours, &stock, "tsc_by_kind"), "exit +11 of 4384");
        assert_eq!(extra(&ours, &stock, "exits_by_kind"), "");
        assert_eq!(
            ours.exact.iter().filter(|f| f.contains("tsc") || f.contains("kind")).count(),
            3
        );
        let bench = bench(vec![stock, ours]);
        let mut page = String::new();
        section(&mut page, &bench, "svm");
        assert_eq!(page, "");
        section(&mut page, &bench, "vmx");
        assert!(page.contains("| exit | 1 | 4384 | - | 4395 | - |\n"), "{page}");
    }

    #[test]
    fn other_workloads_have_none_of_it() {
        let other = row(Mode::VeApf, "user_touch", json!({"tsc": 5, "kinds": {}}));
        assert!(FIELDS.iter().all(|field| other.values[field.name].is_null()));
    }
}
