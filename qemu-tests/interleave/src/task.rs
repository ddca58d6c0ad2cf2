//! Guest tasks: the steps of a script, the exception entry, and the interrupt's entry.

use crate::cpu::{Context, Cpu, Raised};
use crate::fiber::Thread;
use crate::info::{Reached, access};
use crate::scenario::{Action, From, Reach};
use crate::vcpu::{Exit, Found, VcpuModel};
use crate::world::{Status, TaskModel};
use ve_apf_guest::complete::{after_disable, before_enable, interrupt, rescue};
use ve_apf_guest::handle::{Mode as CpuMode, Verdict};

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
    let below = thread.world.with(|state| {
        let task = state.vcpus[vcpu].current?;
        state.tasks[task].stays
    });
    if below.is_some() {
        thread.world.reach(Reach::Interrupted);
    }
    interrupt(&Cpu::new(thread, vcpu, Context::Interrupt));
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
        Cpu::new(self.thread, self.vcpu(), Context::Task(self, from))
    }

    fn act(&self, action: Action) -> Access {
        match action {
            Action::Touch { gfn, write, from } => return self.touch(gfn, write, from, false),
            Action::Disable => self.quietly(|cpu| {
                cpu.disable();
                after_disable(cpu);
            }),
            Action::Enable => self.quietly(enable),
            Action::Lapic(on) => {
                self.thread.step();
                self.cpu(From::Kernel).exit(Exit::Lapic(on));
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
            Action::Rescue => self.quietly(|cpu| {
                if rescue(cpu).lost {
                    enable(cpu);
                }
            }),
        }
        Access::Done
    }

    /// Runs with interrupts off.
    fn quietly(&self, f: impl FnOnce(&Cpu<'_>)) {
        self.thread.step();
        self.look(|task| task.irqs = false);
        f(&self.cpu(From::Kernel));
        self.look(|task| task.irqs = true);
    }

    /// Accesses a page until that succeeds.
    pub fn touch(&self, gfn: usize, write: bool, from: From, nested: bool) -> Access {
        let irqs = self.look(|task| std::mem::replace(&mut task.irqs, from.irqs()));
        let access = loop {
            if !nested {
                self.thread.forget(("touch", gfn));
            }
            self.look(|task| task.preemptible = !nested && from == From::User);
            self.thread.step();
            self.look(|task| task.preemptible = false);
            match self.try_once(gfn, write, from, nested) {
                None => {}
                Some(ended) => break ended,
            }
        };
        self.look(|task| task.irqs = irqs);
        access
    }

    /// `None`: the instruction executes again.
    fn try_once(&self, gfn: usize, write: bool, from: From, nested: bool) -> Option<Access> {
        match access(&self.thread, self.vcpu(), gfn, write) {
            Reached::Page => Some(Access::Done),
            Reached::Exception => {
                if !self.is_delivered(from) {
                    return None;
                }
                self.exception(from, Raised { gfn, hardware: true })
            }
            Reached::Exit => {
                let place = self.look(|task| task.place);
                let rip = 1 + (self.task * 16 + place * 2 + usize::from(nested)) as u64;
                self.cpu(from).exit(Exit::Fault { gfn, write, rip });
                let found = self.on_vcpu(|vcpu| std::mem::take(&mut vcpu.found));
                match self.thread.learn(found) {
                    Found { fault_failed: true, .. } => Some(Access::Failed),
                    Found { ve: true, .. } => self.exception(from, Raised { gfn, hardware: false }),
                    _ => None,
                }
            }
        }
    }

    /// The CPU delivers its #VE, or the host does after it brought the kernel's stack.
    fn is_delivered(&self, from: From) -> bool {
        let detour = self.thread.world.with(|state| {
            let more = state.budget.detours > 0;
            state.budget.detours -= u8::from(more);
            more
        });
        if detour {
            self.on_vcpu(|vcpu| vcpu.found.ve = true);
            self.cpu(from).exit(Exit::Delivery);
            return self.on_vcpu(|vcpu| std::mem::take(&mut vcpu.found.ve));
        }
        true
    }

    /// Vector 20: the entry code around the engine's handler.
    fn exception(&self, from: From, raised: Raised) -> Option<Access> {
        let ring = 1 << self.vcpu();
        let nested = self.look(|task| task.in_ve);
        let (killable, may_park) = self.look(|task| {
            task.irqs = false;
            task.rings |= ring;
            let may_park = !nested && !matches!(from, From::Atomic(_));
            (task.killable, std::mem::replace(&mut task.may_park, may_park))
        });
        let mode = if from == From::User { CpuMode::User } else { CpuMode::Kernel };
        let verdict = self.cpu(from).exception(mode, raised);
        self.look(|task| {
            task.may_park = may_park;
            task.rings &= !if nested { 0 } else { ring };
            task.killable = killable;
            task.irqs = from.irqs();
        });
        match verdict {
            Verdict::Retry | Verdict::Spurious => None,
            Verdict::Killed => {
                if !self.look(|task| task.fatal) || from != From::User {
                    self.thread.world.violate("killed without a fatal signal");
                }
                Some(Access::Killed)
            }
            Verdict::Fail { .. } => Some(Access::Failed),
        }
    }
}

/// EN = on, and what it does not bring back.
fn enable(cpu: &Cpu<'_>) {
    before_enable(cpu);
    cpu.exit(Exit::Enable);
    cpu.hardware_on();
}
