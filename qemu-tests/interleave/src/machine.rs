//! Making something happen.

use crate::choices::Choice;
use crate::exits::run;
use crate::fiber::{Fiber, Stacks, Thread};
use crate::host::{expire, finish, moved, write_en};
use crate::nmi::run_nmi;
use crate::poll::run_poller;
use crate::scenario::Reach;
use crate::task::{run_interrupt, run_task};
use crate::vcpu::{Exit, Mode};
use crate::world::{Frame, Status, World, name};
use std::panic::{AssertUnwindSafe, catch_unwind};
use ve_apf_abi::ring::VE_APF_CAUSE_GONE;
use ve_apf_host::platform::Resolution;

/// The fibers of one run.
pub struct Machine {
    world: &'static World,
    fibers: Vec<Option<Fiber>>,
    stacks: Stacks,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.reset();
    }
}

impl Machine {
    /// With nothing running.
    pub fn new(world: &'static World) -> Self {
        let fibers = (0..world.scenario.fibers()).map(|_| None).collect();
        Self { world, fibers, stacks: Stacks::default() }
    }

    /// Back to the start.
    pub fn reset(&mut self) {
        for fiber in &mut self.fibers {
            if let Some(fiber) = fiber.take() {
                self.stacks.drop(fiber);
            }
        }
    }

