//! Guest tasks: the steps of a script, the exception entry, and the interrupt's entry.

use crate::fiber::Thread;
use crate::guest::Cpu;
use crate::ring::{ModelRing, Side};
use crate::scenario::{Action, From, Reach};
use crate::world::{Exit, Frame, Mode, Status, TaskModel, VcpuModel};
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOT_MASK, injected_value};
use ve_apf_abi::word::{SlotWord, State as SlotState};
use ve_apf_guest::complete::{after_disable, before_enable, interrupt, rescue};
use ve_apf_guest::handle::{Mode as CpuMode, Verdict, handle_ve};
use ve_apf_guest::platform::Platform;

/// A task, from inside.
pub struct Runner<'a> {
    /// Its fiber.
    pub thread: Thread<'a>,
    /// Its index.
    pub task: usize,
    /// The page that schedule() accesses.
    pub nested: Option<usize>,
}

/// How an access ended.
pub enum Access {
    /// It succeeded.
    Done,
    /// A fatal signal came first.
    Killed,
    /// The page can never come.
    Failed,
}

/// The body of a task's fiber.
pub fn run_task(thread: Thread<'_>, task: usize) {
    let spec = &thread.world.scenario.tasks[task];
    let runner = Runner { thread, task, nested: spec.nested };
    let mut end = Status::Finished;
    for (place, &action) in spec.script.iter().enumerate() {
        runner.look(|task| task.place = place);
        thread.forget(place);
        match runner.act(action) {
            Access::Done => {}
            Access::Killed => end = Status::Killed,
            Access::Failed => end = Status::Failed,
        }
        if end != Status::Finished {
            break;
        }
    }
    thread.forget("over");
    thread.note(|| format!("is over: {end:?}"));
    let vcpu = runner.vcpu();
    thread.world.with(|state| {
        state.tasks[task].status = end;
        state.vcpus[vcpu].current = None;
    });
}

/// The body of the completion interrupt.
pub fn run_interrupt(thread: Thread<'_>, vcpu: usize) {
    thread.forget("interrupt");
    let ring = ModelRing::new(thread, vcpu, Side::Guest);
    interrupt(&Cpu { thread, index: vcpu, ring, task: None });
    thread.forget("interrupt over");
    thread.world.with(|state| state.vcpus[vcpu].in_irq = false);
}

impl<'a> Runner<'a> {
    /// One look at its state, or one change of it.
    pub fn look<R>(&self, f: impl FnOnce(&mut TaskModel) -> R) -> R {
        self.thread.world.with(|state| f(&mut state.tasks[self.task]))
    }

    /// Where it runs now.
    pub fn vcpu(&self) -> usize {
        match self.look(|task| task.status) {
            Status::Running(vcpu) => vcpu,
            other => unreachable!("a task that runs is {other:?}"),
        }
    }

    /// One look at the vCPU it runs on, or one change of it.
    pub fn on_vcpu<R>(&self, f: impl FnOnce(&mut VcpuModel) -> R) -> R {
        let vcpu = self.vcpu();
        self.thread.world.with(|state| f(&mut state.vcpus[vcpu]))
    }

