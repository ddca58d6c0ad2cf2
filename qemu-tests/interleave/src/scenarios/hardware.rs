//! Hardware mode: the CPU raises #VE by itself.

use super::{ATOMIC, NONE, PREEMPTIBLE, base, one_each, pinned, task, touch};
use crate::scenario::From::{Atomic, Kernel, User};
use crate::scenario::{Action, Budget, From, Reach, Scenario, Task};
use crate::world::Frame;
use ve_apf_guest::platform::SuspendReason;

const IRQS_OFF: From = Atomic(SuspendReason::IrqsOff);

/// Both pages are declared.
fn hardware(name: &'static str) -> Scenario {
    Scenario { declared: 0b11, reaches: vec![Reach::Delivered, Reach::Parked], ..base(name) }
}

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    [park(), scarce(), suspend(), nmi(), nmi_and(), end(), disable(), restore(), restore_and()]
        .concat()
}

fn park() -> Vec<Scenario> {
    let moved = vec![Reach::Delivered, Reach::Parked, Reach::Moved];
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, Kernel)])],
            reaches: moved.clone(),
            ..hardware("hw-park-same-vcpu")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(1, User)])],
            reaches: moved,
            ..hardware("hw-park-two-vcpus")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User), touch(1, User)])],
            ..hardware("hw-park-twice")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, User)])],
            reaches: vec![
                Reach::Delivered,
                Reach::Parked,
                Reach::AtOnce,
                Reach::Early,
                Reach::Moved,
            ],
            ..hardware("hw-one-page-two-vcpus")
        },
        // The second page is not declared: injected mode beside the other.
        Scenario { declared: 0b01, tasks: one_each(), ..hardware("hw-mixed") },
        Scenario {
            vcpus: 1,
            tasks: one_each(),
            budget: Budget { reclaims: 1, wakes: 1, ..NONE },
            reaches: vec![Reach::Delivered, Reach::SpuriousWake],
            ..hardware("hw-reclaim")
        },
        // It is never there long enough: the vCPU halts until it is.
        Scenario {
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { reclaims: 2, ..NONE },
            reaches: vec![Reach::Parked, Reach::Unqueued],
            ..hardware("hw-no-progress")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { reclaims: 2, deadlines: 1, ..NONE },
            reaches: vec![Reach::Parked, Reach::Unqueued, Reach::Stopped, Reach::Failed],
            ..hardware("hw-no-progress-deadline")
        },
    ]
}

fn scarce() -> Vec<Scenario> {
    vec![
        Scenario {
            slots: 1,
            tasks: one_each(),
            reaches: vec![Reach::NoSlot, Reach::Parked],
            ..hardware("hw-no-slot")
        },
        Scenario {
            vcpus: 1,
            slots: 0,
            frames: vec![Frame::Missing, Frame::Gone],
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(0, &[touch(0, User), touch(1, User)])],
            budget: Budget { reclaims: 1, restores: 1, ..NONE },
            reaches: vec![Reach::NoSlot, Reach::Again],
            ..hardware("hw-no-slot-at-all")
        },
        Scenario {
            threads: 1,
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(1, User)])],
            reaches: vec![Reach::Delivered, Reach::Unqueued],
            ..hardware("hw-no-thread")
        },
        Scenario {
            threads: 0,
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, ATOMIC)])],
            reaches: vec![Reach::Delivered, Reach::AtOnce, Reach::Failed],
            ..hardware("hw-no-thread-fail")
        },
    ]
}

fn suspend() -> Vec<Scenario> {
    let halted = vec![Reach::Delivered, Reach::Halted, Reach::Again];
    vec![
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, PREEMPTIBLE)]), task(0, &[touch(1, PREEMPTIBLE)])],
            budget: Budget { preemptions: 2, ..NONE },
            reaches: vec![Reach::Delivered, Reach::Halted, Reach::Preempted],
            ..hardware("hw-suspend-preempted")
        },
        // The host may not know of the slot yet.
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, PREEMPTIBLE)]), pinned(0, &[Action::Rescue])],
            budget: Budget { preemptions: 1, ..NONE },
            reaches: vec![Reach::Delivered, Reach::Halted, Reach::Preempted],
            ..hardware("hw-suspend-rescue")
        },
        // The thread may be free again by the time the vCPU would wait without one.
        Scenario {
            threads: 1,
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(1, &[touch(1, User)])],
            reaches: vec![Reach::Delivered, Reach::Unqueued, Reach::Halted],
            ..hardware("hw-suspend-no-thread")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(0, &[touch(1, User)])],
            reaches: [&halted[..], &[Reach::Parked, Reach::Interrupted]].concat(),
            ..hardware("hw-suspend")
        },
        Scenario {
            declared: 0b01,
            tasks: vec![
                task(0, &[touch(0, IRQS_OFF), touch(1, IRQS_OFF)]),
                task(0, &[touch(0, User)]),
            ],
            reaches: [halted.clone(), vec![Reach::Stopped]].concat(),
            ..hardware("hw-interrupts-off")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![
                Task { nested: Some(1), ..task(0, &[touch(0, User)]) },
                task(0, &[touch(0, User)]),
            ],
            budget: Budget { wakes: 1, ..NONE },
            reaches: vec![Reach::Delivered, Reach::Nested, Reach::Halted],
            ..hardware("hw-nested")
        },
    ]
}

