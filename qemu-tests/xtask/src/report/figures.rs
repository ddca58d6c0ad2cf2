//! The figures of the demo: a row per case.

use crate::cases::Case;
use crate::record::Record;
use serde::Serialize;
use serde_json::Value;

/// One record of `demo.json`. What a mode does not have is null.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The machine.
    pub(crate) lane: &'static str,
    /// blocking, kvm-apf, ve-apf.
    pub(crate) mode: &'static str,
    /// What L2 did.
    pub(crate) workload: String,
    /// vCPUs of L2.
    pub(crate) vcpus: u32,
    /// Faulting tasks.
    pub(crate) tasks: Option<u64>,
    /// Time until the pager delivers.
    pub(crate) latency_us: Option<u64>,
    /// Missing pages met, from user mode.
    pub(crate) faults: Option<u64>,
    /// Of these, those that parked their task.
    pub(crate) parked: Option<u64>,
    /// Missing pages met in kernel mode.
    pub(crate) kernel_faults: Option<u64>,
    /// Of these, those that parked.
    pub(crate) kernel_parked: Option<u64>,
    /// VM exits for them, as KVM counts.
    pub(crate) exits: Option<u64>,
    /// Per fault.
    pub(crate) exits_per_fault: Option<f64>,
    /// Part of vCPU time that the computing task got.
    pub(crate) useful_share: Option<f64>,
    /// What it could have got at most.
    pub(crate) bound: Option<f64>,
}

/// Adds what follows from other fields to a `result`: `fault_exits`, KVM's own count of the VM exits that its faults
/// caused, and `exits_per_fault`. Both are missing on a KVM that does not count them.
pub(crate) fn derive(record: &mut Record) {
    if record.kind() != "result" {
        return;
    }
    restored(record);
    // "apf_waited" are faults that stopped the vCPU: one exit each.
    let counted = |name: &str| name.starts_with("apf_exits_") || name == "apf_waited";
    let exits: Option<u64> =
        record.value.get("kvm_vcpu").and_then(Value::as_object).and_then(|stats| {
            stats
                .iter()
                .filter(|(name, _)| counted(name))
                .filter_map(|(_, n)| n.as_u64())
                .reduce(|a, b| a + b)
        });
    let faults =
        record.number("faults").unwrap_or(0.0) + record.number("kernel_faults").unwrap_or(0.0);
    if let Some(exits) = exits {
        record.value["fault_exits"] = exits.into();
        if faults > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "counts below 2^52")]
            let per_fault = exits as f64 / faults;
            record.value["exits_per_fault"] = ((per_fault * 1e4).round() / 1e4).into();
        }
    }
}

/// Nobody counts the touches of a VM that is restored: its faults are the pages that the pager brought from the snapshot, and
/// those that parked are known where the guest counts them.
fn restored(record: &mut Record) {
    if record.text("workload") != "restore" {
        return;
    }
    let count = |section: &str, name: &str| record.value.get(section)?.get(name)?.as_u64();
    let (faults, ours) = (count("pager", "restored"), count("ve_apf", "faults"));
    let parked = count("ve_apf", "parked").filter(|_| ours > Some(0));
    record.value["faults"] = faults.into();
    record.value["parked"] = parked.into();
}

impl Row {
    /// The rows of a case that ran: one for each result with faults.
    pub(crate) fn of(case: &Case, records: &[Record]) -> Vec<Self> {
        let results =
            records.iter().filter(|r| r.kind() == "result" && r.number("tasks").is_some());
        results.map(|r| Self::new(case, r)).collect()
    }

    fn new(case: &Case, record: &Record) -> Self {
        let number = |name: &str| record.value.get(name).and_then(Value::as_u64);
        Self {
            lane: case.lane.name(),
            mode: case.mode.name(),
            workload: record.text("workload").to_owned(),
            vcpus: case.vcpus,
            tasks: number("tasks"),
            latency_us: number("latency_us"),
            faults: number("faults"),
            parked: number("parked"),
            kernel_faults: number("kernel_faults"),
            kernel_parked: number("kernel_parked"),
            exits: number("fault_exits"),
            exits_per_fault: record.number("exits_per_fault"),
            useful_share: record.number("useful_share"),
            bound: record.number("bound"),
        }
    }
}

