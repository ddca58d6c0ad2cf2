//! The guest engine's trait, as a kernel supplies it.

use crate::cpu::{Context, Cpu};
use crate::hash::Owned;
use crate::info::ModelInfo;
use crate::ring::ModelRing;
use crate::scenario::{Broken, From, Reach};
use crate::task::Access;
use crate::vcpu::Exit;
use crate::world::{Status, name};
use std::num::NonZeroUsize;
use ve_apf_abi::access::{FaultInfo, RingAccess};
use ve_apf_abi::hypercall::{VE_APF_FAIL, VE_APF_RESOLVED};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOT_MASK, each_slot};
use ve_apf_abi::word::Generation;
use ve_apf_guest::platform::{Event, Platform, Sleep, SuspendReason};
use ve_apf_guest::waiters::{TaskId, Waiter, Waiters};

impl<'a> Platform for Cpu<'a> {
    type Ring = ModelRing<'a>;
    type VeInfo = ModelInfo<'a>;

    fn ring(&self) -> &Self::Ring {
        &self.ring
    }

    fn ve_info(&self) -> Option<&ModelInfo<'a>> {
        self.info.as_ref()
    }

    fn waiters<R>(&self, f: impl FnOnce(&Waiters) -> R) -> R {
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
        let before = world.with(|state| {
            let ring = &mut state.vcpus[self.index].ring;
            ring.locked = true;
            ring.waiters.clone()
        });
        let (hash, before) = (before.hash, before.get().cloned().unwrap_or_default());
        if size_of::<R>() != 0 {
            // What `f` tells, it tells from this.
            self.thread.learn(hash);
        }
        // Taking a lock commutes with all that others can do before the next access.
        world.merge.set(true);
        let waiters = before.clone();
        let result = f(&waiters);
        world.merge.set(false);
        world.with(|state| {
            let ring = &mut state.vcpus[self.index].ring;
            ring.locked = false;
            // Others may have been announced meanwhile.
            let now = ring.waiters.take();
            for slot in each_slot(VE_APF_SLOT_MASK) {
                if waiters.get(slot) != before.get(slot) {
                    if now.get(slot) != before.get(slot) {
                        world.violate(format!("slot {} is announced under the lock", slot.get()));
                    }
                    now.set(slot, waiters.get(slot));
                }
            }
            if waiters.epoch() != before.epoch() {
                now.note_epoch(waiters.epoch());
            }
            ring.waiters = Owned::new(now);
        });
        result
    }

    fn announce(&self, slot: SlotIndex, task: TaskId) {
        self.own_step();
        self.thread.world.with(|state| {
            let ring = &mut state.vcpus[self.index].ring;
            let waiters = ring.waiters.take();
            waiters.set(slot, Waiter::Task(task));
            ring.waiters = Owned::new(waiters);
        });
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
            if task.awake || (task.killable && task.fatal) {
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

    fn wait(&self, slot: SlotIndex) -> i64 {
        let Context::Task(_, from) = self.context else { return self.submit(slot) };
        let (irqs, here) = (from.irqs(), self.here());
        let lets_go = self.thread.world.scenario.broken == Some(Broken::LetsGo);
        self.look(|task| {
            task.irqs = irqs;
            task.preemptible = from.preemptible();
            task.stays = Some(here).filter(|_| !lets_go);
        });
        // The first interrupt may come before the hypercall.
        self.thread.step();
        let answer = self.submit(slot);
        self.look(|task| (task.irqs, task.preemptible, task.stays) = (false, false, None));
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
            Event::Unrung(_) => world.reach(Reach::Unrung),
            _ => {}
        }
        match event {
            Event::Fault(slot) => self.check_fault(self.ring.fault(slot).gpa, false),
            Event::Delivered(slot) => self.check_fault(self.ring.fault(slot).gpa, true),
            Event::NoSlot(gpa) => self.check_fault(gpa, true),
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
            // The host is bound to find it: if it did not, its task, or the vCPU, would be stuck.
            Event::Unrung(slot) | Event::Suspended(slot, _) => world.with(|state| {
                let info = &mut state.vcpus[self.index].info;
                info.told |= info.slot.is_some_and(|(of, _)| of == slot);
            }),
            Event::SpuriousVe => self.thread.world.violate("a #VE without a fault"),
            _ => {}
        }
    }
}