/// One vCPU, one NMI that accesses the second page.
fn with_nmi(name: &'static str) -> Scenario {
    Scenario {
        vcpus: 1,
        tasks: vec![task(0, &[touch(0, User)])],
        nmi: vec![1],
        budget: Budget { nmis: 1, ..NONE },
        reaches: vec![Reach::Delivered, Reach::Parked, Reach::Nmi],
        ..hardware(name)
    }
}

fn nmi() -> Vec<Scenario> {
    vec![
        // Before the word is cleared and after it, with one task parked and another to come.
        Scenario {
            tasks: one_each(),
            reaches: vec![Reach::Parked, Reach::Nmi, Reach::Busy, Reach::Stopped],
            ..with_nmi("hw-nmi")
        },
        Scenario {
            declared: 0b01,
            reaches: vec![Reach::Delivered, Reach::Parked, Reach::Stopped],
            ..with_nmi("hw-nmi-undeclared")
        },
        // Rule 3: the task's fault is injected, the NMI's is not.
        Scenario { declared: 0b10, ..with_nmi("hw-nmi-injected") },
        Scenario { declared: 0b10, tasks: one_each(), nmi: vec![0, 1], ..with_nmi("hw-nmi-mixed") },
        Scenario { nmi: vec![0], ..with_nmi("hw-nmi-same-page") },
        Scenario {
            frames: vec![Frame::Missing; 3],
            tasks: vec![task(0, &[touch(0, ATOMIC)])],
            nmi: vec![1, 2],
            reaches: vec![Reach::Halted, Reach::Again, Reach::Nmi, Reach::Busy],
            ..with_nmi("hw-nmi-suspended")
        },
        Scenario {
            slots: 1,
            reaches: vec![Reach::NoSlot, Reach::Nmi],
            ..with_nmi("hw-nmi-no-slot")
        },
    ]
}

fn nmi_and() -> Vec<Scenario> {
    let budget = Budget { nmis: 1, ..NONE };
    vec![
        Scenario { budget: Budget { nmis: 2, ..NONE }, ..with_nmi("hw-nmi-twice") },
        // The task frees its slot from the other vCPU.
        Scenario { vcpus: 2, reaches: vec![Reach::Nmi, Reach::Moved], ..with_nmi("hw-nmi-moved") },
        Scenario {
            vcpus: 2,
            slots: 1,
            reaches: vec![Reach::NoSlot, Reach::Nmi, Reach::Moved],
            ..with_nmi("hw-nmi-moved-one-slot")
        },
        Scenario {
            tasks: one_each(),
            budget: Budget { kills: 1, ..budget },
            reaches: vec![Reach::Nmi, Reach::Abandoned],
            ..with_nmi("hw-nmi-kill")
        },
        Scenario {
            frames: vec![Frame::Missing, Frame::Gone],
            tasks: one_each(),
            reaches: vec![Reach::Nmi, Reach::Failed],
            ..with_nmi("hw-nmi-fail")
        },
        Scenario {
            tasks: vec![Task { nested: Some(2), ..task(0, &[touch(0, User)]) }],
            frames: vec![Frame::Missing; 3],
            declared: 0b111,
            reaches: vec![Reach::Nmi, Reach::Nested],
            ..with_nmi("hw-nmi-nested")
        },
    ]
}

