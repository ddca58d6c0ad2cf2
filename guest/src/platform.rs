//! What the state machine needs from a kernel, for one CPU and its ring.

use crate::waiters::{TaskId, Waiters};
use ve_apf_abi::access::{FaultInfo, RingAccess, VeInfoAccess};
use ve_apf_abi::ring::SlotIndex;
use ve_apf_abi::word::Generation;

/// Why a fault suspended the vCPU instead of parking the task. The numbers are those of the
/// kernel's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SuspendReason {
    /// The task was already in the handler.
    Nested = 0,
    /// Preemption was disabled: spinlocks, softirq, per-CPU sections.
    Atomic = 1,
    /// Inside an RCU read-side critical section.
    Rcu = 2,
    /// The idle task.
    Idle = 3,
    /// The task was about to sleep: its state was not TASK_RUNNING.
    State = 4,
    /// `pagefault_disable()` was in force.
    PagefaultDisabled = 5,
    /// An instruction fetch by the kernel.
    Fetch = 6,
    /// Not core or module text, or not user data: code that does not expect to sleep there.
    NotUserData = 7,
    /// The kernel cannot tell whether it may sleep (no CONFIG_PREEMPT_COUNT).
    Unknown = 8,
    /// Interrupts were off.
    IrqsOff = 9,
    /// NMI.
    Nmi = 10,
}

impl SuspendReason {
    /// How many there are.
    pub const COUNT: usize = 11;
}

/// How a parked task sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sleep {
    /// A fatal signal ends it: the fault came from user mode.
    Killable,
    /// Nothing but the page ends it: kernel code holds on to things.
    Unkillable,
}

/// What the state machine reports; for counters and tracepoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A fault that the host injected was taken up; the slot describes it.
    Fault(SlotIndex),
    /// A fault that the CPU delivered was taken up; the slot describes it.
    Delivered(SlotIndex),
    /// A fault that the CPU delivered, of this guest-physical address, found no free slot.
    NoSlot(u64),
    /// The host polls, and finds this slot without the doorbell.
    Unrung(SlotIndex),
    /// #VE without a fault to handle.
    SpuriousVe,
    /// The page was there before the task slept.
    EarlyOutcome(SlotIndex),
    /// The task sleeps, in that manner.
    Parked(SlotIndex, Sleep),
    /// It runs again, and the host has spoken.
    Unparked(SlotIndex),
    /// A fatal signal ended the wait.
    Abandoned(SlotIndex, Generation),
    /// The vCPU was suspended.
    Suspended(SlotIndex, SuspendReason),
    /// The host failed the fault, of this slot if there was one, for this `VE_APF_CAUSE_*`.
    Failed(Option<SlotIndex>, u16),
    /// A task was woken though the host had not spoken: it sleeps again.
    SpuriousWake(SlotIndex),
    /// The completion interrupt: how many tasks it woke.
    Interrupt(u32),
    /// The host knew nothing of a fault; its task was freed all the same.
    Rescued(SlotIndex),
    /// The host lost its soft state.
    NewEpoch(u32),
}

/// One CPU, as the state machine sees it. `&self` stands for the ring's CPU even after the task
/// that uses it was migrated.
pub trait Platform {
    /// The ring's memory.
    type Ring: RingAccess;

    /// The VE info area.
    type VeInfo: VeInfoAccess;

    /// The ring of this CPU.
    fn ring(&self) -> &Self::Ring;
    /// The VE info area of this CPU; `None` where hardware mode is not in use.
    fn ve_info(&self) -> Option<&Self::VeInfo>;

    /// Runs `f` on the private array beside the ring, under a lock that excludes the completion
    /// interrupt on this CPU and every other CPU. `f` does not sleep.
    fn waiters<R>(&self, f: impl FnOnce(&Waiters) -> R) -> R;
    /// Writes `task` into the entry of `slot`, without the lock. Whoever looks at that entry runs
    /// on this CPU with interrupts off, as the caller does, or had it before `slot` was free.
    fn announce(&self, slot: SlotIndex, task: TaskId);

    /// The running task. Keeps its identity until [`wake`](Self::wake) can no longer be called
    /// for it.
    fn current(&self) -> TaskId;

    /// Sets the running task's in-#VE flag; returns whether it was set before.
    fn enter_ve(&self) -> bool;
    /// Clears it.
    fn leave_ve(&self);

    /// May code that faulted in kernel mode sleep here?
    ///
    /// # Errors
    /// The reason why not; never [`Nested`](SuspendReason::Nested), which [`enter_ve`](Self::enter_ve) knows.
    fn kernel_may_park(&self, fault: &FaultInfo) -> Result<(), SuspendReason>;

    /// Marks the running task as sleeping, with a full fence after it. A wake from here on is not
    /// lost.
    fn prepare_to_sleep(&self, sleep: Sleep);
    /// Gives up the CPU unless the task was woken since
    /// [`prepare_to_sleep`](Self::prepare_to_sleep), or sleeps [`Sleep::Killable`] and a fatal
    /// signal is pending. May return early. On entry and return interrupts are off.
    fn schedule(&self);
    /// Marks the running task as running.
    fn finish_sleep(&self);
    /// Is a fatal signal pending for the running task?
    fn fatal_signal(&self) -> bool;
    /// Wakes a task. Called with the lock of [`waiters`](Self::waiters) held.
    fn wake(&self, task: TaskId);

    /// Hypercall `SUBMIT(slot)`: RAX.
    fn submit(&self, slot: SlotIndex) -> i64;
    /// The same, in hardware mode only: there is no CPU but VMX's that raises #VE by itself.
    fn ring_doorbell(&self, slot: SlotIndex) -> i64 {
        self.submit(slot)
    }
    /// Hypercall `SUBMIT(slot)` of a slot in `SUSPEND_ME`: RAX. If the code that faulted could be
    /// interrupted there, it may be meanwhile, and if it could be preempted, other tasks may run;
    /// it stays on this CPU. On entry and return interrupts are off. By default, all the time.
    fn wait(&self, slot: SlotIndex) -> i64 {
        self.submit(slot)
    }
    /// Hypercall `SUSPEND(gpa, qualification)`: RAX.
    fn suspend(&self, gpa: u64, qualification: u64) -> i64;
    /// Hypercall `STATUS(slot, generation)`: RAX. Only on the ring's own CPU.
    fn status(&self, slot: SlotIndex, generation: Generation) -> i64;

    /// Sets up the soft state again (`VEINFO`, `RANGE`). Only on the ring's own CPU.
    fn restore_soft_state(&self);

    /// Counts and traces.
    fn report(&self, event: Event);
}
