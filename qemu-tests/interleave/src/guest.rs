//! The guest engine's trait, as a kernel supplies it.

use crate::fiber::{Next, Thread};
use crate::ring::ModelRing;
use crate::scenario::{From, Reach};
use crate::task::{Access, Runner};
use crate::world::{Exit, Owned, Status, TaskModel};
use std::num::NonZeroUsize;
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::ring::SlotIndex;
use ve_apf_abi::word::Generation;
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiters};

/// A ring's CPU, used by a task that may have moved elsewhere, or by the interrupt handler.
pub struct Cpu<'a> {
    /// The fiber.
    pub thread: Thread<'a>,
    /// Whose ring.
    pub index: usize,
    /// That ring.
    pub ring: ModelRing<'a>,
    /// `None`: the interrupt handler.
    pub task: Option<(&'a Runner<'a>, From)>,
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
