//! What can happen next, and making it happen.

use crate::exits::run;
use crate::fiber::{Fiber, Stacks, Thread};
use crate::guest::name;
use crate::host::{finish, interrupts_on, write_en};
use crate::reduce::goes_first;
use crate::task::{run_interrupt, run_task};
use crate::world::{Exit, Frame, Mode, State, Status, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use ve_apf_abi::ring::{VE_APF_CAUSE_DEADLINE, VE_APF_CAUSE_GONE};
use ve_apf_host::platform::Resolution;

/// One thing that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The code that runs on the vCPU goes on.
    Vcpu(usize),
    /// The vCPU takes the completion interrupt.
    Interrupt(usize),
    /// The IPI of a kick arrives.
    Ipi(usize),
    /// The scheduler picks a task.
    Run(usize, usize),
    /// A thread of the VM goes on with this work.
    Worker(usize),
    /// SIGKILL.
    Kill(usize),
    /// A wake-up for nothing.
    Wake(usize),
    /// A page is taken away.
    Reclaim(usize),
    /// A page becomes possible.
    Repair(usize),
    /// The deadline of a work.
    Deadline(usize),
    /// A task in user mode is preempted.
    Preempt(usize),
    /// Save and restore; the pending events are lost, or the pages.
    Restore {
        /// #VE and interrupt.
        events: bool,
        /// All mapped pages.
        pages: bool,
    },
}

impl Choice {
    /// It need not happen: a machine that waits for it is stuck.
    pub fn is_optional(self) -> bool {
        !matches!(
            self,
            Self::Vcpu(_) | Self::Interrupt(_) | Self::Ipi(_) | Self::Run(..) | Self::Worker(_)
        )
    }
}

/// Appends all that can happen, or one thing that makes all else wait.
pub fn choices(world: &World, state: &State, out: &mut Vec<Choice>) {
    let first = (0..state.vcpus.len()).find(|&vcpu| goes_first(world, state, vcpu));
    if let (Some(vcpu), true) = (first, world.scenario.reduced) {
        out.push(Choice::Vcpu(vcpu));
        return;
    }
    for vcpu in 0..state.vcpus.len() {
        vcpu_choices(world, state, vcpu, out);
    }
    for worker in 0..state.workers.len() {
        out.push(Choice::Worker(worker));
    }
    let budget = &state.budget;
    for (index, task) in state.tasks.iter().enumerate() {
        // Looked at only between prepare_to_sleep() and finish_sleep(); a signal that comes
        // earlier is one that comes at the beginning of that.
        if budget.kills > 0 && task.killable && !task.fatal {
            out.push(Choice::Kill(index));
        }
        if budget.wakes > 0 && task.status == Status::Parked {
            out.push(Choice::Wake(index));
        }
    }
    for (gfn, frame) in state.frames.iter().enumerate() {
        if budget.reclaims > 0 && matches!(frame, Frame::Mapped | Frame::InHost) {
            out.push(Choice::Reclaim(gfn));
        }
        if budget.repairs > 0 && *frame == Frame::Gone {
            out.push(Choice::Repair(gfn));
        }
    }
    if budget.deadlines > 0 {
        let running = |&worker: &usize| !state.workers[worker].late;
        out.extend((0..state.workers.len()).filter(running).map(Choice::Deadline));
    }
    let outside = |mode| mode != Mode::Host;
    if budget.restores > 0 && state.vcpus.iter().all(|vcpu| outside(vcpu.mode)) {
        for events in [false, true] {
            for pages in [false, true] {
                if events <= world.scenario.loses_events && pages <= world.scenario.loses_pages {
                    out.push(Choice::Restore { events, pages });
                }
            }
        }
    }
}

fn vcpu_choices(world: &World, state: &State, index: usize, out: &mut Vec<Choice>) {
    let vcpu = &state.vcpus[index];
    match vcpu.mode {
        Mode::Host | Mode::Resolving(_) => out.push(Choice::Vcpu(index)),
        Mode::Halted if vcpu.request => out.push(Choice::Vcpu(index)),
        Mode::Halted => {}
        Mode::Guest => {
            if vcpu.ipi && !vcpu.ve {
                out.push(Choice::Ipi(index));
            }
            let free =
                |lock: Option<usize>| lock.is_none_or(|ring: usize| !state.vcpus[ring].ring.locked);
            if vcpu.in_irq {
                if free(vcpu.irq_lock) {
                    out.push(Choice::Vcpu(index));
                }
                return;
            }
            if vcpu.irr && vcpu.lapic && !vcpu.ve && interrupts_on(state, index) {
                out.push(Choice::Interrupt(index));
                if !world.scenario.late_interrupts {
                    return;
                }
            }
            if let Some(task) = vcpu.current {
                if free(state.tasks[task].lock) {
                    out.push(Choice::Vcpu(index));
                }
                if state.budget.preemptions > 0 && state.tasks[task].preemptible && !vcpu.ve {
                    out.push(Choice::Preempt(index));
                }
                return;
            }
            for (task, model) in state.tasks.iter().enumerate() {
                let spec = &world.scenario.tasks[task];
                let bound = spec.pinned || !model.started;
                let here = !bound || spec.starts.is_none_or(|starts| starts == index);
                if model.status == Status::Runnable && here {
                    out.push(Choice::Run(index, task));
                }
            }
        }
    }
}

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
            Choice::Ipi(vcpu) => world.with(|state| state.vcpus[vcpu].exit(Exit::Kick)),
            Choice::Run(vcpu, task) => {
                world.with(|state| {
                    state.vcpus[vcpu].current = Some(task);
                    state.tasks[task].status = Status::Running(vcpu);
                    state.tasks[task].started = true;
                });
                self.step(vcpu);
            }
            Choice::Worker(worker) => self.work(worker),
            _ => self.disturb(choice),
        }
    }

    fn step(&mut self, vcpu: usize) {
        let world = self.world;
        let scenario = &world.scenario;
        let (mode, in_irq, current) = world.with(|state| {
            let vcpu = &state.vcpus[vcpu];
            (vcpu.mode, vcpu.in_irq, vcpu.current)
        });
        if mode != Mode::Guest {
            world.act(|| format!("vCPU {vcpu} host"));
            self.resume(scenario.host_fiber(vcpu), move |thread| run(thread, vcpu));
        } else if in_irq {
            world.act(|| format!("vCPU {vcpu} interrupt"));
            self.resume(scenario.irq_fiber(vcpu), move |thread| run_interrupt(thread, vcpu));
        } else if let Some(task) = current {
            world.act(|| format!("vCPU {vcpu} task {}", name(task)));
            self.resume(task, move |thread| run_task(thread, task));
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
            Choice::Deadline(index) => {
                let id = world.with(|state| {
                    state.budget.deadlines -= 1;
                    state.disturbed = true;
                    state.workers[index].late = true;
                    state.workers[index].id
                });
                finish(world, id, Resolution::Failed(VE_APF_CAUSE_DEADLINE), false);
            }
            Choice::Preempt(vcpu) => world.with(|state| {
                state.budget.preemptions -= 1;
                if let Some(task) = state.vcpus[vcpu].current.take() {
                    state.tasks[task].status = Status::Runnable;
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
                vcpu.rax = None;
                vcpu.exit(Exit::Kick);
                if events {
                    state.event_lost |= vcpu.ve || vcpu.irr;
                    (vcpu.ve, vcpu.irr) = (false, false);
                }
            });
            write_en(world, index);
        }
    }
}
