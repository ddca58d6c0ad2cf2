//! The kernel touches a missing page in every context there is: where it may sleep the task parks, elsewhere the vCPU
//! is suspended, for the right reason.
//!
//! Options: `rounds`. Reports under `contexts`, by name: parked, suspended, each reason that was not zero, faults that
//! the host delivered, wrong bytes.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::arena::Arena;
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, selftest};

const CONTEXTS: [&str; 10] = [
    "sleepable",
    "kernel",
    "mutex",
    "preempt_off",
    "irqs_off",
    "bh_off",
    "softirq",
    "rcu",
    "pagefault_disabled",
    "state",
];

/// `contexts`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let rounds = options.number("rounds", 2)?;
    let arena = Arena::anonymous(device, 1)?;
    device.set_policy(&[], options.policy()?)?;
    let mut contexts = Map::new();
    let mut all_wrong = 0;
    let before = GuestCounters::read();
    for context in CONTEXTS {
        let result = one_context(device, &arena, context, rounds)?;
        let wrong = result["wrong_bytes"].as_u64().unwrap_or(0);
        contexts.insert(context.to_owned(), result);
        all_wrong += wrong;
    }
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "result", "workload": name, "rounds": rounds, "contexts": contexts, "wrong_bytes": all_wrong,
        "bad": bad.len(), "bad_lines": bad,
    });
    if let Some(record) = record.as_object_mut() {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

/// `rounds` touches of the arena's first page, in this context.
pub(super) fn one_context(
    device: &Device,
    arena: &Arena,
    context: &str,
    rounds: u64,
) -> Result<Value> {
    let before = GuestCounters::read();
    let frame = arena.frames[0];
    let mut wrong = 0;
    for round in 0..rounds {
        device.evict(&[frame], round)?;
        let byte = selftest::touch(context, arena.pages.page(0))?;
        wrong += u64::from(byte != arena.first_byte(0, round));
    }
    let counters = GuestCounters::read().since(&before);
    let kept = counters.get("ve_apf").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut kept: Map<String, Value> = kept.into_iter().filter(|(_, value)| *value != 0).collect();
    kept.insert("wrong_bytes".into(), json!(wrong));
    Ok(Value::Object(kept))
}
