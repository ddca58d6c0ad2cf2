//! Snapshots of everything that is counted, and their differences.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value, json};

use crate::stats::Stats;
use crate::sys;

/// Names and values.
pub type Values = BTreeMap<String, u64>;

/// Exits that reached this process, by cause.
#[derive(Debug, Default)]
pub struct UserExits {
    /// Port reads and writes, our device's among them.
    pub io: AtomicU64,
    /// Memory-mapped reads and writes.
    pub mmio: AtomicU64,
    /// KVM_RUN ended by a signal.
    pub intr: AtomicU64,
    /// Anything else.
    pub other: AtomicU64,
}

/// One snapshot.
#[derive(Debug, Clone)]
struct Snapshot {
    at_ns: u64,
    sections: BTreeMap<&'static str, Values>,
}

/// Statistics files, filled in while the machine is built; snapshots and differences by label.
#[derive(Default)]
pub struct Counters {
    vm: OnceLock<Stats>,
    vcpus: Mutex<Vec<Stats>>,
    /// Counted by the vCPU threads.
    pub user_exits: UserExits,
    begun: Mutex<BTreeMap<String, Snapshot>>,
    ended: Mutex<BTreeMap<String, Map<String, Value>>>,
}

impl Counters {
    /// The VM's own statistics.
    pub fn set_vm(&self, stats: Stats) {
        // Called once while the machine is built.
        let _ = self.vm.set(stats);
    }

    /// Adds one vCPU's statistics.
    pub fn add_vcpu(&self, stats: Stats) {
        lock(&self.vcpus).push(stats);
    }

    /// Remembers the state of now under `label`.
    pub fn begin(&self, label: &str, pager: Values) -> std::io::Result<()> {
        let mut snapshot = self.snapshot(pager)?;
        // Highest values start anew with each section.
        for values in snapshot.sections.values_mut() {
            values.retain(|name, _| !name.starts_with("max_"));
        }
        lock(&self.begun).insert(label.to_owned(), snapshot);
        Ok(())
    }

    /// Difference since [`Counters::begin`], kept for the report of this label; `None` if it was never begun.
    pub fn end(&self, label: &str, pager: Values) -> std::io::Result<Option<Value>> {
        let now = self.snapshot(pager)?;
        let Some(then) = lock(&self.begun).remove(label) else { return Ok(None) };
        let mut record = Map::new();
        for (section, values) in &now.sections {
            let before = then.sections.get(section);
            let changed: Map<String, Value> = values
                .iter()
                .map(|(name, value)| {
                    let old = before.and_then(|b| b.get(name)).copied().unwrap_or(0);
                    (name.clone(), value.saturating_sub(old))
                })
                .filter(|(_, change)| *change != 0)
                .map(|(name, change)| (name, json!(change)))
                .collect();
            record.insert((*section).to_owned(), Value::Object(changed));
        }
        record.insert("section_ns".to_owned(), json!(now.at_ns - then.at_ns));
        let exits =
            record.get("kvm_vcpu").and_then(|vcpu| vcpu.get("exits")).cloned().unwrap_or(json!(0));
        record.insert("exits".to_owned(), exits);
        let value = Value::Object(record.clone());
        lock(&self.ended).insert(label.to_owned(), record);
        Ok(Some(value))
    }

    /// The difference kept for `label`.
    pub fn take(&self, label: &str) -> Option<Map<String, Value>> {
        lock(&self.ended).remove(label)
    }

    fn snapshot(&self, pager: Values) -> std::io::Result<Snapshot> {
        let mut vm = Values::new();
        if let Some(stats) = self.vm.get() {
            stats.add_to(&mut vm)?;
        }
        let mut vcpu = Values::new();
        for stats in lock(&self.vcpus).iter() {
            stats.add_to(&mut vcpu)?;
        }
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let user = &self.user_exits;
        let user = Values::from([
            ("io".to_owned(), count(&user.io)),
            ("mmio".to_owned(), count(&user.mmio)),
            ("intr".to_owned(), count(&user.intr)),
            ("other".to_owned(), count(&user.other)),
        ]);
        let sections = BTreeMap::from([
            ("kvm_vm", vm),
            ("kvm_vcpu", vcpu),
            ("user_exits", user),
            ("pager", pager),
        ]);
        Ok(Snapshot { at_ns: sys::now_ns(), sections })
    }
}

/// A panic elsewhere ends the process; there is no poisoned state to protect.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_by_label() -> std::io::Result<()> {
        let counters = Counters::default();
        counters.begin("a", Values::from([("faults".into(), 3)]))?;
        counters.user_exits.io.fetch_add(2, Ordering::Relaxed);
        assert_eq!(counters.end("b", Values::new())?, None);
        let diff =
            counters.end("a", Values::from([("faults".into(), 10), ("bursts".into(), 0)]))?;
        let diff = diff.unwrap_or_default();
        assert_eq!(diff["pager"], json!({"faults": 7}));
        assert_eq!(diff["user_exits"], json!({"io": 2}));
        assert_eq!(counters.take("a").map(|m| m["exits"].clone()), Some(json!(0)));
        assert!(counters.take("a").is_none());
        Ok(())
    }
}
