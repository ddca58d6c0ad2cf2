//! Tests of the targets.

use super::*;
use crate::bench::row::tests::{bench, row};
use crate::cases::Mode;
use serde_json::json;

fn find<'a>(all: &'a [Verdict], figure: &str) -> &'a Verdict {
    all.iter().find(|v| v.figure == figure).unwrap()
}

#[test]
fn what_was_not_measured_is_not_met() {
    let all = all(&bench(Vec::new()));
    assert!(all.len() > 8 && all.iter().all(|v| v.met.is_none() && v.measured.is_none()));
}

#[test]
fn exits_are_judged_with_what_they_are_made_of() {
    let one =
        |mode, stats| row(mode, "one_at_a_time_alone", json!({"tasks": 1, "kvm_vcpu": stats}));
    let all = all(&bench(vec![
        one(Mode::VeApf, json!({"apf_exits_fault": 100, "apf_exits_kick": 104})),
        one(Mode::Hardware, json!({"apf_exits_fault": 1, "apf_exits_kick": 100})),
    ]));
    let injected = find(&all, "exits per fault, one at a time, injected");
    assert_eq!((injected.measured.as_deref(), injected.met), (Some("2.04"), Some(true)));
    assert_eq!(injected.count, "1.00 fault + 1.04 kick");
    // An exit to enter the handler.
    assert_eq!(find(&all, "exits per fault, one at a time, hardware").met, Some(false));
    assert_eq!(find(&all, "exits per fault, bursts of 16, injected").met, None);
}

#[test]
fn instructions_are_judged_against_stock() {
    let one = |mode, park: u64| {
        let probe = json!({"park": {"median": park}, "host": {"quartile": 10 * park}});
        row(mode, COUNTED, json!({"tasks": 1, "probe": probe}))
    };
    let rows = vec![one(Mode::KvmApf, 1000), one(Mode::VeApf, 700), one(Mode::Hardware, 1001)];
    let all = all(&bench(rows));
    let met = |figure: &str| find(&all, figure).met;
    assert_eq!(met("guest instructions from #VE to __schedule(), injected"), Some(true));
    assert_eq!(met("guest instructions from #VE to __schedule(), hardware"), Some(false));
    assert_eq!(met("host instructions per fault, injected"), Some(true));
    assert_eq!(met("host instructions per fault, hardware"), Some(false));
    assert_eq!(met("guest instructions from interrupt to runnable, injected"), None);
}

#[test]
fn shares_are_those_of_the_worst_workload() {
    let kernel = |mode, workload, useful: f64, parked: u64| {
        row(
            mode,
            workload,
            json!({"faults": 0, "kernel_faults": 100, "kernel_parked": parked, "useful_share": useful}),
        )
    };
    let all = all(&bench(vec![
        kernel(Mode::KvmApf, "kernel_read", 0.1, 0),
        kernel(Mode::VeApf, "kernel_read", 0.97, 100),
        kernel(Mode::KvmApf, "page_cache", 0.3, 0),
        kernel(Mode::VeApf, "page_cache", 0.9, 98),
    ]));
    let stock = find(&all, "useful share against kvm-apf, system calls at 10 ms, injected (vmx)");
    assert_eq!((stock.measured.as_deref(), stock.met), (Some("3.0 times"), Some(false)));
    assert!(stock.count.starts_with("0.900 of 1.00, kvm-apf 0.300; page_cache"), "{}", stock.count);
    let parked = find(&all, "kernel-mode faults that parked, injected (vmx)");
    assert_eq!((parked.measured.as_deref(), parked.met), (Some("99.0 %"), Some(true)));
    let useful = find(&all, "useful share over its bound, worst workload at 10 ms, injected (vmx)");
    assert_eq!((useful.measured.as_deref(), useful.met), (Some("0.900"), Some(false)));
}

#[test]
fn an_unused_feature_costs_next_to_nothing() {
    let none = |mode, tsc: u64, exits: u64| {
        let kinds = json!({"call": {"tsc": tsc, "exits": exits}});
        let more = json!({
            "faults": 0, "tasks": 0, "latency_us": 0, "tsc": tsc, "tick_free_exits": exits, "kinds": kinds,
        });
        row(mode, "no_faults", more)
    };
    let all = all(&bench(vec![
        none(Mode::KvmApf, 1_000_000, 50),
        none(Mode::VeApf, 1_000_100, 51),
        none(Mode::Hardware, 1_000_900, 50),
    ]));
    let of = |figure: &str| find(&all, figure);
    let exits = of("no faults: extra exits, injected");
    assert_eq!((exits.measured.as_deref(), exits.met), (Some("+1"), Some(false)));
    assert!(exits.count.ends_with("ticks: call +1 of 50"), "{}", exits.count);
    assert_eq!(of("no faults: extra exits, hardware").met, Some(true));
    let extra = of("no faults: extra instructions of guest and host, injected");
    assert_eq!((extra.measured.as_deref(), extra.met), (Some("+0.0100 %"), Some(true)));
    assert!(extra.count.contains("call +100 of 1000000"), "{}", extra.count);
    let extra = of("no faults: extra instructions of guest and host, hardware");
    assert_eq!((extra.measured.as_deref(), extra.met), (Some("+0.0900 %"), Some(false)));
}
