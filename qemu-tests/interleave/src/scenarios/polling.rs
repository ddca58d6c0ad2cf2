//! A host that polls: hardware mode without the doorbell.

use super::{ATOMIC, NONE, base, one_each, pinned, task, touch};
use crate::scenario::From::User;
use crate::scenario::{Action, Budget, Reach, Scenario};
use crate::world::Frame;

/// One vCPU, both pages declared; the first fault rings, and the host polls from then on.
fn polling(name: &'static str) -> Scenario {
    Scenario {
        vcpus: 1,
        declared: 0b11,
        tasks: one_each(),
        budget: Budget { polls: 1, ..NONE },
        reaches: vec![Reach::Delivered, Reach::Parked, Reach::Unrung, Reach::Polled],
        ..base(name)
    }
}

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    [end(), vcpus(), disturb(), off()].concat()
}

fn end() -> Vec<Scenario> {
    let quits = Budget { polls: 1, quits: 1, ..NONE };
    vec![
        polling("poll"),
        Scenario {
            budget: quits,
            tasks: vec![task(0, &[touch(0, User), touch(1, User)])],
            reaches: vec![Reach::Unrung, Reach::Polled, Reach::LastLook],
            ..polling("poll-quit")
        },
        Scenario {
            budget: Budget { polls: 2, quits: 2, ..NONE },
            tasks: vec![task(0, &[touch(0, User), touch(1, User)])],
            reaches: vec![Reach::Unrung, Reach::LastLook],
            ..polling("poll-quit-again")
        },
        Scenario {
            budget: Budget { polls: 1, leaves: 1, ..NONE },
            reaches: vec![Reach::Unrung, Reach::Polled],
            ..polling("poll-leave")
        },
        Scenario {
            threads: 1,
            reaches: vec![Reach::Unrung, Reach::Left, Reach::Collected],
            ..polling("poll-no-thread")
        },
    ]
}

fn vcpus() -> Vec<Scenario> {
    vec![
        Scenario { vcpus: 2, ..polling("poll-moved") },
        Scenario {
            vcpus: 2,
            slots: 1,
            tasks: vec![task(0, &[touch(0, User), touch(1, User)])],
            budget: Budget { polls: 1, quits: 1, ..NONE },
            reaches: vec![Reach::Unrung, Reach::Polled, Reach::LastLook],
            ..polling("poll-one-slot")
        },
    ]
}

fn disturb() -> Vec<Scenario> {
    let polls = Budget { polls: 1, ..NONE };
    vec![
        Scenario { budget: Budget { reclaims: 1, ..polls }, ..polling("poll-reclaim") },
        Scenario {
            budget: Budget { kills: 1, ..polls },
            reaches: vec![Reach::Unrung, Reach::Abandoned],
            ..polling("poll-kill")
        },
        Scenario {
            frames: vec![Frame::Missing, Frame::Gone],
            reaches: vec![Reach::Unrung, Reach::Failed],
            ..polling("poll-fail")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, ATOMIC)])],
            reaches: vec![Reach::Parked, Reach::Halted],
            ..polling("poll-suspend")
        },
        Scenario { declared: 0b01, reaches: vec![Reach::Delivered], ..polling("poll-mixed") },
        Scenario {
            tasks: [one_each(), vec![pinned(0, &[Action::Rescue])]].concat(),
            ..polling("poll-rescue-finds-nothing")
        },
    ]
}

fn off() -> Vec<Scenario> {
    let polls = Budget { polls: 1, ..NONE };
    let off_on = pinned(0, &[Action::Disable, Action::Yield, Action::Enable]);
    vec![
        Scenario {
            tasks: [one_each(), vec![pinned(0, &[Action::Disable])]].concat(),
            reaches: vec![Reach::Unrung, Reach::Swept],
            ..polling("poll-disable")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, User)]), off_on],
            reaches: vec![Reach::Unrung, Reach::Swept],
            ..polling("poll-disable-enable")
        },
        Scenario {
            budget: Budget { leaves: 1, restores: 1, ..polls },
            reaches: vec![Reach::Unrung, Reach::Swept],
            ..polling("poll-restore")
        },
    ]
}
