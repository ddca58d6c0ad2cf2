//! One CPU of Linux, as the state machine sees it.

use crate::abi::access::{FaultInfo, RingAccess};
use crate::abi::ring::SlotIndex;
use crate::abi::word::Generation;
use crate::ring_ptr::RingPtr;
use crate::sys::{
    self, EventNumber, MAY_PARK, PtRegs, VeApfCpu, WAITERS_WORDS, count, count_one, counter,
};
use crate::ve_info_ptr::VeInfoPtr;
use core::ffi::c_void;
use core::num::NonZeroUsize;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiter, Waiters};

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

/// Empties the private array.
///
/// # Safety
/// `cpu` points to a `struct ve_apf_cpu` that lives for ever, its array initialised to anything,
/// and that nobody uses yet.
pub(crate) unsafe fn init(cpu: NonNull<VeApfCpu>) {
    // SAFETY: `cpu` is as `waiters_of` wants it; size and alignment are asserted above, and any
    // value of an atomic is one. A whole array would be written by a call of memset(), through a
    // table that the kernel does not have.
    unsafe { &*waiters_of(cpu) }.clear();
}

/// What only an exception has.
#[derive(Clone, Copy)]
pub(crate) struct Exception {
    pub(crate) regs: NonNull<PtRegs>,
    /// `current`
    pub(crate) task: NonNull<c_void>,
    /// `&current->in_ve_apf`
    pub(crate) in_ve: NonNull<AtomicBool>,
}

/// The ring's CPU, during one call from C.
pub(crate) struct Linux {
    cpu: NonNull<VeApfCpu>,
    ring: RingPtr,
    info: Option<VeInfoPtr>,
    exception: Option<Exception>,
}

impl Linux {
    /// # Safety
    /// `cpu` went through [`init`] and lives for ever; the ring it names is a page of its own that
    /// is accessed only atomically, and so is the VE info area, by the CPU apart. What `exception`
    /// points to, if there is one, outlives the value. Interrupts are off, now and in every call,
    /// and at first this is the ring's CPU.
    #[inline(always)]
    pub(crate) unsafe fn new(cpu: NonNull<VeApfCpu>, exception: Option<Exception>) -> Self {
        // SAFETY: the field was set before `init` and never changes; the page is as promised.
        let ring = unsafe { RingPtr::new((&raw const (*cpu.as_ptr()).ring).read()) };
        // SAFETY: as for the ring; only this CPU changes the field.
        let info = unsafe { (&raw const (*cpu.as_ptr()).info).read() };
        // SAFETY: the page is as promised.
        let info = info.map(|page| unsafe { VeInfoPtr::new(page) });
        Self { cpu, ring, info, exception }
    }

    /// The running task's flag, which nobody else changes; asked for only inside an exception.
    #[inline(always)]
    fn in_ve(&self) -> Option<&AtomicBool> {
        // SAFETY: what the exception points to outlives `self`, as `new` promises, and the flag is
        // accessed atomically only.
        self.exception.as_ref().map(|exception| unsafe { exception.in_ve.as_ref() })
    }

    /// The task sleeps: the host may forget its slot.
    #[inline(always)]
    fn arm_rescue(&self) {
        // SAFETY: `cpu` is as `new` promises; a task parks on the ring's own CPU, the only one
        // that changes the field, with interrupts off.
        if !unsafe { (&raw const (*self.cpu.as_ptr()).rescue_armed).read() } {
            // SAFETY: as above.
            unsafe { sys::ve_apf_arm_rescue(self.cpu) }
        }
    }