    fn resume(&mut self, id: usize, body: impl FnOnce(Thread<'_>) + 'static) {
        let world = self.world;
        let mut fiber = self.fibers[id]
            .take()
            .unwrap_or_else(|| self.stacks.spawn(move |pause| body(Thread { world, id, pause })));
        if fiber.resume() {
            self.stacks.drop(fiber);
        } else {
            self.fibers[id] = Some(fiber);
        }
    }

    /// Makes it happen. A panic is a violation.
    pub fn take(&mut self, choice: Choice) {
        let taken = catch_unwind(AssertUnwindSafe(|| self.happen(choice)));
        if taken.is_err() {
            self.world.violate("a panic");
        }
    }

    fn happen(&mut self, choice: Choice) {
        let world = self.world;
        let scenario = &world.scenario;
        match choice {
            Choice::Vcpu(vcpu) => self.step(vcpu),
            Choice::Interrupt(vcpu) => {
                world.act(|| format!("vCPU {vcpu} interrupt"));
                world.with(|state| {
                    let vcpu = &mut state.vcpus[vcpu];
                    (vcpu.irr, vcpu.in_irq) = (false, true);
                });
                world.note(|| "completion interrupt".into());
                self.resume(scenario.irq_fiber(vcpu), move |thread| run_interrupt(thread, vcpu));
            }
            Choice::Nmi(vcpu) => {
                world.act(|| format!("vCPU {vcpu} NMI"));
                world.note(|| "NMI".into());
                let begun = world.with(|state| {
                    state.budget.nmis -= 1;
                    let vcpu = &mut state.vcpus[vcpu];
                    vcpu.nmi = vcpu.mode == Mode::Halted;
                    if !vcpu.nmi {
                        vcpu.begin_nmi();
                    }
                    vcpu.in_nmi
                });
                if begun {
                    self.step(vcpu);
                }
            }
            Choice::Ipi(vcpu) => world.with(|state| state.vcpus[vcpu].exit(Exit::Kick)),
            Choice::Timer(index) => self.timer(index),
            Choice::Run(vcpu, task) => {
                world.with(|state| {
                    state.vcpus[vcpu].current = Some(task);
                    state.tasks[task].status = Status::Running(vcpu);
                    state.tasks[task].started = true;
                });
                self.step(vcpu);
            }
            Choice::Worker(worker) => self.work(worker),
            Choice::Look(vcpu) | Choice::Quit(vcpu) => {
                let last = matches!(choice, Choice::Quit(_));
                world.act(|| format!("poller of vCPU {vcpu}"));
                world.with(|state| {
                    state.budget.quits -= u8::from(last);
                    state.vcpus[vcpu].looking.get_or_insert(last);
                });
                self.resume(scenario.poll_fiber(vcpu), move |thread| run_poller(thread, vcpu));
            }
            Choice::Leave(vcpu) => world.with(|state| {
                state.budget.leaves -= 1;
                state.vcpus[vcpu].exit(Exit::Leave);
            }),
            _ => self.disturb(choice),
        }
    }

    fn step(&mut self, vcpu: usize) {
        let world = self.world;
        let scenario = &world.scenario;
        let (mode, in_nmi, in_irq, current) = world.with(|state| {
            let vcpu = &state.vcpus[vcpu];
            (vcpu.mode, vcpu.in_nmi, vcpu.in_irq, vcpu.current)
        });
        if mode != Mode::Guest {
            world.act(|| format!("vCPU {vcpu} host"));
            self.resume(scenario.host_fiber(vcpu), move |thread| run(thread, vcpu));
        } else if in_nmi {
            world.act(|| format!("vCPU {vcpu} NMI"));
            self.resume(scenario.nmi_fiber(vcpu), move |thread| run_nmi(thread, vcpu));
        } else if in_irq {
            world.act(|| format!("vCPU {vcpu} interrupt"));
            self.resume(scenario.irq_fiber(vcpu), move |thread| run_interrupt(thread, vcpu));
        } else if let Some(task) = current {
            world.act(|| format!("vCPU {vcpu} task {}", name(task)));
            self.resume(task, move |thread| run_task(thread, task));
        }
    }

    fn timer(&self, index: usize) {
        let world = self.world;
        world.act(|| "timer".into());
        world.note(|| format!("kick vCPU {index}, if it has not looked"));
        let kicked = world.with(|state| {
            let vcpu = &mut state.vcpus[index];
            vcpu.gathering = false;
            vcpu.ipi |= vcpu.request && vcpu.announced;
            vcpu.request
        });
        if !kicked {
            world.reach(Reach::ToldBefore);
        }
    }

    fn work(&mut self, index: usize) {
        let world = self.world;
        world.act(|| "worker".into());
        let worker = world.with(|state| state.workers[index]);
        if let Some(outcome) = worker.outcome {
            world.note(|| format!("work {} ends: {outcome:?}", worker.id.index));
            world.with(|state| state.workers.remove(index));
            finish(world, worker.id, outcome, worker.late);
            return;
        }
        let outcome = world.with(|state| {
            let gfn = worker.page.gfn as usize;
            let outcome = match state.frames[gfn] {
                // It worked for what was there before.
                _ if worker.late => Resolution::Retry,
                Frame::Gone => Resolution::Failed(VE_APF_CAUSE_GONE),
                Frame::Missing => {
                    state.frames[gfn] = Frame::InHost;
                    Resolution::Retry
                }
                Frame::InHost | Frame::Mapped => Resolution::Retry,
            };
            state.workers[index].outcome = Some(outcome);
            outcome
        });
        world.note(|| format!("gfn {}: {outcome:?}", worker.page.gfn));
    }

    fn disturb(&mut self, choice: Choice) {
        let world = self.world;
        world.act(|| "environment".into());
        world.note(|| format!("{choice:?}"));
        match choice {
            Choice::Kill(task) => world.with(|state| {
                state.budget.kills -= 1;
                let task = &mut state.tasks[task];
                task.fatal = true;
                if task.killable {
                    task.wake();
                }
            }),
            Choice::Wake(task) => world.with(|state| {
                state.budget.wakes -= 1;
                state.tasks[task].wake();
            }),
            Choice::Reclaim(gfn) => world.with(|state| {
                state.budget.reclaims -= 1;
                state.frames[gfn] = Frame::Missing;
                state.disturbed = true;
            }),
            Choice::Repair(gfn) => world.with(|state| {
                state.budget.repairs -= 1;
                state.frames[gfn] = Frame::Missing;
                state.disturbed = true;
            }),
            Choice::Deadline => {
                world.with(|state| {
                    state.budget.deadlines -= 1;
                    state.disturbed = true;
                });
                expire(world);
            }
            Choice::Move(index) => {
                let gfn = world.with(|state| {
                    state.budget.moves -= 1;
                    state.disturbed = true;
                    state.workers[index].late = true;
                    let gfn = state.workers[index].page.gfn;
                    state.frames[gfn as usize] = Frame::Missing;
                    gfn
                });
                moved(world, gfn);
            }
            Choice::Preempt(vcpu) => world.with(|state| {
                state.budget.preemptions -= 1;
                if let Some(task) = state.vcpus[vcpu].current.take() {
                    let task = &mut state.tasks[task];
                    task.status = Status::Runnable;
                    if task.stays.is_some() {
                        world.reach(Reach::Preempted);
                    }
                }
            }),
            Choice::Restore { events, pages } => self.restore(events, pages),
            _ => {}
        }
    }

    /// All vCPUs are out of KVM_RUN; a VMM writes EN of each, and they run again.
    fn restore(&mut self, events: bool, pages: bool) {
        let world = self.world;
        world.with(|state| {
            state.budget.restores -= 1;
            if pages {
                state.disturbed = true;
                for frame in state.frames.iter_mut().filter(|frame| **frame != Frame::Gone) {
                    *frame = Frame::Missing;
                }
            }
        });
        for index in 0..world.scenario.vcpus {
            if let Some(fiber) = self.fibers[world.scenario.host_fiber(index)].take() {
                self.stacks.drop(fiber);
            }
            world.with(|state| {
                let history = &mut state.history[world.scenario.host_fiber(index)];
                *history = crate::hash::of(&"gone");
                let vcpu = &mut state.vcpus[index];
                vcpu.found.rax = None;
                vcpu.exit(Exit::Kick);
                if events {
                    state.event_lost |= vcpu.found.ve || vcpu.irr;
                    vcpu.info.lost |= vcpu.found.ve && vcpu.info.busy != 0;
                    (vcpu.found.ve, vcpu.irr) = (false, false);
                }
            });
            write_en(world, index);
        }
    }
}
