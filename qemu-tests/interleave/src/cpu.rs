//! One CPU of the guest, as the code around the state machine sees it: the exception's entry, the
//! instructions that exit, hardware mode on and off.

use crate::fiber::{Next, Thread};
use crate::info::{ModelInfo, linear};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Broken, From, Reach};
use crate::task::Runner;
use crate::vcpu::{Exit, InfoModel};
use crate::world::TaskModel;
use ve_apf_guest::handle::{Mode as CpuMode, Verdict, handle_ve};

/// A ring's CPU, used by a task that may have moved elsewhere, or by a handler that runs on it.
pub struct Cpu<'a> {
    /// The fiber.
    pub(crate) thread: Thread<'a>,
    /// Whose ring.
    pub(crate) index: usize,
    pub(crate) ring: ModelRing<'a>,
    pub(crate) info: Option<ModelInfo<'a>>,
    pub(crate) context: Context<'a>,
    /// For the checks: the fault that raised #VE.
    pub(crate) raised: Option<Raised>,
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
        let expects = thread.learn(thread.world.with(|state| state.vcpus[index].expects));
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
        let expect = || world.with(|state| state.vcpus[self.index].expects = true);
        // No handler runs here, so a word that is set belongs to a #VE that a restore dropped.
        if world.scenario.broken != Some(Broken::KeepsBusy) {
            world.with(|state| state.vcpus[self.index].info = InfoModel::default());
        }
        // First: an NMI may meet a page that raises #VE as soon as it can.
        if world.scenario.broken != Some(Broken::ExpectsTooLate) {
            expect();
        }
        self.exit(Exit::VeInfo);
        self.exit(Exit::Range);
        expect();
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
    pub(crate) fn here(&self) -> usize {
        if let Context::Task(runner, _) = self.context { runner.vcpu() } else { self.index }
    }

    pub(crate) fn runner(&self) -> &Runner<'_> {
        let Context::Task(runner, _) = self.context else { unreachable!("only tasks park") };
        runner
    }

    pub(crate) fn look<R>(&self, f: impl FnOnce(&mut TaskModel) -> R) -> R {
        self.runner().look(f)
    }

    pub(crate) fn own_step(&self) {
        let at_home = self.here() == self.index;
        self.thread.step_to(if at_home { Next::OwnTask } else { Next::Shared });
    }

    /// The in-#VE flag of the running task; an NMI finds that of the task below it.
    pub(crate) fn swap_in_ve(&self, new: bool) -> bool {
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
    pub(crate) fn check_busy(&self, what: &str) {
        let here = self.here();
        if self.thread.world.with(|state| state.vcpus[here].info.busy != 0) {
            self.thread.world.violate(format!("the handler {what} with the busy word set"));
        }
    }

    pub(crate) fn check_fault(&self, gpa: u64, hardware: bool) {
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

    pub(crate) fn hypercall(&self, exit: Exit) -> i64 {
        loop {
            self.exit(exit);
            let rax = self.thread.world.with(|state| {
                let vcpu = &mut state.vcpus[self.index];
                let rax = vcpu.found.rax.take()?;
                let info = &mut vcpu.info;
                let same = match exit {
                    Exit::Submit(slot) => vcpu.ring.slots.get(slot as usize)?.fault == info.fault,
                    Exit::Suspend(gpa, qualification) => {
                        (gpa, qualification) == (info.fault.gpa, info.fault.qualification)
                    }
                    _ => false,
                };
                info.told |= info.busy != 0 && same;
                Some(rax)
            });
            if let Some(rax) = rax {
                return self.thread.learn(rax);
            }
            self.thread.world.reach(Reach::Again);
        }
    }
}