fn end() -> Vec<Scenario> {
    let kills = Budget { kills: 1, ..NONE };
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, Kernel)])],
            budget: kills,
            reaches: vec![Reach::Delivered, Reach::Abandoned],
            ..hardware("hw-kill")
        },
        Scenario {
            slots: 1,
            tasks: one_each(),
            budget: kills,
            reaches: vec![Reach::NoSlot, Reach::Abandoned],
            ..hardware("hw-kill-one-slot")
        },
        Scenario {
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, ATOMIC)])],
            reaches: vec![Reach::Delivered, Reach::Parked, Reach::Failed],
            ..hardware("hw-fail")
        },
        Scenario {
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, ATOMIC)])],
            fails_at_once: true,
            reaches: vec![Reach::Delivered, Reach::AtOnce, Reach::Failed],
            ..hardware("hw-fail-at-once")
        },
        Scenario {
            vcpus: 1,
            tasks: one_each(),
            budget: Budget { deadlines: 1, ..NONE },
            ..hardware("hw-deadline")
        },
    ]
}

fn disable() -> Vec<Scenario> {
    let off_on = pinned(0, &[Action::Disable, Action::Yield, Action::Enable]);
    let lapic = pinned(0, &[Action::Lapic(false), Action::Yield, Action::Lapic(true)]);
    let base = |name| Scenario {
        vcpus: 1,
        reaches: vec![Reach::Delivered, Reach::Swept, Reach::Sync],
        ..hardware(name)
    };
    vec![
        Scenario {
            vcpus: 2,
            tasks: vec![task(0, &[touch(0, User)]), off_on.clone()],
            ..base("hw-disable-enable")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), off_on.clone()],
            budget: Budget { kills: 1, reclaims: 1, ..NONE },
            ..base("hw-disable-enable-kill")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), off_on.clone()],
            nmi: vec![1],
            budget: Budget { nmis: 1, ..NONE },
            ..base("hw-disable-enable-nmi")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), off_on],
            budget: Budget { restores: 1, ..NONE },
            ..base("hw-disable-after-restore")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), pinned(0, &[Action::Rescue])],
            reaches: vec![Reach::Delivered, Reach::Parked],
            ..base("hw-rescue-finds-nothing")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), lapic],
            reaches: vec![Reach::Delivered, Reach::Parked, Reach::Held],
            ..base("hw-lapic")
        },
    ]
}

fn restore() -> Vec<Scenario> {
    let base = |name| Scenario {
        vcpus: 1,
        budget: Budget { restores: 1, ..NONE },
        reaches: vec![Reach::Delivered, Reach::Swept],
        ..hardware(name)
    };
    vec![
        Scenario {
            tasks: one_each(),
            reaches: vec![Reach::Delivered, Reach::Swept, Reach::SweptUntold],
            ..base("hw-restore")
        },
        Scenario {
            vcpus: 2,
            tasks: vec![task(0, &[touch(0, User)])],
            reaches: vec![Reach::Delivered, Reach::Swept, Reach::Moved],
            ..base("hw-restore-moved")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            loses_pages: true,
            ..base("hw-restore-loses-pages")
        },
        Scenario {
            tasks: one_each(),
            budget: Budget { restores: 1, detours: 2, ..NONE },
            ..base("hw-restore-delivery")
        },
        Scenario {
            tasks: one_each(),
            budget: Budget { restores: 1, detours: 2, ..NONE },
            loses_events: true,
            ..base("hw-restore-loses-delivery")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(0, &[touch(1, User)])],
            loses_pages: true,
            reaches: vec![Reach::Swept, Reach::SweptUntold, Reach::Halted],
            ..base("hw-restore-suspended")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { restores: 2, ..NONE },
            loses_pages: true,
            ..base("hw-restore-twice")
        },
    ]
}

fn restore_and() -> Vec<Scenario> {
    let restores = Budget { restores: 1, ..NONE };
    let base = |name| Scenario {
        vcpus: 1,
        tasks: one_each(),
        budget: restores,
        reaches: vec![Reach::Delivered, Reach::Swept],
        ..hardware(name)
    };
    vec![
        Scenario { declared: 0b01, loses_events: true, ..base("hw-restore-mixed") },
        Scenario {
            slots: 1,
            budget: Budget { kills: 1, ..restores },
            reaches: vec![Reach::NoSlot, Reach::Swept, Reach::Abandoned],
            ..base("hw-restore-kill")
        },
        Scenario {
            frames: vec![Frame::Gone, Frame::Missing],
            reaches: vec![Reach::Swept, Reach::Failed],
            ..base("hw-restore-fail")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)])],
            nmi: vec![1],
            budget: Budget { nmis: 1, ..restores },
            reaches: vec![Reach::Swept, Reach::Nmi],
            ..base("hw-restore-nmi")
        },
    ]
}
