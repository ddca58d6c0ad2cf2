//! Snapshots of everything that is counted, and their differences.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
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
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Snapshot {
    at_ns: u64,
    sections: BTreeMap<String, Values>,
}

/// What a machine that goes on elsewhere takes along.
#[derive(Serialize, Deserialize)]
pub struct CountersState {
    totals: BTreeMap<String, Values>,
    begun: BTreeMap<String, Snapshot>,
    ended: BTreeMap<String, Map<String, Value>>,
}

/// Statistics files, filled in while the machine is built; snapshots and differences by label.
#[derive(Default)]
pub struct Counters {
    vm: OnceLock<Stats>,
    vcpus: Mutex<Vec<Stats>>,
    /// Counted by the vCPU threads.
    pub user_exits: UserExits,
    /// Counts of processes that this machine ran in before.
    carried: Mutex<BTreeMap<String, Values>>,
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
            record.insert(section.clone(), Value::Object(changed));
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

    /// Totals, and the sections under way. The pager's are its own state.
    pub fn save(&self) -> std::io::Result<CountersState> {
        let mut totals = self.snapshot(Values::new())?.sections;
        totals.remove("pager");
        let (begun, ended) = (lock(&self.begun).clone(), lock(&self.ended).clone());
        Ok(CountersState { totals, begun, ended })
    }

    /// Puts it back, in a process whose own counts are still zero.
    pub fn load(&self, state: &CountersState) {
        lock(&self.carried).clone_from(&state.totals);
        self.load_sections(state);
    }

    /// Puts the sections back; what has been counted since stays counted.
    pub fn load_sections(&self, state: &CountersState) {
        lock(&self.begun).clone_from(&state.begun);
        lock(&self.ended).clone_from(&state.ended);
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
        let mut sections = BTreeMap::from([
            ("kvm_vm".to_owned(), vm),
            ("kvm_vcpu".to_owned(), vcpu),
            ("user_exits".to_owned(), user),
            ("pager".to_owned(), pager),
        ]);
        for (section, values) in lock(&self.carried).iter() {
            let into = sections.entry(section.clone()).or_default();
            for (name, value) in values {
                *into.entry(name.clone()).or_default() += value;
            }
        }
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
    fn counts_go_on_elsewhere() -> std::io::Result<()> {
        let one = Counters::default();
        one.user_exits.io.fetch_add(5, Ordering::Relaxed);
        one.begin("a", Values::from([("faults".into(), 3)]))?;
        one.user_exits.io.fetch_add(2, Ordering::Relaxed);
        let two = Counters::default();
        two.load(&one.save()?);
        two.user_exits.io.fetch_add(1, Ordering::Relaxed);
        let diff = two.end("a", Values::from([("faults".into(), 4)]))?.unwrap_or_default();
        assert_eq!(
            (&diff["user_exits"], &diff["pager"]),
            (&json!({"io": 3}), &json!({"faults": 1}))
        );
        Ok(())
    }

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
