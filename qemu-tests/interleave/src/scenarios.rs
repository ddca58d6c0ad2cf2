//! The scenarios: small machines, each around one thing that can go wrong. Injected mode here,
//! hardware mode in [`hardware`], vCPUs that cannot be told in [`stopped`].

mod gather;
mod hardware;
mod polling;
mod stopped;

use crate::scenario::{Action, Budget, From, Reach, Scenario, Task};
use crate::vcpu::SLOTS;
use crate::world::Frame;
use From::{Kernel, User};
use ve_apf_guest::platform::SuspendReason;

const ATOMIC: From = From::Atomic(SuspendReason::Atomic);
const PREEMPTIBLE: From = From::Atomic(SuspendReason::NotUserData);
const NONE: Budget = Budget {
    kills: 0,
    wakes: 0,
    reclaims: 0,
    restores: 0,
    preemptions: 0,
    deadlines: 0,
    moves: 0,
    repairs: 0,
    nmis: 0,
    detours: 0,
    polls: 0,
    quits: 0,
    leaves: 0,
};

/// Two vCPUs, two pages that are missing, nothing goes wrong.
fn base(name: &'static str) -> Scenario {
    Scenario {
        name,
        vcpus: 2,
        slots: SLOTS,
        threads: 4,
        frames: vec![Frame::Missing; 2],
        declared: 0,
        tasks: Vec::new(),
        nmi: Vec::new(),
        budget: NONE,
        fails_at_once: false,
        loses_events: false,
        loses_pages: false,
        late_interrupts: false,
        reaches: vec![Reach::Parked],
        reduced: true,
        gathers: false,
        broken: None,
    }
}

fn touch(gfn: usize, from: From) -> Action {
    Action::Touch { gfn, write: false, from }
}

fn write(gfn: usize, from: From) -> Action {
    Action::Touch { gfn, write: true, from }
}

/// A task that starts on a vCPU; once it parked it may go on on any.
fn task(starts: usize, script: &[Action]) -> Task {
    Task { script: script.to_vec(), starts: Some(starts), ..Task::default() }
}

/// A task that stays on its CPU: what a CPU does to itself.
fn pinned(starts: usize, script: &[Action]) -> Task {
    Task { pinned: true, ..task(starts, script) }
}

/// A task on vCPU 0 for each page.
fn one_each() -> Vec<Task> {
    vec![task(0, &[touch(0, User)]), task(0, &[touch(1, User)])]
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    let groups = [
        park(),
        disturb(),
        suspend(),
        kill(),
        fail(),
        disable(),
        restore(),
        restore_and(),
        scarce(),
        lapic(),
        stopped::all(),
        hardware::all(),
        polling::all(),
        gather::all(),
    ];
    groups.concat()
}

/// The one of that name.
pub fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

fn park() -> Vec<Scenario> {
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, Kernel)])],
            reaches: vec![Reach::Parked, Reach::Early, Reach::Moved, Reach::SecondLook],
            ..base("park-same-vcpu")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(1, User)])],
            reaches: vec![Reach::Parked, Reach::Early, Reach::Moved, Reach::SecondLook],
            ..base("park-two-vcpus")
        },
        Scenario { tasks: vec![task(0, &[touch(0, User), touch(1, User)])], ..base("park-twice") },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            reaches: vec![Reach::Joined, Reach::Moved],
            ..base("one-page-same-vcpu")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, User)])],
            reaches: vec![Reach::Joined, Reach::Moved],
            ..base("one-page-two-vcpus")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[write(0, User)])],
            ..base("read-and-write")
        },
    ]
}

