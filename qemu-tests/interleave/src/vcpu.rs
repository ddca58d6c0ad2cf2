//! One vCPU: its ring and VE info area, what it runs, and the host's state of it.

use crate::hash::Owned;
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::ring::SlotIndex;
use ve_apf_abi::word::SlotWord;
use ve_apf_guest::waiters::Waiters;
use ve_apf_host::poll::{Poll, Seen};
use ve_apf_host::vcpu::VcpuState;

/// Slots of a ring that a scenario may leave free; all others are in use from the start.
pub const SLOTS: usize = 2;

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
    pub known_failed: Option<(u32, u16)>,
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

/// The VE info area of a vCPU.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub struct InfoModel {
    /// The busy word.
    pub busy: u32,
    /// What the CPU wrote; nothing while not busy.
    pub fault: FaultInfo,
    /// For the checks: the slot and use that the fault was published in.
    pub slot: Option<(SlotIndex, u32)>,
    /// For the checks: a hypercall that tells the host of the fault returned.
    pub told: bool,
    /// For the checks: a restore dropped the #VE before its handler began.
    pub lost: bool,
}

/// What guest code finds when it goes on after an exit.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub struct Found {
    /// RAX of the last hypercall; `None`: execute it again.
    pub rax: Option<i64>,
    /// A page could not be resolved: the VMM was told.
    pub fault_failed: bool,
    /// #VE was injected.
    pub ve: bool,
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
    /// The delivery of a #VE met a page that was not mapped: it goes on at the next entry.
    Delivery,
    /// Hypercall SUBMIT.
    Submit(u64),
    /// Hypercall SUSPEND, of an address and a qualification.
    Suspend(u64, u64),
    /// Hypercall STATUS.
    Status(u64, u64),
    /// VEINFO is switched on.
    VeInfo,
    /// Hypercall RANGE: declares what the scenario says.
    Range,
    /// EN = 0.
    Disable,
    /// EN = on.
    Enable,
    /// The LAPIC is software-disabled, or enabled.
    Lapic(bool),
    /// `KVM_RUN` ends, and begins again.
    Leave,
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
    /// Resolves a page on its own thread, at leisure.
    Resolving(usize),
}

/// The lock that the poller looks under, as the vCPU's thread sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PollLock {
    /// Not its own.
    Free,
    /// It waits for it.
    Wanted,
    /// Its own.
    Held,
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
    /// For the code that exited. A `ve` here is delivered at entry.
    pub found: Found,
    /// Guest mode was announced: a kick sends an IPI.
    pub announced: bool,
    /// Somebody asked it to look at its mailbox.
    pub request: bool,
    /// An IPI is on its way.
    pub ipi: bool,
    /// A timer runs, and then kicks it if it still has to look.
    pub gathering: bool,
    /// The completion vector is pending in the LAPIC.
    pub irr: bool,
    /// The LAPIC is enabled.
    pub lapic: bool,
    /// EN is on.
    pub enabled: bool,
    /// A VMM wrote EN: sweep before the next entry.
    pub sweep: bool,
    /// For the checks: the frame for which it waits itself, or did, and whose deadline is over.
    pub late: Option<usize>,
    /// A sweep runs: it completes slots without their pages.
    pub sweeping: bool,
    /// A hypercall waits for a page: the guest need not be told of that.
    pub waiting: bool,
    /// The running task; `None`: idle.
    pub current: Option<usize>,
    /// The completion interrupt's handler runs, above the task.
    pub in_irq: bool,
    /// Its handler waits for the lock of this ring.
    pub irq_lock: Option<usize>,
    /// The host's state.
    pub host: Owned<VcpuState>,
    /// Its VE info area.
    pub info: InfoModel,
    /// VEINFO is on. The host loses it in a restore.
    pub veinfo: bool,
    /// The guest expects hardware mode.
    pub expects: bool,
    /// The completion interrupt ended its halt, and is taken at the next entry.
    pub woken_by_irq: bool,
    /// An NMI waits for the vCPU to enter the guest.
    pub nmi: bool,
    /// The NMI's handler runs, above all else.
    pub in_nmi: bool,
    /// What the code below the NMI will find.
    pub below: Found,
    /// In-#VE flag of the idle task.
    pub idle_in_ve: bool,
    /// What its thread and the poller share; guarded as the VM's table.
    pub poll: Owned<Poll>,
    /// What the poller remembers.
    pub seen: Owned<Seen>,
    /// The poller looks at its ring.
    pub watched: bool,
    /// Polling was started, and not stopped by its thread.
    pub polling: bool,
    /// The poller is in the middle of a look; of its last one, if so.
    pub looking: Option<bool>,
    /// The lock around a look.
    pub poll_lock: PollLock,
}

impl VcpuModel {
    /// Leaves the guest.
    pub fn exit(&mut self, exit: Exit) {
        self.exit = exit;
        self.mode = Mode::Host;
        self.woken_by_irq = false;
        // An IPI that is on its way finds the vCPU out of the guest; the request stays.
        (self.announced, self.ipi) = (false, false);
    }

    /// The guest enters its NMI handler. What the code below was to find, it finds afterwards; a
    /// #VE is delivered, but its handler has not begun.
    pub fn begin_nmi(&mut self) {
        self.in_nmi = true;
        self.below = std::mem::take(&mut self.found);
    }
}
