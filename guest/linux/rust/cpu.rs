//! One CPU of Linux, as the state machine sees it.

use crate::abi::access::FaultInfo;
use crate::abi::ring::SlotIndex;
use crate::abi::word::Generation;
use crate::ring_ptr::RingPtr;
use crate::ve_info_ptr::VeInfoPtr;
use crate::sys::{self, EventNumber, MAY_PARK, PtRegs, VeApfCpu, WAITERS_WORDS};
use core::ffi::c_void;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiters};

const _: () = assert!(size_of::<Waiters>() <= WAITERS_WORDS * size_of::<u64>());
const _: () = assert!(align_of::<Waiters>() <= align_of::<u64>());

/// Where the private array lies.
///
/// # Safety
/// `cpu` points to a `struct ve_apf_cpu`.
unsafe fn waiters_of(cpu: NonNull<VeApfCpu>) -> *mut Waiters {
    // SAFETY: the field lies inside what `cpu` points to; no reference is made.
    unsafe { (&raw mut (*cpu.as_ptr()).waiters).cast() }
}

/// Writes an empty private array.
///
/// # Safety
/// `cpu` points to a `struct ve_apf_cpu` that nobody uses yet.
pub(crate) unsafe fn init(cpu: NonNull<VeApfCpu>) {
    // SAFETY: `cpu` is as `waiters_of` wants it; size and alignment are asserted above, and nobody
    // else looks at the array yet.
    unsafe { waiters_of(cpu).write(Waiters::new()) };
}

/// The ring's CPU, during one call from C.
pub(crate) struct Linux {
    cpu: NonNull<VeApfCpu>,
    ring: RingPtr,
    info: Option<VeInfoPtr>,
    regs: Option<NonNull<PtRegs>>,
}

impl Linux {
    /// # Safety
    /// `cpu` went through [`init`] and lives for ever; the ring it names is a page of its own that
    /// is accessed only atomically, and so is the VE info area, by the CPU apart. `regs`, if any, outlive the value. Interrupts are off, now and
    /// in every call, and at first this is the ring's CPU.
    pub(crate) unsafe fn new(cpu: NonNull<VeApfCpu>, regs: Option<NonNull<PtRegs>>) -> Self {
        // SAFETY: the field was set before `init` and never changes; the page is as promised.
        let ring = unsafe { RingPtr::new((&raw const (*cpu.as_ptr()).ring).read()) };
        // SAFETY: as for the ring; only this CPU changes the field.
        let info = unsafe { (&raw const (*cpu.as_ptr()).info).read() };
        // SAFETY: the page is as promised.
        let info = info.map(|page| unsafe { VeInfoPtr::new(page) });
        Self { cpu, ring, info, regs }
    }

    fn tell(&self, event: EventNumber, slot: Option<SlotIndex>, value: u64) {
        let slot = slot.map_or(u32::MAX, |slot| u32::from(slot.get()));
        // SAFETY: `new` promises `cpu` and `regs`; C looks at them only during the call.
        unsafe { sys::ve_apf_os_report(self.cpu, self.regs, event, slot, value) }
    }
}

impl Platform for Linux {
    type Ring = RingPtr;
    type VeInfo = VeInfoPtr;

    fn ring(&self) -> &RingPtr {
        &self.ring
    }

    fn ve_info(&self) -> Option<&VeInfoPtr> {
        self.info.as_ref()
    }

    fn waiters<R>(&self, f: impl FnOnce(&mut Waiters) -> R) -> R {
        // SAFETY: `cpu` holds an initialised lock, and interrupts are off, so nothing on this CPU
        // can wait for it while we hold it.
        unsafe { sys::ve_apf_os_lock(self.cpu) };
        // SAFETY: `init` wrote the array, and the lock makes this reference the only one: `f` can
        // not lead back here, since it has no platform to call `waiters` on but ours, which
        // no caller nests.
        let result = f(unsafe { &mut *waiters_of(self.cpu) });
        // SAFETY: taken above.
        unsafe { sys::ve_apf_os_unlock(self.cpu) };
        result
    }

    fn current(&self) -> TaskId {
        // SAFETY: no precondition beyond process context or an exception, where there is a task.
        let task = unsafe { sys::ve_apf_os_current() };
        TaskId(task.expose_provenance())
    }

    fn enter_ve(&self) -> bool {
        // SAFETY: changes a flag of the running task, which only this task changes.
        unsafe { sys::ve_apf_os_enter() }
    }

    fn leave_ve(&self) {
        // SAFETY: as `enter_ve`.
        unsafe { sys::ve_apf_os_leave() }
    }