/// The modes of one workload together, workloads in the order in which they first came.
pub(crate) fn group(rows: &mut [Row]) {
    let mut order: Vec<String> = Vec::new();
    for row in rows.iter() {
        if !order.contains(&row.workload) {
            order.push(row.workload.clone());
        }
    }
    rows.sort_by_key(|row| order.iter().position(|w| *w == row.workload));
}

/// Column titles of the table.
pub(crate) const TITLES: [&str; 11] = [
    "workload",
    "mode",
    "vCPUs",
    "tasks",
    "latency",
    "faults",
    "parked",
    "in kernel",
    "parked",
    "exits/fault",
    "useful share",
];

/// The table's cells, as text.
pub(crate) fn cells(row: &Row) -> [String; 11] {
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^52")]
    let part = |part: Option<u64>, all: Option<u64>| match (part, all) {
        (Some(part), Some(all)) if all > 0 => format!("{:.1} %", 100.0 * part as f64 / all as f64),
        _ => "-".to_owned(),
    };
    let real = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), |n| format!("{n:.2}"));
    #[expect(clippy::cast_precision_loss, reason = "microseconds")]
    let ms =
        row.latency_us.map_or_else(|| "-".to_owned(), |us| format!("{} ms", us as f64 / 1000.0));
    let share = match (row.useful_share, row.bound) {
        (Some(share), Some(bound)) => format!("{share:.2} of {bound:.2}"),
        (share, _) => real(share),
    };
    [
        row.workload.clone(),
        row.mode.to_owned(),
        row.vcpus.to_string(),
        count(row.tasks),
        ms,
        count(row.faults),
        part(row.parked, row.faults),
        count(row.kernel_faults),
        part(row.kernel_parked, row.kernel_faults),
        real(row.exits_per_fault),
        share,
    ]
}

/// The table for a terminal, in Markdown, so that it can be copied into a README.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines: Vec<[String; 11]> = vec![TITLES.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let widths: [usize; 11] =
        std::array::from_fn(|i| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0));
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        let padded: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            .map(
                |(i, (cell, width))| {
                    if i < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        out.push_str(&format!("| {} |\n", padded.join(" | ")));
        if n == 0 {
            let rule: Vec<String> = widths
                .iter()
                .enumerate()
                .map(|(i, w)| {
                    if i < 2 {
                        "-".repeat(*w)
                    } else {
                        format!("{}:", "-".repeat(w.saturating_sub(1)))
                    }
                })
                .collect();
            out.push_str(&format!("| {} |\n", rule.join(" | ")));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_those_that_kvm_attributes_to_faults() {
        let mut record = Record {
            value: serde_json::json!({"kind": "result", "faults": 80, "kernel_faults": 20,
                "kvm_vcpu": {"exits": 5000, "apf_exits_fault": 100, "apf_exits_kick": 90, "apf_waited": 10}}),
        };
        derive(&mut record);
        assert_eq!(record.number("fault_exits"), Some(200.0));
        assert_eq!(record.number("exits_per_fault"), Some(2.0));
        let mut none = Record {
            value: serde_json::json!({"kind": "result", "faults": 1, "kvm_vcpu": {"exits": 5}}),
        };
        derive(&mut none);
        assert_eq!(none.number("exits_per_fault"), None);
    }

    #[test]
    fn the_table_is_aligned_and_empty_cells_are_dashes() {
        let row = Row {
            lane: "svm",
            mode: "ve-apf",
            workload: "user_touch".into(),
            vcpus: 1,
            tasks: Some(8),
            latency_us: Some(20_000),
            faults: Some(200),
            parked: Some(199),
            kernel_faults: Some(0),
            kernel_parked: None,
            exits: Some(400),
            exits_per_fault: Some(2.0),
            useful_share: Some(0.93),
            bound: Some(1.0),
        };
        let text = table(std::slice::from_ref(&row));
        let widths: Vec<usize> = text.lines().map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|w| *w == widths[0]), "{text}");
        assert!(
            text.contains("99.5 %") && text.contains("0.93 of 1.00") && text.contains("20 ms"),
            "{text}"
        );
        let json = serde_json::to_value(&row).unwrap();
        let fields: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(fields.len(), 14);
    }
}
