//! Small traces, and the spans they must become.

use super::*;
use serde_json::json;

fn switch(s: f64, prev: (&str, u32, &str), next: (&str, u32)) -> String {
    format!(
        "x-1 [000] d..2. {s:.6}: sched_switch: prev_comm={} prev_pid={} prev_prio=120 prev_state={} ==> next_comm={} next_pid={} next_prio=120",
        prev.0, prev.1, prev.2, next.0, next.1
    )
}

fn fixture() -> Vec<Record> {
    let l2 = vec![
        switch(10.000, ("compute0", 2, "R"), ("touch0", 1)),
        switch(10.001, ("touch0", 1, "D"), ("compute0", 2)),
        "x-0 [000] dNh. 10.004: sched_waking: comm=touch0 pid=1 prio=120 target_cpu=000".to_owned(),
        switch(10.005, ("compute0", 2, "R+"), ("touch0", 1)),
        switch(10.010, ("touch0", 1, "S"), ("swapper/0", 0)),
    ];
    // L1's clock is 5 s behind; the vCPU is off from 10.006 to 10.008.
    let l1 = vec![
        switch(5.006, ("vcpu0", 90, "S"), ("swapper/1", 0)),
        switch(5.008, ("swapper/1", 0, "R"), ("vcpu0", 90)),
    ];
    [
        json!({"kind": "clock", "l2_ns": 9_000_000_000_u64, "l1_ns": 4_000_000_000_u64}),
        json!({"kind": "trace", "where": "l2", "lines": l2}),
        json!({"kind": "trace", "where": "l1", "lines": l1}),
    ]
    .into_iter()
    .map(|value| Record { value })
    .collect()
}

#[test]
fn states_of_tasks_and_vcpus() {
    use State::{Halted, Parked, Runnable, Running, Stopped};
    const MS: u64 = 1_000_000;
    let timeline = build("blocking", &fixture()).unwrap();
    assert_eq!(timeline.length, 10 * MS);
    let lanes: Vec<&str> = timeline.lanes.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(lanes, ["touch0", "compute0", "vcpu0"]);
    assert_eq!(
        timeline.lanes[0].spans,
        [
            (0, MS, Running),
            (MS, 4 * MS, Parked),
            (4 * MS, 5 * MS, Runnable),
            (5 * MS, 6 * MS, Running),
            (6 * MS, 8 * MS, Stopped),
            (8 * MS, 10 * MS, Running),
        ]
    );
    assert_eq!(
        timeline.lanes[1].spans,
        [(0, MS, Runnable), (MS, 5 * MS, Running), (5 * MS, 10 * MS, Runnable)]
    );
    assert_eq!(
        timeline.lanes[2].spans,
        [(0, 6 * MS, Running), (6 * MS, 8 * MS, Halted), (8 * MS, 10 * MS, Running)]
    );
    assert!((timeline.lanes[0].shares(timeline.length)[&Stopped] - 0.2).abs() < 1e-9);
}

#[test]
fn without_a_trace_there_is_no_picture() {
    assert!(build("ve-apf", &[]).is_none());
}

#[test]
fn kernel_threads_are_not_part_of_the_workload() {
    for (name, yes) in [
        ("touch0", true),
        ("kworker/0:1", false),
        ("kswapd0", false),
        ("rcu_preempt", false),
        ("l2-init", false),
    ] {
        assert_eq!(is_workload_name(name), yes, "{name}");
    }
}
