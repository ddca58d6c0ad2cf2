//! The state of the machine: everything an interleaving can change, plus what the checks remember.

use crate::fiber::Next;
use crate::hash::Owned;
use crate::scenario::{Budget, Reach, Scenario};
use crate::vcpu::VcpuModel;
use std::cell::{Cell, RefCell};
use ve_apf_host::platform::{Page, Resolution};
use ve_apf_host::works::{WorkId, Works};

/// The VM's table, as small as the scenarios allow.
pub type VmWorks = Works<4, 6, 2>;

/// A guest page frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// The guest can access it.
    Mapped,
    /// The host has it, the guest's tables do not.
    InHost,
    /// Somewhere else; a work gets it.
    Missing,
    /// It can never come.
    Gone,
}

/// How a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Waits for a CPU.
    Runnable,
    /// On this vCPU.
    Running(usize),
    /// Sleeps.
    Parked,
    /// Its script is done.
    Finished,
    /// A fatal signal ended it.
    Killed,
    /// It was told that its page can never come.
    Failed,
}

/// One guest task.
#[derive(Clone, Debug, Hash)]
pub struct TaskModel {
    /// Sleeping, running, over.
    pub status: Status,
    /// It ran before.
    pub started: bool,
    /// TASK_RUNNING: woken, or not yet asleep.
    pub awake: bool,
    /// Interrupts are on where it runs.
    pub irqs: bool,
    /// A fatal signal is pending.
    pub fatal: bool,
    /// A signal ends its sleep.
    pub killable: bool,
    /// In-#VE flag.
    pub in_ve: bool,
    /// The lock it waits for.
    pub lock: Option<usize>,
    /// At a place where the scheduler may take its CPU away.
    pub preemptible: bool,
    /// It runs nowhere but on this vCPU.
    pub stays: Option<usize>,
    /// Step of its script.
    pub place: usize,
    /// The rings on whose slots it has a hand: bit per ring.
    pub rings: u8,
    /// For the checks: the ring on which it waits.
    pub waits: Option<usize>,
    /// For the checks: may it park here?
    pub may_park: bool,
}

impl TaskModel {
    /// Makes it run, if it sleeps or is about to.
    pub fn wake(&mut self) {
        self.awake = true;
        if self.status == Status::Parked {
            self.status = Status::Runnable;
        }
    }
}

/// A thread that resolves a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Which work.
    pub id: WorkId,
    /// Of which page.
    pub page: Page,
    /// The frame is other memory now, and the work has ended; the thread does not know.
    pub late: bool,
    /// What came of it, not yet told.
    pub outcome: Option<Resolution>,
}

/// The machine.
#[derive(Clone, Debug, Hash)]
pub struct State {
    /// vCPUs.
    pub vcpus: Vec<VcpuModel>,
    /// Guest tasks.
    pub tasks: Vec<TaskModel>,
    /// Guest memory.
    pub frames: Vec<Frame>,
    /// The VM's table.
    pub works: Owned<VmWorks>,
    /// Threads of the VM.
    pub workers: Vec<Worker>,
    /// What may still go wrong.
    pub budget: Budget,
    /// Per fiber: what it learnt.
    pub history: Vec<u64>,
    /// A page was taken away again: RESOLVED may come without it.
    pub disturbed: bool,
    /// A pending event was dropped.
    pub event_lost: bool,
    /// The ranges are declared. The host loses them in a restore.
    pub declared: bool,
}

/// The state, and what is not part of it.
pub struct World {
    /// What is run.
    pub scenario: Scenario,
    state: RefCell<State>,
    violation: RefCell<Option<String>>,
    trace: RefCell<Option<Vec<String>>>,
    actor: RefCell<String>,
    /// Per fiber: what it accesses next. Follows from where it is.
    pub next: RefCell<Vec<Next>>,
    /// Bit per [`Reach`], of all runs.
    reached: Cell<u64>,
    /// The next step belongs to the one before it.
    pub merge: Cell<bool>,
}

impl World {
    /// A machine at its start.
    pub fn new(scenario: Scenario) -> Self {
        Self {
            next: RefCell::new(vec![Next::Shared; scenario.fibers()]),
            state: RefCell::new(scenario.start()),
            scenario,
            violation: RefCell::default(),
            trace: RefCell::default(),
            actor: RefCell::default(),
            reached: Cell::new(0),
            merge: Cell::new(false),
        }
    }

    /// Back to the start.
    pub fn reset(&self, start: &State, traced: bool) {
        self.state.borrow_mut().clone_from(start);
        self.violation.take();
        self.merge.set(false);
        self.trace.replace(traced.then(Vec::new));
    }

    /// One look at the state, or one change of it.
    pub fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.borrow_mut())
    }

    /// A run came by here.
    pub fn reach(&self, what: Reach) {
        self.reached.set(self.reached.get() | 1 << what as u64);
    }

    /// Did any?
    pub fn has_reached(&self, what: Reach) -> bool {
        self.reached.get() & 1 << what as u64 != 0
    }

    /// The protocol was broken.
    pub fn violate(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(|| format!("VIOLATION: {what}"));
        self.violation.borrow_mut().get_or_insert(what);
    }

    /// What was broken.
    pub fn violation(&self) -> Option<String> {
        self.violation.borrow().clone()
    }

    /// Was anything?
    pub fn is_broken(&self) -> bool {
        self.violation.borrow().is_some()
    }

    /// Who acts from here on, for the trace.
    pub fn act(&self, actor: impl FnOnce() -> String) {
        if self.trace.borrow().is_some() {
            self.actor.replace(actor());
        }
    }

    /// A line of the trace.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if let Some(lines) = self.trace.borrow_mut().as_mut() {
            lines.push(format!("{:<22} {}", self.actor.borrow(), text()));
        }
    }

    /// The trace, if one was kept.
    pub fn trace(&self) -> Vec<String> {
        self.trace.borrow().clone().unwrap_or_default()
    }
}

/// A task's name.
pub fn name(task: usize) -> char {
    char::from(b'A' + (task % 26) as u8)
}
