//! What belongs to one CPU.

use crate::abi::access::RingAccess;
use crate::abi::hypercall::{VE_APF_OP_RANGE, VE_APF_RANGE_WITHDRAW};
use crate::abi::msr::{
    Caps, EnValue, VE_APF_MSR_CAPS, VE_APF_MSR_EN, VE_APF_MSR_INT, VE_APF_MSR_VEINFO,
    VE_APF_VE_VECTOR, VE_APF_VEINFO_ENABLE, parse_caps,
};
use crate::counters::Counters;
use crate::platform::Metal;
use crate::sched::Scheduler;
use crate::sys::{self, Refused, hypercall};
use crate::tables::{self, FIRST_TSS, Page, Tables};
use crate::trap::{self, Frame, Handler};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use spin::Mutex;
use ve_apf_guest::waiters::Waiters;
use ve_apf_guest::{complete, handle};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts::without_interrupts;

/// CPUs there may be.
pub const CPUS: usize = 4;
/// Ranges that are declared again after a restore.
const RANGES: usize = 8;

/// One CPU. Whatever the host may be asked to take away is on pages of its own.
#[repr(C)]
pub struct Cpu {
    /// What the CPU itself reads.
    pub tables: Tables,
    /// The fault ring.
    pub ring: Page<[u8; 4096]>,
    /// VE info areas: the one that is used, and one to move to.
    pub info: [Page<[u8; 4096]>; 2],
    /// Tasks. From here on: what handlers use.
    pub sched: Scheduler,
    /// What happened.
    pub counters: Counters,
    /// Above 0, a task may not sleep.
    pub preempt_off: AtomicU32,
    pub(crate) waiters: Waiters,
    pub(crate) waiters_lock: Mutex<()>,
    /// The VE info area in use; 0 is none.
    pub(crate) info_at: AtomicU64,
    pub(crate) nmis: AtomicU32,
    /// Bit 0: KVM took the end of the interrupt for granted. See [`crate::lapic`].
    pub(crate) eoi: AtomicU32,
    ranges: Mutex<[(u64, u64); RANGES]>,
}

static ALL: [Cpu; CPUS] = [const { Cpu::new() }; CPUS];

/// How faults are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the host.
    Injected,
    /// By the CPU too, for declared memory.
    Hardware,
}

/// The running CPU.
pub fn this() -> &'static Cpu {
    let selector: u16;
    // SAFETY: reads the task register. It is not `pure`: a task does not move, but the compiler may not know which.
    unsafe { asm!("str {0:x}", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    let index = selector.wrapping_sub(FIRST_TSS) / 16;
    // `init` loaded the register; before it no handler runs.
    all().get(usize::from(index)).unwrap_or(&all()[0])
}

/// All of them, running or not.
pub fn all() -> &'static [Cpu; CPUS] {
    &ALL
}

/// Makes the running CPU number `index`, with tables and handlers. The running code becomes its first task.
///
/// # Safety
/// Once for each index, on that CPU, with interrupts off, in 64-bit mode, with memory mapped to itself.
pub unsafe fn init(index: usize) -> &'static Cpu {
    sys::init();
    trap::set_handler(VE_APF_VE_VECTOR, on_ve);
    trap::set_handler(trap::COMPLETION, on_completion);
    trap::set_handler(trap::GENERAL_PROTECTION, on_general_protection);
    // SAFETY: passed on to the caller.
    unsafe { tables::load(all(), index, trap::stubs()) };
    let cpu = this();
    cpu.sched.init();
    cpu
}

/// What the host offers; `None` if it knows nothing of ve-apf.
pub fn caps() -> Option<Caps> {
    sys::read_msr(VE_APF_MSR_CAPS).ok().and_then(parse_caps)
}

impl Cpu {
    const fn new() -> Self {
        Self {
            tables: Tables::new(),
            ring: Page::new([0; 4096]),
            info: [const { Page::new([0; 4096]) }; 2],
            sched: Scheduler::new(),
            counters: Counters::new(),
            preempt_off: AtomicU32::new(0),
            waiters: Waiters::new(),
            waiters_lock: Mutex::new(()),
            info_at: AtomicU64::new(0),
            nmis: AtomicU32::new(0),
            eoi: AtomicU32::new(0),
            ranges: Mutex::new([(0, 0); RANGES]),
        }
    }

    /// Its ring, for a look from outside.
    pub fn ring(&self) -> impl RingAccess + use<> {
        crate::platform::ring(self)
    }

    /// Its number.
    pub fn index(&self) -> usize {
        all().iter().position(|cpu| core::ptr::eq(cpu, self)).unwrap_or(0)
    }

