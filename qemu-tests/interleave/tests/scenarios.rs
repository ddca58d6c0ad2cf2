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
    deadline_joined: "deadline-joined",
    deadline_suspended: "deadline-suspended",
    moved: "moved",
    moved_gone: "moved-gone",
    suspend: "suspend",
    suspend_two_vcpus: "suspend-two-vcpus",
    suspend_preempted: "suspend-preempted",
    suspend_preempted_disable: "suspend-preempted-disable",
    hw_suspend_preempted: "hw-suspend-preempted",
    hw_suspend_rescue: "hw-suspend-rescue",
    hw_suspend_no_thread: "hw-suspend-no-thread",
    kill: "kill",
    kill_both: "kill-both",
    kill_one_slot: "kill-one-slot",
    fail: "fail",
    fail_two_vcpus: "fail-two-vcpus",
    fail_kill: "fail-kill",
    fail_repair: "fail-repair",
    fail_disable: "fail-disable",
    deadline_disable: "deadline-disable",
    fail_at_once: "fail-at-once",
    fail_at_once_scarce: "fail-at-once-scarce",
    fail_at_once_restore: "fail-at-once-restore",
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
    stopped: "stopped",
    stopped_mail: "stopped-mail",
    stopped_nmi: "stopped-nmi",
    stopped_nmi_same_page: "stopped-nmi-same-page",
    stopped_reclaim: "stopped-reclaim",
    stopped_deadline: "stopped-deadline",
    stopped_deadline_joined: "stopped-deadline-joined",
    stopped_deadline_nmi: "stopped-deadline-nmi",
    stopped_gone: "stopped-gone",
    stopped_repair: "stopped-repair",
    stopped_moved: "stopped-moved",
    stopped_restore: "stopped-restore",
    no_slot_deadline: "no-slot-deadline",
    no_slot_kill: "no-slot-kill",
    no_slot_disable: "no-slot-disable",
    hw_park_same_vcpu: "hw-park-same-vcpu",
    hw_park_two_vcpus: "hw-park-two-vcpus",
    hw_park_twice: "hw-park-twice",
    hw_one_page_two_vcpus: "hw-one-page-two-vcpus",
    hw_mixed: "hw-mixed",
    hw_reclaim: "hw-reclaim",
    hw_no_progress: "hw-no-progress",
    hw_no_progress_deadline: "hw-no-progress-deadline",
    hw_no_slot: "hw-no-slot",
    hw_no_slot_at_all: "hw-no-slot-at-all",
    hw_no_thread: "hw-no-thread",
    hw_no_thread_fail: "hw-no-thread-fail",
    hw_suspend: "hw-suspend",
    hw_interrupts_off: "hw-interrupts-off",
    hw_nested: "hw-nested",
    hw_nmi: "hw-nmi",
    hw_nmi_undeclared: "hw-nmi-undeclared",
    hw_nmi_injected: "hw-nmi-injected",
    hw_nmi_mixed: "hw-nmi-mixed",
    hw_nmi_same_page: "hw-nmi-same-page",
    hw_nmi_suspended: "hw-nmi-suspended",
    hw_nmi_no_slot: "hw-nmi-no-slot",
    hw_nmi_twice: "hw-nmi-twice",
    hw_nmi_moved: "hw-nmi-moved",
    hw_nmi_moved_one_slot: "hw-nmi-moved-one-slot",
    hw_nmi_kill: "hw-nmi-kill",
    hw_nmi_fail: "hw-nmi-fail",
    hw_nmi_nested: "hw-nmi-nested",
    hw_kill: "hw-kill",
    hw_kill_one_slot: "hw-kill-one-slot",
    hw_fail: "hw-fail",
    hw_fail_at_once: "hw-fail-at-once",
    hw_deadline: "hw-deadline",
    hw_disable_enable: "hw-disable-enable",
    hw_disable_enable_kill: "hw-disable-enable-kill",
    hw_disable_enable_nmi: "hw-disable-enable-nmi",
    hw_disable_after_restore: "hw-disable-after-restore",
    hw_rescue_finds_nothing: "hw-rescue-finds-nothing",
    hw_lapic: "hw-lapic",
    hw_restore: "hw-restore",
    hw_restore_moved: "hw-restore-moved",
    hw_restore_loses_pages: "hw-restore-loses-pages",
    hw_restore_delivery: "hw-restore-delivery",
    hw_restore_loses_delivery: "hw-restore-loses-delivery",
    hw_restore_suspended: "hw-restore-suspended",
    hw_restore_twice: "hw-restore-twice",
    hw_restore_mixed: "hw-restore-mixed",
    hw_restore_kill: "hw-restore-kill",
    hw_restore_fail: "hw-restore-fail",
    hw_restore_nmi: "hw-restore-nmi",
    poll: "poll",
    poll_quit: "poll-quit",
    poll_quit_again: "poll-quit-again",
    poll_leave: "poll-leave",
    poll_no_thread: "poll-no-thread",
    poll_moved: "poll-moved",
    poll_one_slot: "poll-one-slot",
    poll_reclaim: "poll-reclaim",
    poll_kill: "poll-kill",
    poll_fail: "poll-fail",
    poll_suspend: "poll-suspend",
    poll_mixed: "poll-mixed",
    poll_rescue_finds_nothing: "poll-rescue-finds-nothing",
    poll_disable: "poll-disable",
    poll_disable_enable: "poll-disable-enable",
    poll_restore: "poll-restore",
    gather: "gather",
    gather_moved: "gather-moved",
    gather_twice: "gather-twice",
    gather_fail: "gather-fail",
    gather_kill: "gather-kill",
    gather_deadline: "gather-deadline",
    gather_disable_enable: "gather-disable-enable",
    gather_restore: "gather-restore",
    gather_poll: "gather-poll",
    gather_poll_leave: "gather-poll-leave",
}

