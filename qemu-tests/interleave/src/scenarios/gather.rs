//! A host that leaves a vCPU in the guest for a while, to tell it of several completions at once.

use super::{NONE, base, one_each, pinned, task, touch};
use crate::scenario::From::User;
use crate::scenario::{Action, Budget, Reach, Scenario};
use crate::world::Frame;

/// One vCPU, a task for each page.
fn gather(name: &'static str) -> Scenario {
    Scenario {
        vcpus: 1,
        tasks: one_each(),
        gathers: true,
        reaches: vec![Reach::Gathered, Reach::ToldBefore],
        ..base(name)
    }
}

/// All of them.
pub(super) fn all() -> Vec<Scenario> {
    let off_on = pinned(0, &[Action::Disable, Action::Yield, Action::Enable]);
    let again = task(0, &[touch(0, User), touch(1, User)]);
    let polls = Budget { polls: 1, ..NONE };
    vec![
        gather("gather"),
        Scenario { vcpus: 2, ..gather("gather-moved") },
        Scenario { tasks: vec![again, task(0, &[touch(1, User)])], ..gather("gather-twice") },
        Scenario {
            frames: vec![Frame::Missing, Frame::Gone],
            reaches: vec![Reach::ToldBefore, Reach::Failed],
            ..gather("gather-fail")
        },
        Scenario {
            budget: Budget { kills: 1, ..NONE },
            reaches: vec![Reach::Gathered, Reach::Abandoned],
            ..gather("gather-kill")
        },
        Scenario {
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::ToldBefore, Reach::Failed],
            ..gather("gather-deadline")
        },
        Scenario {
            tasks: [one_each(), vec![off_on]].concat(),
            reaches: vec![Reach::Gathered, Reach::Swept],
            ..gather("gather-disable-enable")
        },
        Scenario {
            budget: Budget { restores: 1, ..NONE },
            reaches: vec![Reach::Gathered, Reach::Swept],
            ..gather("gather-restore")
        },
        Scenario {
            declared: 0b11,
            budget: polls,
            reaches: vec![Reach::Gathered, Reach::Unrung, Reach::Polled],
            ..gather("gather-poll")
        },
        Scenario {
            declared: 0b11,
            budget: Budget { leaves: 1, ..polls },
            reaches: vec![Reach::Gathered, Reach::Unrung, Reach::Polled],
            ..gather("gather-poll-leave")
        },
    ]
}