    /// Switches ve-apf on, on this CPU.
    ///
    /// # Errors
    /// [`Refused`] by a host that lacks it.
    pub fn enable(&'static self, mode: Mode) -> Result<(), Refused> {
        without_interrupts(|| {
            complete::before_enable(&Metal::new(self, None));
            // SAFETY: the vector has a handler; the ring is a page of its own that is accessed as a ring only.
            unsafe {
                sys::write_msr(VE_APF_MSR_INT, trap::COMPLETION.into())?;
                sys::write_msr(VE_APF_MSR_EN, EnValue::new(self.ring.address(), true).bits())?;
            }
            if mode == Mode::Hardware { self.set_info(0) } else { Ok(()) }
        })
    }

    /// Switches it off; every task that is parked becomes ready.
    pub fn disable(&'static self) {
        without_interrupts(|| {
            // SAFETY: as in `enable`; both may be refused where there is nothing to switch off.
            let _ = unsafe { sys::write_msr(VE_APF_MSR_EN, 0) };
            self.info_at.store(0, SeqCst);
            complete::after_disable(&Metal::new(self, None));
        });
    }

    /// Makes one of the two pages the VE info area.
    ///
    /// # Errors
    /// [`Refused`] by a host without hardware mode, or while the ring is off.
    pub fn set_info(&self, which: usize) -> Result<(), Refused> {
        let page = self.info.get(which).ok_or(Refused)?.address();
        without_interrupts(|| {
            // SAFETY: the page is an info area's own, and #VE has a handler.
            unsafe { sys::write_msr(VE_APF_MSR_VEINFO, page | VE_APF_VEINFO_ENABLE)? };
            self.info_at.store(page, SeqCst);
            Ok(())
        })
    }

    /// Declares memory whose faults may be delivered by the CPU; the host's answer.
    pub fn declare(&self, gpa: u64, length: u64) -> i64 {
        let answer = hypercall(VE_APF_OP_RANGE, [gpa, length, 0]);
        if answer == 0 {
            without_interrupts(|| {
                let mut ranges = self.ranges.lock();
                if let Some(free) = ranges.iter_mut().find(|(_, length)| *length == 0) {
                    *free = (gpa, length);
                }
            });
        }
        answer
    }

    /// Takes a declaration back; the host's answer.
    pub fn withdraw(&self, gpa: u64, length: u64) -> i64 {
        without_interrupts(|| {
            let mut ranges = self.ranges.lock();
            ranges.iter_mut().filter(|one| **one == (gpa, length)).for_each(|one| *one = (0, 0));
        });
        hypercall(VE_APF_OP_RANGE, [gpa, length, VE_APF_RANGE_WITHDRAW])
    }

    /// What a restore may lose. With interrupts off.
    pub(crate) fn restore_soft_state(&self) {
        let at = self.info_at.load(SeqCst);
        let which = self.info.iter().position(|page| page.address() == at);
        if which.is_some_and(|which| self.set_info(which).is_ok()) {
            let ranges = *self.ranges.lock();
            for (gpa, length) in ranges.into_iter().filter(|(_, length)| *length != 0) {
                hypercall(VE_APF_OP_RANGE, [gpa, length, 0]);
            }
        }
    }

    /// How many NMIs this CPU is in.
    pub fn nmi_depth(&self) -> u32 {
        self.nmis.load(Relaxed)
    }

    /// Before a handler of an NMI that leaves by an `IRETQ` of its own.
    pub fn leave_nmi(&self) {
        self.nmis.fetch_sub(1, Relaxed);
    }

    /// Calls a handler.
    pub(crate) fn count_context(&'static self, frame: &mut Frame, handler: Handler) {
        let nmi = u32::from(frame.vector == u64::from(trap::NMI));
        self.nmis.fetch_add(nmi, Relaxed);
        handler(self, frame);
        self.nmis.fetch_sub(nmi, Relaxed);
    }
}

/// #VE: an exception where the CPU delivers it, an interrupt where the host does.
fn on_ve(cpu: &'static Cpu, frame: &mut Frame) {
    let from_user = frame.cpu.code_segment.0 & 3 != 0;
    let mode = if from_user { handle::Mode::User } else { handle::Mode::Kernel };
    let verdict = handle::handle_ve(&Metal::new(cpu, Some(frame)), mode);
    if let handle::Verdict::Fail { .. } = verdict {
        go_on_elsewhere(frame);
    }
}

fn on_completion(cpu: &'static Cpu, _: &mut Frame) {
    complete::interrupt(&Metal::new(cpu, None));
    crate::lapic::end_of_interrupt(cpu);
}

fn on_general_protection(_: &'static Cpu, frame: &mut Frame) {
    go_on_elsewhere(frame);
}

fn go_on_elsewhere(frame: &mut Frame) {
    match sys::fixup(frame.cpu.instruction_pointer.as_u64()) {
        Some(rip) => frame.cpu.instruction_pointer = VirtAddr::new(rip),
        None => trap::unhandled(frame),
    }
}
