//! What a scenario consists of: a machine, its tasks, and what may go wrong how often.

use crate::hash;
use crate::hash::Owned;
use crate::vcpu::{Exit, Found, InfoModel, Mode, PollLock, RingModel, SLOTS, SlotModel, VcpuModel};
use crate::world::{Frame, State, Status, TaskModel, VmWorks};
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::word::SlotWord;
use ve_apf_guest::platform::SuspendReason;
use ve_apf_guest::waiters::Waiters;
use ve_apf_host::poll::{Poll, Seen};
use ve_apf_host::vcpu::VcpuState;

/// Where a touch happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum From {
    /// User mode.
    User,
    /// Kernel mode, where it may sleep.
    Kernel,
    /// Kernel mode, where it may not.
    Atomic(SuspendReason),
}

impl From {
    /// Are interrupts on there?
    pub fn irqs(self) -> bool {
        self != Self::Atomic(SuspendReason::IrqsOff)
    }

    /// May other tasks run there, if an interrupt finds some?
    pub fn preemptible(self) -> bool {
        use SuspendReason::{Atomic, Idle, IrqsOff, Nested, Nmi};
        !matches!(self, Self::Atomic(Atomic | Idle | IrqsOff | Nested | Nmi))
    }
}

/// One step of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Accesses a page, again and again until that succeeds.
    Touch {
        /// Frame number.
        gfn: usize,
        /// Write access.
        write: bool,
        /// In which mode.
        from: From,
    },
    /// WRMSR EN = 0 and the scan after it.
    Disable,
    /// WRMSR EN = on.
    Enable,
    /// Software-disables or enables the LAPIC.
    Lapic(bool),
    /// Lets others run on its vCPU.
    Yield,
    /// Asks the host for every slot that waits.
    Rescue,
}

/// A guest task.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// What it does.
    pub script: Vec<Action>,
    /// The only vCPU it may start on.
    pub starts: Option<usize>,
    /// It stays there.
    pub pinned: bool,
    /// While it parks, schedule() itself accesses this page.
    pub nested: Option<usize>,
}

/// What may still happen, each at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// SIGKILL to a task, from user mode or not.
    pub kills: u8,
    /// A sleeping task is woken for nothing.
    pub wakes: u8,
    /// A page is taken away again.
    pub reclaims: u8,
    /// A VMM saves and restores the VM.
    pub restores: u8,
    /// A task is preempted in user mode.
    pub preemptions: u8,
    /// The deadline fails all that wait.
    pub deadlines: u8,
    /// Other memory appears at a frame for which a thread works.
    pub moves: u8,
    /// A frame that could never come can, from now on.
    pub repairs: u8,
    /// An NMI hits vCPU 0.
    pub nmis: u8,
    /// The first so many #VE that the CPU delivers to tasks find the kernel's stack missing: they
    /// exit, and are injected again.
    pub detours: u8,
    /// The host starts to poll a ring.
    pub polls: u8,
    /// The poller's time is over.
    pub quits: u8,
    /// A vCPU leaves the host's loop, and comes back.
    pub leaves: u8,
}

/// Something that a scenario is for: at least one interleaving must come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The outcome was there before the handler looked.
    Early,
    /// A task parked.
    Parked,
    /// A task went on on another vCPU than the one it parked on.
    Moved,
    /// The vCPU halted for a suspended task.
    Halted,
    /// A killed task left its slot behind.
    Abandoned,
    /// A task was told that its page can never come.
    Failed,
    /// A fault was failed when it happened.
    FailedAtOnce,
    /// A task was woken for nothing.
    SpuriousWake,
    /// A nested fault suspended.
    Nested,
    /// A fault joined a running work.
    Joined,
    /// A fault was resolved on the vCPU's own thread.
    Sync,
    /// A vCPU that could not be told halted for its page.
    Stopped,
    /// It was woken, and touched the page again, before that wait was over.
    StoppedAgain,
    /// Its wait failed, and the VMM was told.
    Told,
    /// A vCPU that waited found a slot.
    FoundSlot,
    /// A sweep completed a slot.
    Swept,
    /// A sweep met a failure that was known.
    SweptFailure,
    /// A sweep completed a slot that the guest had not submitted yet.
    SweptUntold,
    /// The interrupt was held back until the LAPIC was enabled.
    Held,
    /// SUBMIT answered at once.
    AtOnce,
    /// SUBMIT could not be queued.
    Unqueued,
    /// A suspended hypercall was executed again.
    Again,
    /// An interrupt was taken while the vCPU stood still for a task.
    Interrupted,
    /// Another task ran meanwhile.
    Preempted,
    /// The host looked again after it had announced guest mode, and found a request.
    SecondLook,
    /// The CPU raised #VE by itself.
    Delivered,
    /// No slot was free for it.
    NoSlot,
    /// An NMI was suspended.
    Nmi,
    /// A declared page made the vCPU exit, since the busy word was set.
    Busy,
    /// A slot was handed in without the doorbell.
    Unrung,
    /// The poller took a slot.
    Polled,
    /// It did so in its last look.
    LastLook,
    /// The vCPU's thread took up what was handed in, as it stopped the polling.
    Collected,
    /// The poller had to leave something to the vCPU's thread.
    Left,
    /// A vCPU was told of several completions at once, by the timer.
    Gathered,
    /// The timer found that the vCPU had exited for something else.
    ToldBefore,
}