fn disturb() -> Vec<Scenario> {
    let wakes = Budget { wakes: 1, ..NONE };
    vec![
        Scenario {
            tasks: one_each(),
            budget: wakes,
            reaches: vec![Reach::SpuriousWake, Reach::Moved],
            ..base("spurious-wake")
        },
        Scenario {
            vcpus: 1,
            tasks: one_each(),
            budget: Budget { reclaims: 1, ..NONE },
            ..base("reclaim")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { reclaims: 2, ..NONE },
            reaches: vec![Reach::Parked, Reach::Moved],
            ..base("reclaim-moved")
        },
        Scenario { tasks: one_each(), late_interrupts: true, ..base("late-interrupt") },
        Scenario {
            vcpus: 1,
            tasks: vec![
                Task { nested: Some(1), ..task(0, &[touch(0, User)]) },
                task(0, &[touch(0, User)]),
            ],
            budget: Budget { reclaims: 1, ..wakes },
            reaches: vec![Reach::Nested, Reach::Halted],
            ..base("nested")
        },
        Scenario {
            vcpus: 1,
            tasks: one_each(),
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::Parked, Reach::Failed],
            ..base("deadline")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::Failed, Reach::Joined],
            ..base("deadline-joined")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, ATOMIC)])],
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::Failed, Reach::Halted],
            ..base("deadline-suspended")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            budget: Budget { moves: 1, ..NONE },
            ..base("moved")
        },
        Scenario {
            vcpus: 1,
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: one_each(),
            budget: Budget { moves: 1, ..NONE },
            ..base("moved-gone")
        },
    ]
}

fn suspend() -> Vec<Scenario> {
    let halted = vec![Reach::Halted, Reach::Again];
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(0, &[touch(1, User)])],
            reaches: [&halted[..], &[Reach::Parked, Reach::Interrupted]].concat(),
            ..base("suspend")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(1, &[touch(0, ATOMIC)])],
            reaches: halted,
            ..base("suspend-two-vcpus")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, PREEMPTIBLE)])],
            budget: Budget { preemptions: 1, ..NONE },
            reaches: vec![Reach::Parked, Reach::Halted, Reach::Preempted],
            ..base("suspend-preempted")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![
                task(0, &[touch(0, User)]),
                task(0, &[touch(1, PREEMPTIBLE)]),
                pinned(0, &[Action::Disable, Action::Enable]),
            ],
            budget: Budget { preemptions: 1, ..NONE },
            reaches: vec![Reach::Halted, Reach::Preempted, Reach::Swept],
            ..base("suspend-preempted-disable")
        },
    ]
}

fn kill() -> Vec<Scenario> {
    let budget = Budget { kills: 1, ..NONE };
    let reaches = vec![Reach::Abandoned, Reach::Parked];
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, Kernel)])],
            budget,
            reaches: reaches.clone(),
            ..base("kill")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            budget: Budget { kills: 2, ..NONE },
            reaches: reaches.clone(),
            ..base("kill-both")
        },
        Scenario {
            slots: 1,
            tasks: one_each(),
            budget,
            late_interrupts: true,
            reaches,
            ..base("kill-one-slot")
        },
    ]
}

fn fail() -> Vec<Scenario> {
    let base = |name| Scenario {
        frames: vec![Frame::Gone, Frame::Missing],
        reaches: vec![Reach::Failed],
        ..base(name)
    };
    vec![
        Scenario { tasks: one_each(), ..base("fail") },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, ATOMIC)])],
            ..base("fail-two-vcpus")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            budget: Budget { kills: 1, ..NONE },
            reaches: vec![Reach::Failed, Reach::Abandoned],
            ..base("fail-kill")
        },
        Scenario {
            vcpus: 1,
            tasks: one_each(),
            budget: Budget { repairs: 1, ..NONE },
            ..base("fail-repair")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), pinned(0, &[Action::Disable])],
            reaches: vec![Reach::Failed, Reach::SweptFailure],
            ..base("fail-disable")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), pinned(0, &[Action::Disable])],
            frames: vec![Frame::Missing],
            budget: Budget { deadlines: 1, ..NONE },
            reaches: vec![Reach::Failed, Reach::SweptFailure],
            ..base("deadline-disable")
        },
        Scenario {
            fails_at_once: true,
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, ATOMIC)])],
            budget: Budget { repairs: 1, ..NONE },
            reaches: vec![Reach::FailedAtOnce, Reach::Failed],
            ..base("fail-at-once")
        },
        Scenario {
            fails_at_once: true,
            slots: 1,
            tasks: vec![task(0, &[touch(0, User), touch(1, User)]), task(0, &[touch(0, User)])],
            reaches: vec![Reach::FailedAtOnce],
            ..base("fail-at-once-scarce")
        },
        Scenario {
            fails_at_once: true,
            loses_events: true,
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { restores: 1, ..NONE },
            reaches: vec![Reach::FailedAtOnce, Reach::Failed],
            ..base("fail-at-once-restore")
        },
    ]
}

