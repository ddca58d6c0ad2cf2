//! bench.json.

use super::fields::{self, why_absent};
use super::source::Source;
use crate::cases::{Case, Mode};
use crate::error::{Kind, fail};
use crate::record::Record;
use crate::runner::{Outcome, Status};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Grows when a field changes its meaning or goes.
pub(super) const SCHEMA: u32 = 3;

/// The workload in which Bochs's debugger counts instructions.
pub(super) const COUNTED: &str = "one_at_a_time_counted";

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bench {
    /// [`SCHEMA`].
    pub(super) schema: u32,
    /// Of `--quick`.
    pub(super) quick: bool,
    /// How often it was run; the records are the last run's.
    pub(super) runs: u32,
    /// Names the kernel's inputs.
    pub(super) kernel: String,
    /// Where exact fields of two runs differ by more than 1 %.
    pub(super) differences: Vec<String>,
    /// One for each key.
    pub(super) records: Vec<Row>,
}

impl Bench {
    /// Adds the records of an earlier run, but for those that this one has anew.
    pub(super) fn keep(&mut self, earlier: Self) -> Result<()> {
        if earlier.kernel != self.kernel {
            return Err(fail(
                Kind::Usage,
                format!(
                    "the earlier records are of kernel {}, these of {}",
                    earlier.kernel, self.kernel
                ),
                "run it without --keep",
            ));
        }
        let old = earlier
            .records
            .into_iter()
            .filter(|row| !self.records.iter().any(|r| r.key == row.key));
        let old: Vec<Row> = old.collect();
        self.quick |= earlier.quick;
        self.runs = self.runs.max(earlier.runs);
        self.differences.extend(earlier.differences);
        self.records.extend(old);
        self.records.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(())
    }
}

/// What a record is of; no two have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Key {
    /// svm or vmx.
    pub(super) lane: String,
    /// blocking, kvm-apf, injected, hardware, hardware-polling.
    pub(super) mode: String,
    /// What L2 did.
    pub(super) workload: String,
    /// vCPUs of L2.
    pub(super) vcpus: u32,
    /// Tasks that fault.
    pub(super) tasks: u64,
    /// Time from a page's being asked for to its delivery.
    pub(super) latency_us: u64,
}

/// One record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    /// Its key.
    #[serde(flatten)]
    pub(super) key: Key,
    /// How the fields that have a value were taken.
    pub(super) how: BTreeMap<String, String>,
    /// Why the others are null.
    pub(super) absent: BTreeMap<String, String>,
    /// Fields that repeat from run to run, within 1 %.
    pub(super) exact: Vec<String>,
    /// The fields, see [`fields::all`].
    #[serde(flatten)]
    pub(super) values: BTreeMap<String, Value>,
}

/// In bench.json and in the report; the case table calls injected mode ve-apf, which is what a guest gets by default.
pub(super) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::VeApf => "injected",
        other => other.name(),
    }
}

impl Row {
    fn new(key: Key, source: &Source<'_>) -> Self {
        let (mut how, mut absent, mut values) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut exact = Vec::new();
        for field in fields::all() {
            let name = field.name.to_owned();
            match (field.take)(source) {
                Some(value) => {
                    how.insert(name.clone(), source.how(field.how));
                    if field.exact.holds(source) {
                        exact.push(name.clone());
                    }
                    values.insert(name, value);
                }
                None => {
                    absent.insert(name.clone(), why_absent(field, source));
                    values.insert(name, Value::Null);
                }
            }
        }
        Self { key, how, absent, exact, values }
    }

    /// A number, if the field has one.
    pub(super) fn number(&self, field: &str) -> Option<f64> {
        self.values.get(field)?.as_f64()
    }

    /// Each completion interrupt has an exit at its end.
    pub(super) fn without_pv_eoi(&self) -> bool {
        self.values.get("pv_eoi").and_then(Value::as_bool) == Some(false)
    }

    /// Exits of a fault by reason, for a reader: "1.00 fault + 1.02 kick".
    pub(super) fn reasons(&self) -> String {
        let faults = self.all_faults();
        let parts: Vec<String> = self
            .by_reason()
            .into_iter()
            .filter(|(_, n)| *n > 0.0)
            .map(|(name, n)| format!("{:.2} {name}", n / faults.max(1.0)))
            .collect();
        parts.join(" + ")
    }

