//! One CPU, as the state machine sees it.

use crate::abi::access::{FaultInfo, RingAccess};
use crate::abi::hypercall::{VE_APF_OP_STATUS, VE_APF_OP_SUBMIT, VE_APF_OP_SUSPEND};
use crate::abi::ring::{SlotIndex, VE_APF_QUAL_FETCH};
use crate::abi::word::Generation;
use crate::cpu::Cpu;
use crate::ring_ptr::RingPtr;
use crate::sys::hypercall;
use crate::trap::Frame;
use crate::ve_info_ptr::VeInfoPtr;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiter, Waiters};
use x86_64::registers::rflags::RFlags;

static PARKABLE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// The guest-physical addresses of data that code may sleep over, and that it holds nothing while it reads: what is user
/// data for Linux. A fault anywhere else suspends the vCPU.
pub fn set_parkable(range: &Range<u64>) {
    PARKABLE[0].store(range.start, SeqCst);
    PARKABLE[1].store(range.end, SeqCst);
}

/// The ring's CPU, during one exception or interrupt.
pub(crate) struct Metal<'a> {
    cpu: &'static Cpu,
    ring: RingPtr,
    info: Option<VeInfoPtr>,
    frame: Option<&'a Frame>,
}

fn page_of(address: *mut [u8; 4096]) -> NonNull<u8> {
    NonNull::new(address.cast()).unwrap_or(NonNull::dangling())
}

/// The ring of a CPU, one of [`crate::cpu::all`].
pub(crate) fn ring(cpu: &Cpu) -> RingPtr {
    // SAFETY: the page is the ring's own, in a static, aligned, mapped, and nothing else reaches into it.
    unsafe { RingPtr::new(page_of(cpu.ring.get())) }
}

impl<'a> Metal<'a> {
    /// `cpu` is the running CPU, and interrupts are off; `frame` is that of a fault.
    pub(crate) fn new(cpu: &'static Cpu, frame: Option<&'a Frame>) -> Self {
        let ring = ring(cpu);
        let at = cpu.info_at.load(Relaxed);
        let info = cpu.info.iter().find(|page| page.address() == at).map(|page| {
            // SAFETY: as for the ring; beside us only the CPU writes it.
            unsafe { VeInfoPtr::new(page_of(page.get())) }
        });
        Self { cpu, ring, info, frame }
    }
}

impl Platform for Metal<'_> {
    type Ring = RingPtr;
    type VeInfo = VeInfoPtr;

    fn ring(&self) -> &RingPtr {
        &self.ring
    }

    fn ve_info(&self) -> Option<&VeInfoPtr> {
        self.info.as_ref()
    }

    fn waiters<R>(&self, f: impl FnOnce(&Waiters) -> R) -> R {
        // Interrupts are off, and what runs in an NMI never parks: nobody waits here for himself.
        let _guard = self.cpu.waiters_lock.lock();
        f(&self.cpu.waiters)
    }

    fn announce(&self, slot: SlotIndex, task: TaskId) {
        self.cpu.waiters.set(slot, Waiter::Task(task));
    }

    fn current(&self) -> TaskId {
        self.cpu.sched.current_id()
    }

    fn enter_ve(&self) -> bool {
        self.cpu.sched.current().in_ve.swap(true, Relaxed)
    }

    fn leave_ve(&self) {
        self.cpu.sched.current().in_ve.store(false, Relaxed);
    }

    fn kernel_may_park(&self, fault: &FaultInfo) -> Result<(), SuspendReason> {
        let Some(frame) = self.frame else { return Err(SuspendReason::Unknown) };
        let [start, end] = [&PARKABLE[0], &PARKABLE[1]].map(|bound| bound.load(Relaxed));
        if self.cpu.nmi_depth() > 0 {
            Err(SuspendReason::Nmi)
        } else if !frame.cpu.cpu_flags.contains(RFlags::INTERRUPT_FLAG) {
            Err(SuspendReason::IrqsOff)
        } else if self.cpu.preempt_off.load(Relaxed) > 0 {
            Err(SuspendReason::Atomic)
        } else if self.cpu.sched.is_idle() {
            Err(SuspendReason::Idle)
        } else if fault.qualification & VE_APF_QUAL_FETCH != 0 {
            Err(SuspendReason::Fetch)
        } else if !(start..end).contains(&fault.gpa) {
            Err(SuspendReason::NotUserData)
        } else {
            Ok(())
        }
    }

    fn prepare_to_sleep(&self, _: Sleep) {
        self.cpu.sched.prepare_to_sleep();
    }

    fn schedule(&self) {
        self.cpu.sched.schedule();
    }

    fn finish_sleep(&self) {
        self.cpu.sched.finish_sleep();
    }

    fn fatal_signal(&self) -> bool {
        // There is no user mode, and so nobody to kill.
        false
    }

    fn wake(&self, task: TaskId) {
        self.cpu.sched.wake(task);
    }

    fn submit(&self, slot: SlotIndex) -> i64 {
        hypercall(VE_APF_OP_SUBMIT, [slot.get().into(), 0, 0])
    }

    fn suspend(&self, gpa: u64, qualification: u64) -> i64 {
        hypercall(VE_APF_OP_SUSPEND, [gpa, qualification, 0])
    }

    fn status(&self, slot: SlotIndex, generation: Generation) -> i64 {
        hypercall(VE_APF_OP_STATUS, [slot.get().into(), generation.get().into(), 0])
    }

    fn restore_soft_state(&self) {
        self.cpu.restore_soft_state();
    }

    fn report(&self, event: Event) {
        self.cpu.counters.note(event, |slot| self.ring.fault(slot).gpa);
    }
}
