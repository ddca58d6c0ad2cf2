//! The guest kernel: the guest engine's trait, tasks, and the completion interrupt's handler.

use crate::fiber::{Next, Thread};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Action, From, Reach};
use crate::world::{Exit, Frame, Mode, Owned, Status, TaskModel, VcpuModel};
use std::num::NonZeroUsize;
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOT_MASK, injected_value};
use ve_apf_abi::word::{Generation, SlotWord, State as SlotState};
use ve_apf_guest::complete::{after_disable, before_enable, interrupt, rescue};
use ve_apf_guest::handle::{Mode as CpuMode, Verdict, handle_ve};
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiters};

/// A ring's CPU, used by a task that may have moved elsewhere, or by the interrupt handler.
struct Cpu<'a> {
    thread: Thread<'a>,
    index: usize,
    ring: ModelRing<'a>,
    /// `None`: the interrupt handler.
    task: Option<(&'a Runner<'a>, From)>,
}

/// A task, from inside.
struct Runner<'a> {
    thread: Thread<'a>,
    task: usize,
    nested: Option<usize>,
}

/// How an access ended.
enum Access {
    Done,
    Killed,
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
    fn look<R>(&self, f: impl FnOnce(&mut TaskModel) -> R) -> R {
        self.thread.world.with(|state| f(&mut state.tasks[self.task]))
    }

    /// Where it runs now.
    fn vcpu(&self) -> usize {
        match self.look(|task| task.status) {
            Status::Running(vcpu) => vcpu,
            other => unreachable!("a task that runs is {other:?}"),
        }
    }

    fn on_vcpu<R>(&self, f: impl FnOnce(&mut VcpuModel) -> R) -> R {
        let vcpu = self.vcpu();
        self.thread.world.with(|state| f(&mut state.vcpus[vcpu]))
    }