    /// Exits by reason.
    pub(super) fn by_reason(&self) -> Vec<(String, f64)> {
        let all = self.values.get("exits_by_reason").and_then(Value::as_object);
        let number = |(name, n): (&String, &Value)| Some((name.clone(), n.as_f64()?));
        all.into_iter().flatten().filter_map(number).collect()
    }

    /// From either mode of the CPU.
    pub(super) fn all_faults(&self) -> f64 {
        self.number("faults").unwrap_or(0.0) + self.number("kernel_faults").unwrap_or(0.0)
    }
}

/// The records of the cases that ran. A later one replaces one with its key.
pub(super) fn rows(cases: &[&Case], outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for case in cases {
        let ran = |o: &&Outcome| o.name == case.name && o.status != Status::Skipped;
        let Some(outcome) = outcomes.iter().find(ran) else { continue };
        for row in of_case(case, &outcome.records) {
            match rows.iter_mut().find(|r| r.key == row.key) {
                Some(old) => *old = row,
                None => rows.push(row),
            }
        }
    }
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    rows
}

fn of_case(case: &Case, records: &[Record]) -> Vec<Row> {
    let mut probes = records.iter().filter(|r| r.kind() == "probe");
    let results = records.iter().filter(|r| r.kind() == "result");
    let row = |result: &Record| {
        let count = |name: &str| result.value.get(name).and_then(Value::as_u64);
        let counted = result.value.get("magic").and_then(Value::as_bool) == Some(true);
        let probe = counted.then(|| probes.next()).flatten();
        let mut workload = result.text("workload").to_owned();
        // The same workload in another way has another name.
        if result.text("touch") == "kernel" {
            workload.push_str("_kernel");
        }
        if counted {
            workload.push_str("_counted");
        } else if workload == "one_at_a_time" && count("compute") == Some(0) {
            workload.push_str("_alone");
        }
        let key = Key {
            lane: case.lane.name().to_owned(),
            mode: mode_name(case.mode).to_owned(),
            workload,
            // A workload may leave some of them idle.
            vcpus: count("busy_vcpus").and_then(|n| n.try_into().ok()).unwrap_or(case.vcpus),
            tasks: count("tasks")?,
            latency_us: count("latency_us")?,
        };
        let source = Source {
            lane: case.lane,
            counts_time: case.counts_time,
            pv_eoi: !case.step.argv.iter().any(|word| word == "--no-pv-eoi"),
            l1_cpus: case.l1_cpus,
            mips: case.mips,
            mode: case.mode,
            result,
            probe,
        };
        Some(Row::new(key, &source))
    };
    results.filter_map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lane::Lane;
    use crate::report::figures;
    use crate::{cases, paths};
    use serde_json::json;

    /// A quick run with these records, of a kernel without a name.
    pub(in crate::bench) fn bench(records: Vec<Row>) -> Bench {
        let (quick, runs, kernel, differences) = (true, 1, String::new(), Vec::new());
        Bench { schema: SCHEMA, quick, runs, kernel, differences, records }
    }

    /// A row of a workload with these additions to its result.
    pub(in crate::bench) fn row(mode: Mode, workload: &str, more: Value) -> Row {
        let mut value = json!({
            "kind": "result", "workload": workload, "tasks": 8, "latency_us": 10000, "faults": 100, "parked": 99,
            "kernel_faults": 0, "kernel_parked": 0, "exits": 500, "useful_share": 0.9, "bound": 1.0, "wall_us": 1_000_000,
            "work_share": 0.8, "fault_us": {"median": 10100, "p99": 10900},
            "kvm_vcpu": {"apf_exits_fault": 100, "apf_exits_kick": 90, "apf_waited": 10, "pf_taken": 3},
            "pager": {"deliveries": 100, "late_us": 500}, "interrupts": {"HYP": 90}, "ve_apf": {"suspended": 1},
        });
        for (name, new) in more.as_object().into_iter().flatten() {
            value[name] = new.clone();
        }
        let mut result = Record { value };
        figures::derive(&mut result);
        let key = Key {
            lane: "vmx".into(),
            mode: mode_name(mode).into(),
            workload: workload.into(),
            vcpus: 1,
            tasks: result.value["tasks"].as_u64().unwrap(),
            latency_us: result.value["latency_us"].as_u64().unwrap(),
        };
        let probe = result.value.get("probe").map(|value| Record { value: value.clone() });
        let (lane, counts_time, l1_cpus, mips) = (Lane::Vmx, true, 1, Some(200));
        let (pv_eoi, result, probe) = (true, &result, probe.as_ref());
        Row::new(key, &Source { lane, counts_time, pv_eoi, l1_cpus, mips, mode, result, probe })
    }

    #[test]
    fn every_field_has_a_value_and_how_or_is_null_with_a_reason() {
        let row = row(Mode::VeApf, "user_touch", json!({}));
        let json = serde_json::to_value(&row).unwrap();
        for field in fields::all() {
            let (value, how, absent) =
                (&json[field.name], &json["how"][field.name], &json["absent"][field.name]);
            assert!(json.get(field.name).is_some(), "{}", field.name);
            assert_eq!(value.is_null(), absent.is_string(), "{}", field.name);
            assert_eq!(value.is_null(), !how.is_string(), "{}", field.name);
        }
        let keys = ["lane", "mode", "workload", "vcpus", "tasks", "latency_us"];
        assert!(keys.iter().all(|key| !json[*key].is_null()));
        assert_eq!(json.as_object().unwrap().len(), fields::all().count() + keys.len() + 3);
        let back: Row = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&back).unwrap(), json);
    }

    #[test]
    fn earlier_records_are_kept_unless_replaced() {
        let bench =
            |kernel: &str, records| Bench { quick: false, kernel: kernel.into(), ..bench(records) };
        let touch = |faults: u64| row(Mode::VeApf, "user_touch", json!({ "faults": faults }));
        let other = || row(Mode::VeApf, "burst", json!({}));
        let mut new = bench("k", vec![touch(7)]);
        new.keep(bench("k", vec![touch(5), other()])).unwrap();
        let faults: Vec<Option<f64>> = new.records.iter().map(|r| r.number("faults")).collect();
        assert_eq!(faults, [Some(100.0), Some(7.0)]);
        let error = new.keep(bench("other", Vec::new())).unwrap_err().to_string();
        assert!(error.contains("kernel other"), "{error}");
    }

    #[test]
    fn fields_come_from_the_result() {
        let row = row(Mode::VeApf, "user_touch", json!({}));
        let number = |name: &str| row.number(name).unwrap();
        assert!((number("exits_per_fault") - 2.0).abs() < 1e-9);
        assert!((number("cost_us_per_fault") - 2000.0).abs() < 1e-9);
        assert!((number("late_p99_us") - 900.0).abs() < 1e-9);
        assert!((number("pager_late_us") - 5.0).abs() < 1e-9);
        assert_eq!(row.values["latency_resolved"], json!(true));
        assert_eq!(row.reasons(), "1.00 fault + 0.90 kick + 0.10 waited");
        assert_eq!(row.exact, ["faults", "kernel_faults"]);
        assert_eq!(row.values["kernel_parked"], Value::Null);
    }

    #[test]
    fn without_a_computing_task_there_is_no_share() {
        let row = row(Mode::Blocking, "one_at_a_time", json!({"compute": 0}));
        assert_eq!(
            (&row.values["useful_share"], &row.values["bound"]),
            (&Value::Null, &Value::Null)
        );
        assert!(row.absent["useful_share"].contains("no task computes"));
    }

    #[test]
    fn a_case_says_whether_it_has_pv_eoi() {
        let suite = cases::load(&paths::root().join("qemu-tests/cases"), "bench").unwrap();
        let value = json!({"kind": "result", "workload": "one_at_a_time", "tasks": 1, "latency_us": 1000, "faults": 1});
        for (name, without) in [("exact@ve-apf", true), ("quick@ve-apf", false)] {
            let case = suite.cases.iter().find(|case| case.name == name).unwrap();
            let rows = of_case(case, &[Record { value: value.clone() }]);
            assert_eq!(rows[0].without_pv_eoi(), without, "{name}");
        }
    }

    #[test]
    fn what_the_debugger_counted_is_the_magic_runs() {
        let probe = json!({"park": {"median": 700}, "wake": {"median": null}});
        let more = json!({"probe": probe, "compute": 0});
        let row = row(Mode::Hardware, "one_at_a_time", more);
        assert_eq!(row.values["guest_insns_park"], json!(700));
        let exact = |name: &str| row.exact.iter().any(|field| field == name);
        assert!(exact("guest_insns_park") && exact("exits") && !exact("wall_us"));
        assert!(row.absent["guest_insns_wake"].contains("nothing to count"));
    }
}