/// Rule 14: the kick that comes between the last look at the mailbox and the announcement.
#[test]
fn without_a_second_look_a_wakeup_is_lost() {
    let broken = Scenario { broken: Some(Broken::NoSecondLook), ..scenario("park-same-vcpu") };
    let violation = explore(&broken).expect_err("the lost wake-up must be found");
    assert!(violation.what.contains("is stuck"), "{violation}");
    assert!(violation.trace.len() > 10, "a trace tells how: {violation}");
}

/// Where the kernel around the state machine knows less than the CPU.
#[test]
fn hardware_mode_is_expected_while_it_is_on() {
    for (broken, name, what) in [
        (Broken::ForgetsTooEarly, "hw-disable-enable-nmi", "a #VE without a fault"),
        (Broken::ExpectsTooLate, "hw-disable-enable-nmi", "a #VE without a fault"),
        (Broken::KeepsBusy, "hw-restore-loses-delivery", "takes up"),
    ] {
        let violation = explore(&Scenario { broken: Some(broken), ..scenario(name) });
        let violation = violation.expect_err("a wrong order must be found");
        assert!(violation.what.contains(what), "{broken:?}: {violation}");
    }
}

/// A slot is its CPU's: who waits for it with the CPU has to stay there.
#[test]
fn a_task_for_which_its_cpu_stands_still_stays_there() {
    let broken = Scenario { broken: Some(Broken::LetsGo), ..scenario("suspend-preempted") };
    let violation = explore(&broken).expect_err("the task that went elsewhere must be found");
    assert!(violation.what.contains("on another CPU than the ring's"), "{violation}");
}

/// The hypercall that waits for a fault is no place to tell the guest of it.
#[test]
fn a_fault_that_a_hypercall_waits_for_is_told_to_nobody() {
    let broken = Scenario { broken: Some(Broken::Tells), ..scenario("hw-suspend-no-thread") };
    let violation = explore(&broken).expect_err("a #VE on the hypercall must be found");
    assert!(violation.what.contains("leaked"), "{violation}");
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
        "hw-park-same-vcpu",
        "hw-kill-one-slot",
        "hw-nmi-injected",
        "hw-nmi-moved",
        "hw-nmi-nested",
        "hw-disable-enable-nmi",
        "hw-restore-nmi",
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