    fn cpu<'b>(&'b self, from: From) -> Cpu<'b> {
        let index = self.vcpu();
        let ring = ModelRing::new(self.thread, index, Side::Guest);
        Cpu { thread: self.thread, index, ring, task: Some((self, from)) }
    }

    /// The guest's instruction makes the vCPU exit; it goes on when the vCPU enters again.
    fn exit(&self, exit: Exit) {
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

    fn touch(&self, gfn: usize, write: bool, from: From, nested: bool) -> Access {
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

impl Cpu<'_> {
    fn runner(&self) -> (&Runner<'_>, From) {
        self.task.expect("only tasks park")
    }

    fn look<R>(&self, f: impl FnOnce(&mut TaskModel) -> R) -> R {
        self.runner().0.look(f)
    }

    fn own_step(&self) {
        let at_home = self.task.is_none_or(|(runner, _)| runner.vcpu() == self.index);
        self.thread.step_to(if at_home { Next::OwnTask } else { Next::Shared });
    }

    fn hypercall(&self, exit: Exit) -> i64 {
        let runner = self.runner().0;
        if runner.vcpu() != self.index {
            self.thread.world.violate("a hypercall from another CPU than the ring's");
        }
        loop {
            runner.exit(exit);
            if let Some(rax) = runner.on_vcpu(|vcpu| vcpu.rax) {
                return self.thread.learn(rax);
            }
            self.thread.world.reach(Reach::Again);
        }
    }
}

impl<'a> Platform for Cpu<'a> {
    type Ring = ModelRing<'a>;

    fn ring(&self) -> &Self::Ring {
        &self.ring
    }

    fn waiters<R>(&self, f: impl FnOnce(&mut Waiters) -> R) -> R {
        let world = self.thread.world;
        let wait = |lock| {
            world.with(|state| match self.task {
                Some((runner, _)) => state.tasks[runner.task].lock = lock,
                None => state.vcpus[self.index].irq_lock = lock,
            });
        };
        wait(Some(self.index));
        self.own_step();
        wait(None);
        let (mut waiters, hash) = world.with(|state| {
            let ring = &mut state.vcpus[self.index].ring;
            ring.locked = true;
            (ring.waiters.take(), ring.waiters.hash)
        });
        if size_of::<R>() != 0 {
            // What `f` tells, it tells from this.
            self.thread.learn(hash);
        }
        // Taking a lock commutes with all that others can do before the next access.
        world.merge.set(true);
        let result = f(&mut waiters);
        world.merge.set(false);
        world.with(|state| {
            let ring = &mut state.vcpus[self.index].ring;
            ring.locked = false;
            ring.waiters = Owned::new(waiters);
        });
        result
    }

    fn current(&self) -> TaskId {
        TaskId(NonZeroUsize::MIN.saturating_add(self.runner().0.task))
    }

    fn enter_ve(&self) -> bool {
        let nested = self.look(|task| std::mem::replace(&mut task.in_ve, true));
        self.thread.learn(nested)
    }

    fn leave_ve(&self) {
        self.look(|task| task.in_ve = false);
    }

    fn kernel_may_park(&self, _fault: &FaultInfo) -> Result<(), SuspendReason> {
        match self.runner().1 {
            From::Atomic(reason) => Err(reason),
            _ => Ok(()),
        }
    }

    fn prepare_to_sleep(&self, sleep: Sleep) {
        self.own_step();
        self.look(|task| {
            task.awake = false;
            task.killable = sleep == Sleep::Killable;
        });
        self.thread.note(|| "is about to sleep".into());
    }

    fn schedule(&self) {
        let (runner, _) = self.runner();
        if let Some(gfn) = runner.nested {
            // The scheduler's own memory may be missing too, at a point with interrupts on.
            self.look(|task| task.irqs = true);
            let from = From::Kernel;
            if !matches!(runner.touch(gfn, false, from, true), Access::Done) {
                self.thread.world.violate("the scheduler's page failed");
            }
            self.look(|task| task.irqs = false);
        }
        self.own_step();
        let vcpu = runner.vcpu();
        let sleeps = self.thread.world.with(|state| {
            let task = &mut state.tasks[runner.task];
            if task.awake {
                return false;
            }
            task.status = Status::Parked;
            state.vcpus[vcpu].current = None;
            true
        });
        if sleeps {
            self.thread.note(|| "sleeps".into());
            self.thread.step();
        }
    }

    fn finish_sleep(&self) {
        self.look(|task| task.awake = true);
    }

    fn fatal_signal(&self) -> bool {
        self.thread.learn(self.look(|task| task.fatal))
    }

    fn wake(&self, task: TaskId) {
        self.own_step();
        let task = task.0.get() - 1;
        self.thread.note(|| format!("wakes {}", name(task)));
        let waits = self.thread.world.with(|state| {
            let model = &mut state.tasks[task];
            model.wake();
            model.waits
        });
        if waits != Some(self.index) {
            self.thread.world.violate(format!("woke {}, which does not wait here", name(task)));
        }
    }

    fn submit(&self, slot: SlotIndex) -> i64 {
        let answer = self.hypercall(Exit::Submit(u64::from(slot.get())));
        if answer < 0 {
            self.thread.world.violate(format!("SUBMIT of a good slot answers {answer}"));
        }
        answer
    }

    fn status(&self, slot: SlotIndex, generation: Generation) -> i64 {
        self.hypercall(Exit::Status(u64::from(slot.get()), u64::from(generation.get())))
    }

    fn restore_soft_state(&self) {}

    fn report(&self, event: Event) {
        self.thread.note(|| format!("{event:?}"));
        let world = self.thread.world;
        match event {
            Event::EarlyOutcome(_) => world.reach(Reach::Early),
            Event::SpuriousWake(_) => world.reach(Reach::SpuriousWake),
            Event::Failed(..) => world.reach(Reach::Failed),
            Event::Suspended(_, SuspendReason::Nested) => world.reach(Reach::Nested),
            _ => {}
        }
        match event {
            Event::Parked(..) => {
                let index = self.index;
                let wrong = self.look(|task| {
                    let wrong = !task.may_park || task.waits.is_some();
                    task.waits = Some(index);
                    wrong
                });
                world.reach(Reach::Parked);
                if wrong {
                    self.thread.world.violate("parks where it must not");
                }
            }
            Event::Unparked(..) | Event::Abandoned(..) => {
                self.look(|task| task.waits = None);
                if let Event::Abandoned(..) = event {
                    world.reach(Reach::Abandoned);
                }
                if self.runner().0.vcpu() != self.index {
                    world.reach(Reach::Moved);
                }
            }
            Event::Rescued(slot) => {
                self.thread.world.violate(format!("slot {} was rescued", slot.get()));
            }
            Event::SpuriousVe => self.thread.world.violate("a #VE without a fault"),
            _ => {}
        }
    }
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

/// A task's name.
pub fn name(task: usize) -> char {
    char::from(b'A' + (task % 26) as u8)
}
