//! Do two runs agree?

use super::row::{Key, Row};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// By how much an exact field may differ.
const WITHIN: f64 = 0.01;

/// One that differs by more.
#[derive(Debug)]
pub(super) struct Difference {
    key: Key,
    field: String,
    values: [f64; 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { lane, mode, workload, vcpus, tasks, latency_us } = &self.key;
        let [a, b] = self.values;
        write!(
            f,
            "{lane} {mode} {workload} vcpus={vcpus} tasks={tasks} latency={latency_us} us: {} is {a} and {b}",
            self.field
        )
    }
}

/// Where exact fields of two successive runs differ by more than 1 %. A record that one of them lacks is another's failure.
pub(super) fn compare(runs: &[Vec<Row>]) -> Vec<Difference> {
    let mut out = Vec::new();
    for pair in runs.windows(2) {
        for (row, other) in
            pair[0].iter().filter_map(|r| Some((r, pair[1].iter().find(|o| o.key == r.key)?)))
        {
            for field in &row.exact {
                let others = numbers(other, field);
                for (name, a) in numbers(row, field) {
                    let Some(b) = others.get(&name).copied() else { continue };
                    if (a - b).abs() > WITHIN * a.abs().max(b.abs()) {
                        out.push(Difference { key: row.key.clone(), field: name, values: [a, b] });
                    }
                }
            }
        }
    }
    out
}

/// A field's number, or each of them by name.
fn numbers(row: &Row, field: &str) -> BTreeMap<String, f64> {
    match row.values.get(field) {
        Some(Value::Object(all)) => all
            .iter()
            .filter_map(|(name, n)| Some((format!("{field}, {name},"), n.as_f64()?)))
            .collect(),
        Some(value) => value.as_f64().map(|n| (field.to_owned(), n)).into_iter().collect(),
        None => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::row;
    use super::*;
    use crate::cases::Mode;
    use serde_json::json;

    #[test]
    fn exact_fields_agree_within_a_hundredth() {
        let run = |exits: u64, wall: u64| {
            let stats = json!({"apf_exits_fault": exits});
            vec![row(
                Mode::VeApf,
                "one_at_a_time",
                json!({"kvm_vcpu": stats, "wall_us": wall, "compute": 0}),
            )]
        };
        assert!(compare(&[run(1000, 5), run(1009, 9)]).is_empty());
        let found = compare(&[run(1000, 5), run(1020, 5)]);
        let fields: Vec<&str> = found.iter().map(|d| d.field.as_str()).collect();
        assert_eq!(fields, ["exits", "exits_per_fault"]);
        let text = found[0].to_string();
        assert!(
            text.contains("vmx injected one_at_a_time") && text.contains("exits is 1000 and 1020"),
            "{text}"
        );
        assert!(compare(&[run(1000, 5)]).is_empty());
    }

    #[test]
    fn every_number_of_a_field_has_to_agree() {
        let run = |call: u64| {
            let kinds =
                json!({"call": {"tsc": call, "exits": 0}, "exit": {"tsc": 90_000, "exits": 1}});
            vec![row(Mode::VeApf, "no_faults", json!({"tsc": 90_000 + call, "kinds": kinds}))]
        };
        assert!(compare(&[run(1000), run(1010)]).is_empty());
        let found = compare(&[run(1000), run(1020)]);
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            text.len() == 1 && text[0].ends_with("tsc_by_kind, call, is 1000 and 1020"),
            "{text:?}"
        );
    }
}