fn disable() -> Vec<Scenario> {
    let off = pinned(0, &[Action::Disable]);
    let off_on = pinned(0, &[Action::Disable, Action::Yield, Action::Enable]);
    let base = |name| Scenario { reaches: vec![Reach::Swept, Reach::Sync], ..base(name) };
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(1, ATOMIC)]), off],
            ..base("disable")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, User)]), off_on.clone()],
            ..base("disable-enable")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), off_on.clone()],
            budget: Budget { kills: 1, reclaims: 1, ..NONE },
            ..base("disable-enable-kill")
        },
        Scenario {
            vcpus: 1,
            tasks: vec![task(0, &[touch(0, User)]), off_on],
            budget: Budget { restores: 1, preemptions: 1, ..NONE },
            loses_events: true,
            ..base("disable-after-restore")
        },
    ]
}

fn restore() -> Vec<Scenario> {
    let base = |name| Scenario {
        vcpus: 1,
        budget: Budget { restores: 1, ..NONE },
        reaches: vec![Reach::Swept],
        ..base(name)
    };
    vec![
        Scenario {
            vcpus: 2,
            tasks: vec![task(0, &[touch(0, User)])],
            reaches: vec![Reach::Swept, Reach::Moved],
            ..base("restore-moved")
        },
        Scenario {
            vcpus: 2,
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, User)])],
            ..base("restore-two-vcpus")
        },
        Scenario { tasks: one_each(), loses_events: true, ..base("restore-loses-events") },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(0, &[touch(0, User)])],
            loses_pages: true,
            reaches: vec![Reach::Swept, Reach::Joined],
            ..base("restore-loses-pages")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, ATOMIC)]), task(0, &[touch(1, User)])],
            loses_pages: true,
            reaches: vec![Reach::Swept, Reach::Halted],
            ..base("restore-suspended")
        },
        Scenario {
            tasks: vec![task(0, &[touch(0, User)])],
            budget: Budget { restores: 2, ..NONE },
            loses_events: true,
            loses_pages: true,
            ..base("restore-twice")
        },
    ]
}

fn restore_and() -> Vec<Scenario> {
    let restores = Budget { restores: 1, ..NONE };
    let base =
        |name| Scenario { vcpus: 1, loses_events: true, reaches: vec![Reach::Swept], ..base(name) };
    vec![
        Scenario {
            slots: 1,
            tasks: one_each(),
            budget: Budget { kills: 1, ..restores },
            reaches: vec![Reach::Swept, Reach::Abandoned],
            ..base("restore-kill")
        },
        Scenario {
            frames: vec![Frame::Gone, Frame::Missing],
            tasks: one_each(),
            budget: restores,
            reaches: vec![Reach::Swept, Reach::Failed],
            ..base("restore-fail")
        },
        Scenario {
            tasks: vec![
                task(0, &[touch(0, User)]),
                pinned(0, &[Action::Lapic(false), Action::Yield, Action::Lapic(true)]),
            ],
            budget: restores,
            reaches: vec![Reach::Swept, Reach::Held],
            ..base("restore-lapic")
        },
    ]
}

fn scarce() -> Vec<Scenario> {
    let base = |name| Scenario { reaches: vec![Reach::Sync, Reach::Parked], ..base(name) };
    vec![
        Scenario {
            slots: 1,
            tasks: one_each(),
            reaches: vec![Reach::Stopped, Reach::Parked, Reach::FoundSlot],
            ..base("no-slot")
        },
        Scenario { threads: 1, tasks: one_each(), ..base("no-thread") },
    ]
}

fn lapic() -> Vec<Scenario> {
    let lapic = pinned(0, &[Action::Lapic(false), Action::Yield, Action::Lapic(true)]);
    vec![
        Scenario {
            tasks: vec![task(0, &[touch(0, User)]), task(1, &[touch(0, User)]), lapic],
            reaches: vec![Reach::Held, Reach::Stopped],
            ..base("lapic")
        },
        Scenario {
            tasks: [one_each(), vec![pinned(0, &[Action::Rescue])]].concat(),
            ..base("rescue-finds-nothing")
        },
    ]
}
