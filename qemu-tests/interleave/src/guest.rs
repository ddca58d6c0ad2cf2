//! The guest engine's trait, as a kernel supplies it.

use crate::fiber::{Next, Thread};
use crate::info::{ModelInfo, linear};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Broken, From, Reach};
use crate::task::{Access, Runner};
use crate::world::{Exit, Owned, Status, TaskModel};
use std::num::NonZeroUsize;
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::hypercall::{VE_APF_FAIL, VE_APF_RESOLVED};
use ve_apf_abi::ring::SlotIndex;
use ve_apf_abi::word::Generation;
use ve_apf_guest::handle::{Mode as CpuMode, Verdict, handle_ve};
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiters};

/// A ring's CPU, used by a task that may have moved elsewhere, or by a handler that runs on it.
pub struct Cpu<'a> {
    /// The fiber.
    thread: Thread<'a>,
    /// Whose ring.
    index: usize,
    ring: ModelRing<'a>,
    info: Option<ModelInfo<'a>>,
    context: Context<'a>,
    /// For the checks: the fault that raised #VE.
    raised: Option<Raised>,
}

/// What runs there.
#[derive(Clone, Copy)]
pub enum Context<'a> {
    /// A task, at such a place.
    Task(&'a Runner<'a>, From),
    /// The completion interrupt.
    Interrupt,
    /// An NMI.
    Nmi,
}

/// A #VE, as whoever touched the page knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    /// The frame that was touched.
    pub gfn: usize,
    /// By the CPU, not by the host.
    pub hardware: bool,
}

impl<'a> Cpu<'a> {
    /// vCPU `index`, of which the guest knows what it knows now.
    pub fn new(thread: Thread<'a>, index: usize, context: Context<'a>) -> Self {
        let expects = thread.world.with(|state| state.vcpus[index].expects);
        let info = expects.then_some(ModelInfo { thread, vcpu: index });
        let ring = ModelRing::new(thread, index, Side::Guest);
        Self { thread, index, ring, info, context, raised: None }
    }

    /// The exception entry: calls the handler, and looks at what it leaves behind.
    pub fn exception(mut self, mode: CpuMode, raised: Raised) -> Verdict {
        let thread = self.thread;
        thread.note(|| format!("#VE for gfn {}", raised.gfn));
        self.raised = Some(raised);
        // Of the ring's slots a scenario may leave few free.
        self.ring.crowded.set(true);
        let verdict = handle_ve(&self, mode);
        thread.note(|| format!("#VE is over: {verdict:?}"));
        self.check_busy("returns");
        match verdict {
            Verdict::Spurious => thread.world.violate("a #VE without a fault"),
            Verdict::Fail { cause, gpa, gla } => {
                let known = gla.is_none_or(|gla| gla == linear(raised.gfn));
                if gpa != (raised.gfn as u64) << 12 || !known || cause == 0 {
                    let gfn = raised.gfn;
                    thread.world.violate(format!("FAIL {cause} of {gpa:#x} for gfn {gfn}"));
                }
            }
            _ => {}
        }
        verdict
    }

    /// Sets up, or sets up again, what a restore or a new EN lost.
    pub fn hardware_on(&self) {
        let world = self.thread.world;
        if world.scenario.declared == 0 {
            return;
        }
        let expects = |expects| world.with(|state| state.vcpus[self.index].expects = expects);
        expects(world.scenario.broken != Some(Broken::ExpectsTooLate));
        self.exit(Exit::VeInfo);
        expects(true);
        self.exit(Exit::Range);
    }

    /// EN = 0, which takes VEINFO with it.
    pub fn disable(&self) {
        let world = self.thread.world;
        let forget = || world.with(|state| state.vcpus[self.index].expects = false);
        if world.scenario.broken == Some(Broken::ForgetsTooEarly) {
            forget();
            self.thread.step();
        }
        self.exit(Exit::Disable);
        // Only now: until then an NMI may meet a page that raises #VE.
        forget();
    }

    /// The vCPU that the code runs on now.
    fn here(&self) -> usize {
        if let Context::Task(runner, _) = self.context { runner.vcpu() } else { self.index }
    }