    fn kernel_may_park(&self, fault: &FaultInfo) -> Result<(), SuspendReason> {
        let Some(regs) = self.regs else {
            return Err(SuspendReason::Unknown);
        };
        // SAFETY: `new` promises that `regs` are those of the exception.
        match unsafe { sys::ve_apf_os_may_park(regs, fault.gpa, fault.qualification) } {
            MAY_PARK => Ok(()),
            number => Err(reason(number)),
        }
    }

    fn prepare_to_sleep(&self, sleep: Sleep) {
        // SAFETY: the state machine sleeps only where the task may.
        unsafe { sys::ve_apf_os_prepare_to_sleep(sleep == Sleep::Killable) }
    }

    fn schedule(&self) {
        // SAFETY: called by the state machine in a task that may sleep, with its state set and
        // interrupts off; no lock is held.
        unsafe { sys::ve_apf_os_schedule() }
    }

    fn finish_sleep(&self) {
        // SAFETY: changes the running task's own state.
        unsafe { sys::ve_apf_os_finish_sleep() }
    }

    fn fatal_signal(&self) -> bool {
        // SAFETY: looks at the running task.
        unsafe { sys::ve_apf_os_fatal_signal() }
    }

    fn wake(&self, task: TaskId) {
        let Some(task) = NonNull::new(with_exposed_provenance_mut::<c_void>(task.0.get())) else {
            return;
        };
        // SAFETY: the task is in the private array, whose lock is held: to leave it, and so to
        // exit, the task must first take that lock.
        unsafe { sys::ve_apf_os_wake(task) }
    }

    fn submit(&self, slot: SlotIndex) -> i64 {
        // SAFETY: a hypercall has no precondition; it writes nothing but the ring.
        unsafe { sys::ve_apf_os_submit(u64::from(slot.get())) }
    }

    fn suspend(&self, gpa: u64, qualification: u64) -> i64 {
        // SAFETY: as `submit`.
        unsafe { sys::ve_apf_os_suspend(gpa, qualification) }
    }

    fn status(&self, slot: SlotIndex, generation: Generation) -> i64 {
        // SAFETY: as `submit`.
        unsafe { sys::ve_apf_os_status(u64::from(slot.get()), u64::from(generation.get())) }
    }

    fn restore_soft_state(&self) {
        // SAFETY: `new` promises `cpu`, which is this one.
        unsafe { sys::ve_apf_os_restore(self.cpu) }
    }

    fn report(&self, event: Event) {
        match event {
            Event::Fault(slot, gpa) => self.tell(EventNumber::Fault, Some(slot), gpa),
            Event::Delivered(slot, gpa) => self.tell(EventNumber::Delivered, Some(slot), gpa),
            Event::NoSlot(gpa) => self.tell(EventNumber::NoSlot, None, gpa),
            Event::Unrung(slot) => self.tell(EventNumber::Unrung, Some(slot), 0),
            Event::SpuriousVe => self.tell(EventNumber::SpuriousVe, None, 0),
            Event::EarlyOutcome(slot) => self.tell(EventNumber::Early, Some(slot), 0),
            Event::Parked(slot, generation) => {
                self.tell(EventNumber::Parked, Some(slot), u64::from(generation.get()));
            }
            Event::Unparked(slot, generation) => {
                self.tell(EventNumber::Unparked, Some(slot), u64::from(generation.get()));
            }
            Event::Abandoned(slot, generation) => {
                self.tell(EventNumber::Abandoned, Some(slot), u64::from(generation.get()));
            }
            Event::Suspended(slot, reason) => {
                self.tell(EventNumber::Suspended, Some(slot), reason as u64);
            }
            Event::Failed(slot, cause) => self.tell(EventNumber::Failed, slot, u64::from(cause)),
            Event::SpuriousWake(slot) => self.tell(EventNumber::SpuriousWake, Some(slot), 0),
            Event::Interrupt(woken) => self.tell(EventNumber::Interrupt, None, u64::from(woken)),
            Event::Rescued(slot) => self.tell(EventNumber::Rescued, Some(slot), 0),
            Event::NewEpoch(epoch) => self.tell(EventNumber::NewEpoch, None, u64::from(epoch)),
        }
    }
}

/// A reason from its number in C; what C can not name is unknown.
fn reason(number: u32) -> SuspendReason {
    const REASONS: [SuspendReason; 10] = [
        SuspendReason::Nested,
        SuspendReason::Atomic,
        SuspendReason::Rcu,
        SuspendReason::Idle,
        SuspendReason::State,
        SuspendReason::PagefaultDisabled,
        SuspendReason::Fetch,
        SuspendReason::NotUserData,
        SuspendReason::IrqsOff,
        SuspendReason::Nmi,
    ];
    let found = REASONS.into_iter().find(|reason| *reason as u32 == number);
    found.unwrap_or(SuspendReason::Unknown)
}