    fn cpu<'b>(&'b self, from: From) -> Cpu<'b> {
        let index = self.vcpu();
        let ring = ModelRing::new(self.thread, index, Side::Guest);
        Cpu { thread: self.thread, index, ring, task: Some((self, from)) }
    }

    /// The guest's instruction makes the vCPU exit; it goes on when the vCPU enters again.
    pub fn exit(&self, exit: Exit) {
        self.on_vcpu(|vcpu| vcpu.exit(exit));
        self.thread.step();
    }

    fn act(&self, action: Action) -> Access {
        match action {
            Action::Touch { gfn, write, from } => return self.touch(gfn, write, from, false),
            Action::Submit { gfn } => return self.submit(gfn),
            Action::Disable => self.quietly(|| {
                self.exit(Exit::Disable);
                after_disable(&self.cpu(From::Kernel));
            }),
            Action::Enable => self.quietly(|| {
                before_enable(&self.cpu(From::Kernel));
                self.exit(Exit::Enable);
            }),
            Action::Lapic(on) => {
                self.thread.step();
                self.exit(Exit::Lapic(on));
            }
            Action::Yield => {
                self.thread.step();
                let vcpu = self.vcpu();
                self.thread.world.with(|state| {
                    state.tasks[self.task].status = Status::Runnable;
                    state.vcpus[vcpu].current = None;
                });
                self.thread.step();
            }
            Action::Rescue => self.quietly(|| {
                if rescue(&self.cpu(From::Kernel)).lost {
                    before_enable(&self.cpu(From::Kernel));
                    self.exit(Exit::Enable);
                }
            }),
        }
        Access::Done
    }

    /// Runs with interrupts off.
    fn quietly(&self, f: impl FnOnce()) {
        self.thread.step();
        self.look(|task| task.irqs = false);
        f();
        self.look(|task| task.irqs = true);
    }

    /// Accesses a page until that succeeds.
    pub fn touch(&self, gfn: usize, write: bool, from: From, nested: bool) -> Access {
        loop {
            if !nested {
                self.thread.forget(("touch", gfn));
            }
            self.look(|task| task.preemptible = !nested && from == From::User);
            self.thread.step();
            self.look(|task| task.preemptible = false);
            if self.thread.world.with(|state| state.frames[gfn] == Frame::Mapped) {
                self.thread.note(|| format!("accesses gfn {gfn}"));
                return Access::Done;
            }
            let place = self.look(|task| task.place);
            let rip = 1 + (self.task * 16 + place * 2 + usize::from(nested)) as u64;
            self.exit(Exit::Fault { gfn, write, rip });
            let (ve, failed) = self.on_vcpu(|vcpu| {
                (std::mem::take(&mut vcpu.ve), std::mem::take(&mut vcpu.fault_failed))
            });
            if failed {
                return Access::Failed;
            }
            if ve {
                match self.virtualization_exception(gfn, from) {
                    Access::Done => {}
                    ended => return ended,
                }
            }
        }
    }

    /// Vector 20: the entry code around the engine's handler.
    fn virtualization_exception(&self, gfn: usize, from: From) -> Access {
        self.thread.note(|| format!("#VE for gfn {gfn}"));
        let ring = 1 << self.vcpu();
        let before = self.look(|task| {
            task.irqs = false;
            task.rings |= ring;
            task.killable
        });
        let outer = self.look(|task| task.may_park);
        let mode = if from == From::User { CpuMode::User } else { CpuMode::Kernel };
        let nested = self.look(|task| task.in_ve);
        self.look(|task| task.may_park = !nested && !matches!(from, From::Atomic(_)));
        let verdict = handle_ve(&self.cpu(from), mode);
        self.look(|task| {
            task.may_park = outer;
            task.rings &= !if nested { 0 } else { ring };
            task.killable = before;
            task.irqs = true;
        });
        self.thread.note(|| format!("#VE is over: {verdict:?}"));
        match verdict {
            Verdict::Retry => Access::Done,
            Verdict::Spurious => {
                self.thread.world.violate("a #VE without a fault");
                Access::Done
            }
            Verdict::Killed => {
                if !self.look(|task| task.fatal) || from != From::User {
                    self.thread.world.violate("killed without a fatal signal");
                }
                Access::Killed
            }
            Verdict::Fail { cause, gpa, .. } => {
                if gpa != (gfn as u64) << 12 || cause == 0 {
                    self.thread.world.violate(format!("FAIL {cause} of {gpa:#x} for gfn {gfn}"));
                }
                Access::Failed
            }
        }
    }

    /// As hardware mode's handler will: takes a slot, says SUBMIT, goes on as for an injected one.
    fn submit(&self, gfn: usize) -> Access {
        self.thread.step();
        self.look(|task| task.irqs = false);
        let cpu = self.cpu(From::User);
        let ring = &cpu.ring;
        let mut verdict = Access::Done;
        if let Some(slot) = SlotIndex::lowest(!ring.bits(Bitmap::Active) & VE_APF_SLOT_MASK) {
            ring.set_bits(Bitmap::Active, slot.bit());
            let fault = FaultInfo { reason: 48, gpa: (gfn as u64) << 12, ..FaultInfo::default() };
            ring.set_fault(slot, fault);
            let free = ring.word(slot);
            let word = SlotWord::new(free.generation().next(), SlotState::CAN_CONTINUE);
            if ring.swap_word(slot, free, word).is_err() {
                self.thread.world.violate("a free slot changed");
            }
            let answer = cpu.submit(slot);
            self.thread.note(|| format!("SUBMIT answered {answer}"));
            if answer != 1 {
                self.thread.world.reach(Reach::AtOnce);
            }
            ring.set_injected(injected_value(slot));
            verdict = self.virtualization_exception(gfn, From::User);
        }
        self.look(|task| task.irqs = true);
        match verdict {
            Access::Done => self.touch(gfn, false, From::User, false),
            ended => ended,
        }
    }
}

impl VcpuModel {
    /// Leaves the guest.
    pub fn exit(&mut self, exit: Exit) {
        self.exit = exit;
        self.mode = Mode::Host;
        // An IPI that is on its way finds the vCPU out of the guest; the request stays.
        (self.announced, self.ipi) = (false, false);
    }
}