    fn runner(&self) -> &Runner<'_> {
        let Context::Task(runner, _) = self.context else { unreachable!("only tasks park") };
        runner
    }

    fn look<R>(&self, f: impl FnOnce(&mut TaskModel) -> R) -> R {
        self.runner().look(f)
    }

    fn own_step(&self) {
        let at_home = self.here() == self.index;
        self.thread.step_to(if at_home { Next::OwnTask } else { Next::Shared });
    }

    /// The in-#VE flag of the running task; an NMI finds that of the task below it.
    fn swap_in_ve(&self, new: bool) -> bool {
        let here = self.here();
        self.thread.world.with(|state| {
            let flag = match state.vcpus[here].current {
                Some(task) => &mut state.tasks[task].in_ve,
                None => &mut state.vcpus[here].idle_in_ve,
            };
            std::mem::replace(flag, new)
        })
    }

    /// Whoever lets go of the CPU leaves it able to raise #VE.
    fn check_busy(&self, what: &str) {
        let here = self.here();
        if self.thread.world.with(|state| state.vcpus[here].info.busy != 0) {
            self.thread.world.violate(format!("the handler {what} with the busy word set"));
        }
    }

    fn check_fault(&self, gpa: u64, hardware: bool) {
        let taken = Raised { gfn: (gpa >> 12) as usize, hardware };
        if self.raised != Some(taken) {
            let raised = self.raised;
            self.thread.world.violate(format!("#VE of {raised:?} takes up {taken:?}"));
        }
    }

    /// The guest's instruction makes the vCPU exit; it goes on when the vCPU enters again.
    pub fn exit(&self, exit: Exit) {
        if self.here() != self.index {
            self.thread.world.violate(format!("{exit:?} on another CPU than the ring's"));
        }
        self.thread.world.with(|state| state.vcpus[self.index].exit(exit));
        self.thread.step();
    }

    fn hypercall(&self, exit: Exit) -> i64 {
        loop {
            self.exit(exit);
            let rax = self.thread.world.with(|state| {
                let vcpu = &mut state.vcpus[self.index];
                let rax = vcpu.found.rax.take()?;
                let gpa = match exit {
                    Exit::Submit(slot) => vcpu.ring.slots.get(slot as usize)?.fault.gpa,
                    Exit::Suspend(gpa, _) => gpa,
                    _ => return Some(rax),
                };
                vcpu.info.told |= vcpu.info.busy != 0 && vcpu.info.fault.gpa == gpa;
                Some(rax)
            });
            if let Some(rax) = rax {
                return self.thread.learn(rax);
            }
            self.thread.world.reach(Reach::Again);
        }
    }
}

impl<'a> Platform for Cpu<'a> {
    type Ring = ModelRing<'a>;
    type VeInfo = ModelInfo<'a>;

    fn ring(&self) -> &Self::Ring {
        &self.ring
    }

    fn ve_info(&self) -> Option<&ModelInfo<'a>> {
        self.info.as_ref()
    }

    fn waiters<R>(&self, f: impl FnOnce(&mut Waiters) -> R) -> R {
        let world = self.thread.world;
        if let Context::Nmi = self.context {
            world.violate("an NMI takes a lock");
        }
        let wait = |lock| {
            world.with(|state| match self.context {
                Context::Task(runner, _) => state.tasks[runner.task].lock = lock,
                _ => state.vcpus[self.index].irq_lock = lock,
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
        let here = self.here();
        let running = self.thread.world.with(|state| state.vcpus[here].current);
        TaskId(NonZeroUsize::MIN.saturating_add(running.unwrap_or_default()))
    }

    fn enter_ve(&self) -> bool {
        self.thread.learn(self.swap_in_ve(true))
    }

    fn leave_ve(&self) {
        self.swap_in_ve(false);
    }

    fn kernel_may_park(&self, _fault: &FaultInfo) -> Result<(), SuspendReason> {
        match self.context {
            Context::Task(_, From::Atomic(reason)) => Err(reason),
            Context::Task(..) => Ok(()),
            Context::Interrupt => Err(SuspendReason::IrqsOff),
            Context::Nmi => Err(SuspendReason::Nmi),
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
        let runner = self.runner();
        if let Some(gfn) = runner.nested {
            // The scheduler's own memory may be missing too, at a point with interrupts on.
            if !matches!(runner.touch(gfn, false, From::Kernel, true), Access::Done) {
                self.thread.world.violate("the scheduler's page failed");
            }
        }
        self.own_step();
        self.check_busy("sleeps");
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

    fn suspend(&self, gpa: u64, qualification: u64) -> i64 {
        let answer = self.hypercall(Exit::Suspend(gpa, qualification));
        if answer != VE_APF_RESOLVED.cast_signed() && answer != VE_APF_FAIL.cast_signed() {
            self.thread.world.violate(format!("SUSPEND answers {answer}"));
        }
        answer
    }

    fn status(&self, slot: SlotIndex, generation: Generation) -> i64 {
        self.hypercall(Exit::Status(u64::from(slot.get()), u64::from(generation.get())))
    }

    fn restore_soft_state(&self) {
        self.hardware_on();
    }

    fn report(&self, event: Event) {
        self.thread.note(|| format!("{event:?}"));
        let world = self.thread.world;
        match event {
            Event::EarlyOutcome(_) => world.reach(Reach::Early),
            Event::SpuriousWake(_) => world.reach(Reach::SpuriousWake),
            Event::Failed(..) => world.reach(Reach::Failed),
            Event::Suspended(_, SuspendReason::Nested) => world.reach(Reach::Nested),
            Event::Suspended(_, SuspendReason::Nmi) => world.reach(Reach::Nmi),
            Event::Delivered(..) => world.reach(Reach::Delivered),
            Event::NoSlot(_) => world.reach(Reach::NoSlot),
            _ => {}
        }
        match event {
            Event::Fault(_, gpa) => self.check_fault(gpa, false),
            Event::Delivered(_, gpa) | Event::NoSlot(gpa) => self.check_fault(gpa, true),
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
                if self.here() != self.index {
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