/// A rule that is broken on purpose, in what the harness supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Rule 14: the host does not look again after it announced guest mode.
    NoSecondLook,
    /// The guest forgets the VE info area before it switches hardware mode off.
    ForgetsTooEarly,
    /// The guest expects hardware mode only after it switched it on.
    ExpectsTooLate,
    /// The guest switches hardware mode on without clearing the busy word.
    KeepsBusy,
    /// The guest lets a task go elsewhere for which this vCPU stands still.
    LetsGo,
    /// The host tells the guest of the fault that a SUBMIT waits for, though it knows.
    Tells,
}

/// A machine and its tasks.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// How many vCPUs.
    pub vcpus: usize,
    /// Slots of each ring that may be free.
    pub slots: usize,
    /// Threads of the VM that resolve pages.
    pub threads: usize,
    /// Guest memory at the start.
    pub frames: Vec<Frame>,
    /// Hardware mode: bit per frame that the guest declares. None: it is not used.
    pub declared: u8,
    /// Guest tasks.
    pub tasks: Vec<Task>,
    /// The frames that an NMI accesses.
    pub nmi: Vec<usize>,
    /// What may go wrong.
    pub budget: Budget,
    /// The host knows of a page that can never come when it is touched, not only after a thread tried.
    pub fails_at_once: bool,
    /// A restore may drop the pending #VE and interrupt.
    pub loses_events: bool,
    /// A restore may take all pages away.
    pub loses_pages: bool,
    /// The completion interrupt may be held up by others though IF is set.
    pub late_interrupts: bool,
    /// The host leaves a vCPU in the guest for a while if more completions are to come.
    pub gathers: bool,
    /// What it is for.
    pub reaches: Vec<Reach>,
    /// Partial-order reduction; off to test that it hides nothing.
    pub reduced: bool,
    /// What the harness does wrong.
    pub broken: Option<Broken>,
}

impl Scenario {
    /// The state at the start.
    pub fn start(&self) -> State {
        let slot = SlotModel {
            word: SlotWord(0),
            fault: FaultInfo::default(),
            cause: 0,
            completed_use: None,
            known_failed: None,
        };
        let ring = RingModel {
            active: 0,
            submitted: 0,
            completed: 0,
            injected: 0,
            host_flags: 0,
            epoch: 0,
            slots: [slot; SLOTS],
            waiters: Owned::new(Waiters::new()),
            locked: false,
        };
        let vcpu = VcpuModel {
            ring,
            mode: Mode::Guest,
            exit: Exit::Kick,
            found: Found::default(),
            announced: true,
            request: false,
            ipi: false,
            gathering: false,
            irr: false,
            lapic: true,
            enabled: true,
            sweep: false,
            late: None,
            sweeping: false,
            waiting: false,
            current: None,
            in_irq: false,
            irq_lock: None,
            host: Owned::new(VcpuState::new()),
            info: InfoModel::default(),
            veinfo: self.declared != 0,
            expects: self.declared != 0,
            woken_by_irq: false,
            nmi: false,
            in_nmi: false,
            below: Found::default(),
            idle_in_ve: false,
            poll: Owned::new(Poll::new()),
            seen: Owned::new(Seen::default()),
            watched: false,
            polling: false,
            looking: None,
            poll_lock: PollLock::Free,
        };
        let task = TaskModel {
            status: Status::Runnable,
            started: false,
            awake: true,
            irqs: true,
            fatal: false,
            killable: false,
            in_ve: false,
            lock: None,
            preemptible: false,
            stays: None,
            place: 0,
            rings: 0,
            waits: None,
            may_park: false,
        };
        State {
            vcpus: vec![vcpu; self.vcpus],
            tasks: vec![task; self.tasks.len()],
            frames: self.frames.clone(),
            works: Owned::new(VmWorks::new()),
            workers: Vec::new(),
            budget: self.budget,
            history: vec![hash::of(&0); self.fibers()],
            disturbed: false,
            event_lost: false,
            declared: self.declared != 0,
        }
    }

    /// May a page that the task accesses never come?
    pub fn may_fail(&self, task: usize) -> bool {
        let gone = |gfn: usize| self.frames[gfn] == crate::world::Frame::Gone;
        self.tasks[task].script.iter().any(|action| match *action {
            Action::Touch { gfn, .. } => gone(gfn) || self.budget.deadlines > 0,
            _ => false,
        })
    }

    /// How many fibers: the tasks, then per vCPU the handlers of interrupt and NMI, the host's
    /// thread and the poller.
    pub fn fibers(&self) -> usize {
        self.tasks.len() + 4 * self.vcpus
    }

    /// The fiber of a vCPU's interrupt handler.
    pub fn irq_fiber(&self, vcpu: usize) -> usize {
        self.tasks.len() + 4 * vcpu
    }

    /// The fiber of a vCPU's thread in the host.
    pub fn host_fiber(&self, vcpu: usize) -> usize {
        self.tasks.len() + 4 * vcpu + 1
    }

    /// The fiber of a vCPU's NMI handler.
    pub fn nmi_fiber(&self, vcpu: usize) -> usize {
        self.tasks.len() + 4 * vcpu + 2
    }

    /// The fiber of the poller's look at a vCPU's ring.
    pub fn poll_fiber(&self, vcpu: usize) -> usize {
        self.tasks.len() + 4 * vcpu + 3
    }

    /// Is any ring ever polled?
    pub fn polls(&self) -> bool {
        self.budget.polls > 0
    }
}
