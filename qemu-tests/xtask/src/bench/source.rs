//! What L2, the VMM and the debugger said of one run of a workload.

use crate::cases::Mode;
use crate::lane::Lane;
use crate::record::Record;
use serde_json::{Value, json};

/// Where a record's fields come from.
pub(super) struct Source<'a> {
    /// The machine.
    pub(super) lane: Lane,
    /// The machine's time is a count of instructions.
    pub(super) counts_time: bool,
    /// The guest ends most interrupts without an exit.
    pub(super) pv_eoi: bool,
    /// CPUs of L1.
    pub(super) l1_cpus: u32,
    /// On vmx: millions of instructions that are a second for each.
    pub(super) mips: Option<u32>,
    /// The guest's way.
    pub(super) mode: Mode,
    /// What L2 and the VMM reported of the workload.
    pub(super) result: &'a Record,
    /// What Bochs's debugger counted in it.
    pub(super) probe: Option<&'a Record>,
}

impl Source<'_> {
    /// How a field was taken.
    pub(super) fn how(&self, how: &str) -> String {
        match (self.lane, self.counts_time) {
            (Lane::Svm, true) => format!("{how}; QEMU with -icount"),
            _ => how.to_owned(),
        }
    }

    /// A number of the result.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.result.number(name)
    }

    /// A count of the result.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        self.result.value.get(name).and_then(Value::as_u64)
    }

    /// A share of the vCPU, or its bound, where a task computes beside those that fault. Who restores a VM is busy with that.
    pub(super) fn of_a_share(&self, name: &str) -> Option<Value> {
        let restored = self.result.text("workload") == "restore";
        let computes = self.count("compute") != Some(0);
        self.number(name).filter(|_| computes && !restored).map(Value::from)
    }

    /// A count in a part of the result.
    pub(super) fn at(&self, section: &str, name: &str) -> Option<u64> {
        self.result.value.get(section)?.get(name)?.as_u64()
    }

    /// Of both kinds.
    pub(super) fn faults(&self) -> f64 {
        self.number("faults").unwrap_or(0.0) + self.number("kernel_faults").unwrap_or(0.0)
    }

    /// What the debugger counted; `which`: `median`, or another one that [`super::probe`] reports.
    pub(super) fn counted(&self, what: &str, which: &str) -> Option<Value> {
        let count = self.probe?.value.get(what)?.get(which)?;
        count.is_u64().then(|| count.clone())
    }

    /// A time beyond the latency.
    pub(super) fn late(&self, what: &str) -> Option<Value> {
        let us = self.result.value.get("fault_us")?.get(what)?.as_f64()?;
        Some(json!(us - self.number("latency_us")?))
    }
}

/// A count, if there is something that it counts some of.
pub(super) fn count_of(source: &Source<'_>, name: &str, of: &str) -> Option<Value> {
    let all = source.count(of)?;
    (all > 0).then(|| source.count(name).map(Value::from)).flatten()
}

/// To four digits.
pub(super) fn round(x: f64) -> Value {
    json!((x * 1e4).round() / 1e4)
}
