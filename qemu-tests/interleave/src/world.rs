//! The state of the machine: everything an interleaving can change, plus what the checks remember.

use crate::fiber::Next;
use crate::hash;
use crate::scenario::{Budget, Reach, Scenario};
use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::word::SlotWord;
use ve_apf_guest::waiters::Waiters;
use ve_apf_host::platform::{Page, Resolution};
use ve_apf_host::vcpu::VcpuState;
use ve_apf_host::works::{WorkId, Works};

/// Slots of a ring that a scenario may leave free; all others are in use from the start.
pub const SLOTS: usize = 2;

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

/// A value that a thread owns while it uses it; then its hash is the old one, and what the thread
/// did with it follows from the thread's history.
#[derive(Clone, Debug)]
pub struct Owned<T> {
    value: Option<T>,
    /// Of the value when it was last here.
    pub hash: u64,
}

impl<T: Hash> Owned<T> {
    /// Puts a value there.
    pub fn new(value: T) -> Self {
        Self { hash: hash::of(&value), value: Some(value) }
    }

    /// Takes it away.
    pub fn take(&mut self) -> T {
        self.value.take().expect("one owner at a time")
    }

    /// Looks at it.
    pub fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }
}

impl<T> Hash for Owned<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

/// One slot.
#[derive(Clone, Copy, Debug, Hash)]
pub struct SlotModel {
    /// State word.
    pub word: SlotWord,
    /// Description of the fault.
    pub fault: FaultInfo,
    /// Failure cause.
    pub cause: u16,
    /// For the checks: the last use that the host completed.
    pub completed_use: Option<u32>,
    /// For the checks: the use whose work is known to have failed.
    pub known_failed: Option<u32>,
}

/// One ring, and the guest's private array beside it.
#[derive(Clone, Debug, Hash)]
pub struct RingModel {
    /// `active`, without the slots that are never free.
    pub active: u64,
    /// `submitted`
    pub submitted: u64,
    /// `completed`
    pub completed: u64,
    /// `injected`
    pub injected: u32,
    /// `host_flags`
    pub host_flags: u32,
    /// `epoch`
    pub epoch: u32,
    /// The slots.
    pub slots: [SlotModel; SLOTS],
    /// Guest-private.
    pub waiters: Owned<Waiters>,
    /// The raw lock of `waiters` is taken.
    pub locked: bool,
}

/// Why a vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// An IPI, or the VMM's pause.
    Kick,
    /// A page was not mapped.
    Fault {
        /// Frame number.
        gfn: usize,
        /// Write access.
        write: bool,
        /// Where.
        rip: u64,
    },
    /// Hypercall SUBMIT.
    Submit(u64),
    /// Hypercall STATUS.
    Status(u64, u64),
    /// EN = 0.
    Disable,
    /// EN = on.
    Enable,
    /// The LAPIC is software-disabled, or enabled.
    Lapic(bool),
}

/// Where a vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Guest code.
    Guest,
    /// Host code runs, or is about to.
    Host,
    /// Halted in the host until somebody kicks it.
    Halted,
    /// Resolves a page itself, at leisure.
    Resolving(usize),
}

/// One vCPU with its LAPIC, and the host's state of it.
#[derive(Clone, Debug, Hash)]
pub struct VcpuModel {
    /// Its ring.
    pub ring: RingModel,
    /// Guest or host.
    pub mode: Mode,
    /// Why it left the guest, until host code starts.
    pub exit: Exit,
    /// RAX of the last hypercall; `None`: execute it again.
    pub rax: Option<i64>,
    /// A page could not be resolved: the VMM was told.
    pub fault_failed: bool,
    /// Guest mode was announced: a kick sends an IPI.
    pub announced: bool,
    /// Somebody asked it to look at its mailbox.
    pub request: bool,
    /// An IPI is on its way.
    pub ipi: bool,
    /// #VE will be delivered at entry.
    pub ve: bool,
    /// The completion vector is pending in the LAPIC.
    pub irr: bool,
    /// The LAPIC is enabled.
    pub lapic: bool,
    /// EN is on.
    pub enabled: bool,
    /// A VMM wrote EN: sweep before the next entry.
    pub sweep: bool,
    /// A sweep runs: it completes slots without their pages.
    pub sweeping: bool,
    /// The running task; `None`: idle.
    pub current: Option<usize>,
    /// The completion interrupt's handler runs, above the task.
    pub in_irq: bool,
    /// Its handler waits for the lock of this ring.
    pub irq_lock: Option<usize>,
    /// The host's state.
    pub host: Owned<VcpuState>,
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
    /// Step of its script.
    pub place: usize,
    /// The rings on whose slots it has a hand: bit per ring.
    pub rings: u8,
    /// For the checks: the ring on which it waits.
    pub waits: Option<usize>,
    /// For the checks: may it park here?
    pub may_park: bool,
}

/// A thread that resolves a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    /// Which work.
    pub id: WorkId,
    /// Of which page.
    pub page: Page,
    /// The deadline ended the work; the thread does not know.
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
    reached: Cell<u32>,
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
        self.reached.set(self.reached.get() | 1 << what as u32);
    }

    /// Did any?
    pub fn has_reached(&self, what: Reach) -> bool {
        self.reached.get() & 1 << what as u32 != 0
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