    /// Traces, and counts what is too rare for [`count_one`]. Inlined, so that of all this only
    /// one call is left, and neither the event nor `self` has to lie in memory.
    #[inline(always)]
    fn tell_of(&self, event: Event) {
        let gpa = |slot| self.ring.fault(slot).gpa;
        let use_of = |slot| u64::from(self.ring.word(slot).generation().get());
        let regs = self.exception.map(|exception| exception.regs);
        match event {
            Event::Fault(slot) => tell(regs, EventNumber::Fault, Some(slot), gpa(slot)),
            Event::Delivered(slot) => tell(regs, EventNumber::Delivered, Some(slot), gpa(slot)),
            Event::NoSlot(gpa) => tell(regs, EventNumber::NoSlot, None, gpa),
            Event::Unrung(slot) => tell(regs, EventNumber::Unrung, Some(slot), 0),
            Event::SpuriousVe => tell(regs, EventNumber::SpuriousVe, None, 0),
            Event::EarlyOutcome(slot) => tell(regs, EventNumber::Early, Some(slot), 0),
            Event::Parked(slot, _) => tell(regs, EventNumber::Parked, Some(slot), use_of(slot)),
            Event::Unparked(slot) => tell(regs, EventNumber::Unparked, Some(slot), use_of(slot)),
            Event::Abandoned(slot, generation) => {
                tell(regs, EventNumber::Abandoned, Some(slot), u64::from(generation.get()));
            }
            Event::Suspended(slot, reason) => {
                tell(regs, EventNumber::Suspended, Some(slot), reason as u64);
            }
            Event::Failed(slot, cause) => tell(regs, EventNumber::Failed, slot, u64::from(cause)),
            Event::SpuriousWake(slot) => tell(regs, EventNumber::SpuriousWake, Some(slot), 0),
            Event::Interrupt(woken) => tell(regs, EventNumber::Interrupt, None, u64::from(woken)),
            Event::Rescued(slot) => tell(regs, EventNumber::Rescued, Some(slot), 0),
            Event::NewEpoch(epoch) => tell(regs, EventNumber::NewEpoch, None, u64::from(epoch)),
        }
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

    fn waiters<R>(&self, f: impl FnOnce(&Waiters) -> R) -> R {
        // SAFETY: `cpu` holds an initialised lock, and interrupts are off, so nothing on this CPU
        // can wait for it while we hold it.
        unsafe { sys::ve_apf_os_lock(self.cpu) };
        // SAFETY: `init` wrote the array, which consists of atomics.
        let result = f(unsafe { &*waiters_of(self.cpu) });
        // SAFETY: taken above.
        unsafe { sys::ve_apf_os_unlock(self.cpu) };
        result
    }

    fn announce(&self, slot: SlotIndex, task: TaskId) {
        // SAFETY: `init` wrote the array, which consists of atomics.
        unsafe { &*waiters_of(self.cpu) }.set(slot, Waiter::Task(task));
    }

    fn current(&self) -> TaskId {
        let task = self.exception.map(|exception| exception.task.expose_provenance());
        // Asked for only inside an exception.
        TaskId(task.unwrap_or(NonZeroUsize::MIN))
    }

    fn enter_ve(&self) -> bool {
        self.in_ve().is_some_and(|flag| {
            let nested = flag.load(Relaxed);
            flag.store(true, Relaxed);
            nested
        })
    }

    fn leave_ve(&self) {
        if let Some(flag) = self.in_ve() {
            flag.store(false, Relaxed);
        }
    }

    fn kernel_may_park(&self, fault: &FaultInfo) -> Result<(), SuspendReason> {
        let Some(Exception { regs, .. }) = self.exception else {
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
        unsafe {
            match sleep {
                Sleep::Killable => sys::ve_apf_os_sleep_killable(),
                Sleep::Unkillable => sys::ve_apf_os_sleep_idle(),
            }
        }
    }

    fn schedule(&self) {
        // SAFETY: called by the state machine in a task that may sleep, with its state set and
        // interrupts off; no lock is held.
        unsafe { sys::schedule_ve_apf() }
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

    #[inline(always)]
    fn ring_doorbell(&self, slot: SlotIndex) -> i64 {
        sys::vmcall_submit(u64::from(slot.get()))
    }

    fn wait(&self, slot: SlotIndex) -> i64 {
        match self.exception {
            // SAFETY: as `submit`; `new` promises that `regs` are those of the exception.
            Some(Exception { regs, .. }) => unsafe {
                sys::ve_apf_os_wait(regs, u64::from(slot.get()))
            },
            None => self.submit(slot),
        }
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

    #[inline(always)]
    fn report(&self, event: Event) {
        // Each fault has these; the rest is rare.
        match event {
            Event::Fault(_) => count_one::<{ counter::INJECTED }>(),
            Event::Delivered(_) => count_one::<{ counter::DELIVERED }>(),
            Event::Parked(_, sleep) => {
                match sleep {
                    Sleep::Killable => count_one::<{ counter::PARKED_USER }>(),
                    Sleep::Unkillable => count_one::<{ counter::PARKED_KERNEL }>(),
                }
                self.arm_rescue();
            }
            Event::Unparked(_) => count_one::<{ counter::UNPARKED }>(),
            Event::Interrupt(woken) => {
                count_one::<{ counter::INTERRUPTS }>();
                count::<{ counter::WOKEN }>(u64::from(woken));
            }
            _ => return self.tell_of(event),
        }
        if sys::traced() {
            self.tell_of(event);
        }
    }
}

#[cold]
#[inline(never)]
fn tell(regs: Option<NonNull<PtRegs>>, event: EventNumber, slot: Option<SlotIndex>, value: u64) {
    let slot = slot.map_or(u32::MAX, |slot| u32::from(slot.get()));
    // SAFETY: `regs`, where there are any, are those of the exception being handled.
    unsafe { sys::ve_apf_os_report(regs, event, slot, value) }
}

/// A reason from its number in C; what C can not name is unknown. Of nesting it knows nothing.
fn reason(number: u32) -> SuspendReason {
    const REASONS: [SuspendReason; 9] = [
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
