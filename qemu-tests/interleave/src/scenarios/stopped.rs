//! vCPUs that stand still over a page, since their guest cannot be told: they halt in the table of works, without a slot.

use super::{ATOMIC, NONE, base, one_each, pinned, task, touch};
use crate::scenario::{Action, Budget, From, Reach, Scenario};
use crate::world::Frame;
use From::User;
use ve_apf_guest::platform::SuspendReason;

/// No event can be taken here but an NMI.
const OFF: From = From::Atomic(SuspendReason::IrqsOff);

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    [meanwhile(), ends(), scarce()].concat()
}

/// What comes while it waits.
fn meanwhile() -> Vec<Scenario> {
    let base = |name| Scenario { reaches: vec![Reach::Stopped], ..base(name) };
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(1, &[touch(0, User)])],
            ..base("stopped")
        },
        // Completions of its slots.
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, OFF)])],
            reaches: vec![Reach::Stopped, Reach::StoppedAgain, Reach::Parked],
            ..base("stopped-mail")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(0, &[touch(1, User)])],
            nmi: vec![1],
            budget: Budget { nmis: 1, ..NONE },
            reaches: vec![Reach::Stopped, Reach::StoppedAgain],
            ..base("stopped-nmi")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)])],
            nmi: vec![0],
            budget: Budget { nmis: 2, ..NONE },
            reaches: vec![Reach::Stopped, Reach::StoppedAgain],
            ..base("stopped-nmi-same-page")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(0, &[touch(1, ATOMIC)])],
            budget: Budget { reclaims: 1, ..NONE },
            ..base("stopped-reclaim")
        },
    ]
}

/// How the wait ends.
fn ends() -> Vec<Scenario> {
    let base = |name| Scenario { reaches: vec![Reach::Stopped, Reach::Told], ..base(name) };
    let deadline = Budget { deadlines: 1, ..NONE };
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, OFF)])],
            budget: deadline,
            ..base("stopped-deadline")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(1, &[touch(0, OFF)])],
            budget: deadline,
            ..base("stopped-deadline-joined")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(0, &[touch(0, User)])],
            nmi: vec![1],
            budget: Budget { nmis: 1, ..deadline },
            ..base("stopped-deadline-nmi")
        },
        Scenario {
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: vec![task(0, &[touch(0, OFF)]), task(0, &[touch(1, User)])],
            ..base("stopped-gone")
        },
        Scenario {
            frames: vec![Frame::Gone],
            tasks: vec![task(0, &[touch(0, OFF)])],
            budget: Budget { repairs: 1, ..NONE },
            ..base("stopped-repair")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, OFF)]), task(1, &[touch(0, User)])],
            budget: Budget { moves: 1, ..NONE },
            reaches: vec![Reach::Stopped],
            ..base("stopped-moved")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, OFF)])],
            budget: Budget { restores: 1, ..NONE },
            loses_events: true,
            loses_pages: true,
            reaches: vec![Reach::Stopped, Reach::Swept],
            ..base("stopped-restore")
        },
    ]
}

/// Only a slot is missing.
fn scarce() -> Vec<Scenario> {
    let base =
        |name| Scenario { slots: 1, reaches: vec![Reach::Stopped, Reach::FoundSlot], ..base(name) };
    vec![
        Scenario {
            tasks: one_each(),
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::Stopped, Reach::Failed, Reach::FoundSlot],
            ..base("no-slot-deadline")
        },
        Scenario {
            tasks: one_each(),
            budget: Budget { kills: 1, ..NONE },
            reaches: vec![Reach::Stopped, Reach::Abandoned, Reach::FoundSlot],
            ..base("no-slot-kill")
        },
        Scenario {
            vcpus: 1,
            tasks: [one_each(), vec![pinned(0, &[Action::Disable])]].concat(),
            budget: Budget { preemptions: 1, ..NONE },
            reaches: vec![Reach::Stopped, Reach::Swept],
            ..base("no-slot-disable")
        },
    ]
}
