//! Every scenario, through every interleaving.

use ve_apf_interleave::explore::explore;
use ve_apf_interleave::scenario::{Broken, Scenario};
use ve_apf_interleave::scenarios::{all, named};

fn scenario(name: &str) -> Scenario {
    named(name).unwrap_or_else(|| panic!("there is no scenario {name:?}"))
}

fn holds(name: &str) {
    match explore(&scenario(name)) {
        Ok(done) => println!("{name:<24} {done}"),
        Err(violation) => panic!("{name}\n{violation}"),
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            fn $test() {
                holds($name);
            }
        )*

        #[test]
        fn none_is_left_out() {
            let tested = [$($name),*];
            for scenario in all() {
                assert!(tested.contains(&scenario.name), "{} has no test", scenario.name);
            }
        }
    };
}

scenarios! {
    park_same_vcpu: "park-same-vcpu",
    park_two_vcpus: "park-two-vcpus",
    park_twice: "park-twice",
    one_page_same_vcpu: "one-page-same-vcpu",
    one_page_two_vcpus: "one-page-two-vcpus",
    read_and_write: "read-and-write",
    spurious_wake: "spurious-wake",
    reclaim: "reclaim",
    reclaim_moved: "reclaim-moved",
    late_interrupt: "late-interrupt",
    nested: "nested",
    deadline: "deadline",
    suspend: "suspend",
    suspend_two_vcpus: "suspend-two-vcpus",
    kill: "kill",
    kill_both: "kill-both",
    kill_one_slot: "kill-one-slot",
    fail: "fail",
    fail_two_vcpus: "fail-two-vcpus",
    fail_kill: "fail-kill",
    fail_repair: "fail-repair",
    fail_disable: "fail-disable",
    disable: "disable",
    disable_enable: "disable-enable",
    disable_enable_kill: "disable-enable-kill",
    disable_after_restore: "disable-after-restore",
    restore_moved: "restore-moved",
    restore_two_vcpus: "restore-two-vcpus",
    restore_loses_events: "restore-loses-events",
    restore_loses_pages: "restore-loses-pages",
    restore_suspended: "restore-suspended",
    restore_twice: "restore-twice",
    restore_kill: "restore-kill",
    restore_fail: "restore-fail",
    restore_lapic: "restore-lapic",
    no_slot: "no-slot",
    no_thread: "no-thread",
    lapic: "lapic",
    rescue_finds_nothing: "rescue-finds-nothing",
    submit: "submit",
    submit_at_once: "submit-at-once",
    submit_fail: "submit-fail",
    submit_no_thread: "submit-no-thread",
}

/// Rule 14: the kick that comes between the last look at the mailbox and the announcement.
#[test]
fn without_a_second_look_a_wakeup_is_lost() {
    let broken = Scenario { broken: Some(Broken::NoSecondLook), ..scenario("park-same-vcpu") };
    let violation = explore(&broken).expect_err("the lost wake-up must be found");
    assert!(violation.what.contains("is stuck"), "{violation}");
    assert!(violation.trace.len() > 10, "a trace tells how: {violation}");
}

/// The reduction leaves orders out, but no end.
#[test]
fn reduction_hides_no_end() {
    let names = [
        "park-same-vcpu",
        "one-page-two-vcpus",
        "spurious-wake",
        "suspend-two-vcpus",
        "kill",
        "fail-kill",
        "disable",
        "restore-moved",
        "restore-lapic",
        "submit-at-once",
    ];
    for name in names {
        let all = explore(&Scenario { reduced: false, ..scenario(name) });
        let reduced = explore(&scenario(name));
        let (Ok(all), Ok(reduced)) = (all, reduced) else { panic!("{name}: a violation") };
        println!("{name:<24} {all}\n{:<24} {reduced}", "  reduced");
        assert_eq!((all.ends, all.ends_hash), (reduced.ends, reduced.ends_hash), "{name}");
        assert!(reduced.states <= all.states, "{name}");
    }
}
