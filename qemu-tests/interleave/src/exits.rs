//! What a vCPU's thread does between an exit and the next entry, in the order of KVM's `vcpu_run()`.

use crate::faults::Faulted;
use crate::fiber::{Next, Thread};
use crate::hash::Owned;
use crate::host::{HostCpu, HostVm, hardware_off};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Broken, Reach};
use crate::vcpu::{Exit, Mode, SlotModel};
use ve_apf_abi::hypercall::{
    VE_APF_EINVAL, VE_APF_FAIL, VE_APF_QUEUED, VE_APF_RESOLVED, VE_APF_UNKNOWN,
};
use ve_apf_abi::ring::VE_APF_QUAL_WRITE;
use ve_apf_host::complete::{Completed, complete, interrupts_possible};
use ve_apf_host::platform::GuestError;
use ve_apf_host::submit::{Submitted, status, submit};
use ve_apf_host::sweep::{Sweep, sweep};
use ve_apf_host::vcpu::VcpuState;

/// The vCPU's thread, from an exit to the next entry.
pub fn run(thread: Thread<'_>, vcpu: usize) {
    let exit = thread.world.with(|state| state.vcpus[vcpu].exit);
    thread.forget(exit);
    thread.note(|| format!("exit: {exit:?}"));
    let rip = if let Exit::Fault { rip, .. } = exit { rip } else { 0 };
    let ring = ModelRing::new(thread, vcpu, Side::Host);
    let host = Host { cpu: HostCpu { thread, vcpu, rip, ring } };
    if host.handle(exit).and_then(|()| host.enter()).is_err() {
        // The VM stopped; the violation says why.
        host.cpu.look(|vcpu| vcpu.mode = Mode::Resolving(usize::MAX));
        thread.step();
    }
}

/// Host code of one vCPU.
pub(crate) struct Host<'a> {
    pub(crate) cpu: HostCpu<'a>,
}

impl<'a> Host<'a> {
    pub(crate) fn vm(&self) -> HostVm<'a> {
        HostVm { world: self.cpu.thread.world, thread: Some(self.cpu.thread) }
    }

    pub(crate) fn reach(&self, what: Reach) {
        self.cpu.thread.world.reach(what);
    }

    pub(crate) fn owning<R>(
        &self,
        f: impl FnOnce(&mut VcpuState) -> Result<R, GuestError>,
    ) -> Result<R, ()> {
        let mut state = self.cpu.look(|vcpu| vcpu.host.take());
        let result = f(&mut state);
        self.cpu.look(|vcpu| vcpu.host = Owned::new(state));
        result.map_err(|error| {
            self.cpu.thread.world.violate(format!("an honest guest was refused: {error:x?}"));
        })
    }

    fn handle(&self, exit: Exit) -> Result<(), ()> {
        match exit {
            Exit::Kick | Exit::Delivery => {}
            Exit::Fault { gfn, write, .. } => {
                if let Faulted::Lost(cause) = self.fault(gfn, write)? {
                    self.lost(gfn, write, cause)?;
                }
            }
            Exit::Submit(slot) => self.submit(slot)?,
            Exit::Suspend(gpa, qualification) => self.suspend(gpa, qualification)?,
            Exit::Status(slot, generation) => {
                self.complete_if_asked()?;
                self.stop_polling()?;
                let answer = self.owning(|state| Ok(status(&self.cpu, state, slot, generation)))?;
                self.answer(answer)?;
            }
            Exit::Leave => self.stop_polling()?,
            Exit::Disable => {
                self.unwatch();
                self.sweep(Sweep::Disable)?;
                self.cpu.look(|vcpu| vcpu.enabled = false);
                self.cpu.thread.world.with(|state| hardware_off(state, self.cpu.vcpu));
            }
            Exit::Enable => self.cpu.thread.world.with(|state| {
                hardware_off(state, self.cpu.vcpu);
                let vcpu = &mut state.vcpus[self.cpu.vcpu];
                vcpu.enabled = true;
                vcpu.ring.host_flags = 0;
            }),
            Exit::VeInfo => self.cpu.look(|vcpu| vcpu.veinfo = vcpu.enabled),
            // Refused where a restore took VEINFO away just before.
            Exit::Range => self.cpu.thread.world.with(|state| {
                state.declared |= state.vcpus[self.cpu.vcpu].veinfo;
            }),
            Exit::Lapic(on) => {
                self.cpu.look(|vcpu| vcpu.lapic = on);
                if on {
                    let raised = self.owning(|state| Ok(interrupts_possible(&self.cpu, state)))?;
                    if raised {
                        self.reach(Reach::Held);
                    }
                }
            }
        }
        Ok(())
    }

    fn submit(&self, slot: u64) -> Result<(), ()> {
        self.complete_if_asked()?;
        let waited = self.cpu.look(|vcpu| {
            vcpu.ring.slots.get(slot as usize).is_some_and(|slot| slot.word.state().is_waiting())
        });
        let stopped = self.cpu.look(|vcpu| vcpu.host.get().is_some_and(VcpuState::is_stopped));
        let answer = self.owning(|state| submit(&self.cpu, state, &self.vm(), slot))?;
        self.not_late(slot, answer, stopped);
        match answer {
            Submitted::Resolved | Submitted::Fail if waited => self.reach(Reach::AtOnce),
            Submitted::Wait(_) => self.reach(Reach::Unqueued),
            Submitted::Queued => self.start_polling()?,
            _ => {}
        }
        self.answer(answer)
    }

    /// The vCPU may have waited for the page itself, and its deadline be over; `stopped`: it waited
    /// until now.
    fn not_late(&self, slot: u64, answer: Submitted, stopped: bool) {
        if !matches!(answer, Submitted::Queued | Submitted::Resolved | Submitted::Fail) {
            return;
        }
        let late = self.cpu.look(|vcpu| {
            let slot = vcpu.ring.slots.get(slot as usize)?;
            let gfn = (slot.fault.gpa >> 12) as usize;
            vcpu.late.take().filter(|late| *late == gfn && !stopped)
        });
        if let (Submitted::Queued, Some(gfn)) = (answer, late) {
            self.cpu.thread.world.violate(format!("gfn {gfn}: a deadline is over, and forgotten"));
        }
    }

    /// A fault that is resolved with the vCPU stopped, on request.
    fn suspend(&self, gpa: u64, qualification: u64) -> Result<(), ()> {
        self.complete_if_asked()?;
        let gfn = (gpa >> 12) as usize;
        let ended = self.fault_of_hypercall(gfn, qualification & VE_APF_QUAL_WRITE != 0)?;
        let failed = self.cpu.look(|vcpu| std::mem::take(&mut vcpu.found.fault_failed));
        match ended {
            Faulted::Done if !failed => self.answer(Submitted::Resolved),
            Faulted::Done | Faulted::Lost(_) => self.answer(Submitted::Fail),
            // It is executed again.
            Faulted::Woken => {
                self.cpu.look(|vcpu| vcpu.found.rax = None);
                Ok(())
            }
        }
    }

    fn fault_of_hypercall(&self, gfn: usize, write: bool) -> Result<Faulted, ()> {
        self.cpu.look(|vcpu| vcpu.waiting = true);
        let ended = self.fault(gfn, write);
        self.cpu.look(|vcpu| vcpu.waiting = false);
        ended
    }

    fn answer(&self, answer: Submitted) -> Result<(), ()> {
        self.cpu.thread.note(|| format!("hypercall: {answer:?}"));
        let rax = match answer {
            Submitted::Queued => Some(VE_APF_QUEUED.cast_signed()),
            Submitted::Resolved => Some(VE_APF_RESOLVED.cast_signed()),
            Submitted::Fail => Some(VE_APF_FAIL.cast_signed()),
            Submitted::Unknown => Some(VE_APF_UNKNOWN.cast_signed()),
            Submitted::Invalid => Some(-VE_APF_EINVAL),
            Submitted::Halt => {
                self.reach(Reach::Halted);
                self.halt();
                None
            }
            // Whatever comes of it, SUBMIT is executed again, and says so.
            Submitted::Wait(page) => {
                self.fault_of_hypercall(page.gfn as usize, page.write)?;
                self.cpu.look(|vcpu| vcpu.found.fault_failed = false);
                None
            }
        };
        self.cpu.look(|vcpu| vcpu.found.rax = rax);
        Ok(())
    }

    /// A hypercall: what is finished by now is known to the slot before it is asked about. Whoever leaves mail requests, too.
    fn complete_if_asked(&self) -> Result<(), ()> {
        match self.cpu.look(|vcpu| vcpu.request || (vcpu.polling && !vcpu.watched)) {
            true => self.complete(),
            false => Ok(()),
        }
    }

    fn complete(&self) -> Result<(), ()> {
        self.cpu.look(|vcpu| vcpu.request = false);
        if self.cpu.look(|vcpu| vcpu.polling && !vcpu.watched) {
            self.stop_polling()?;
        }
        let done = self.owning(|state| complete(&self.cpu, state, &self.vm()))?;
        self.cpu.thread.note(|| format!("completed: {done:?}"));
        if self.cpu.thread.world.scenario.gathers && done.interrupt && done.resolved > 1 {
            self.reach(Reach::Gathered);
        }
        match done {
            Completed { stuck: true, .. } => self.stop_polling(),
            Completed { submitted: 1.., .. } => self.start_polling(),
            _ => Ok(()),
        }
    }

    fn sweep(&self, why: Sweep) -> Result<(), ()> {
        let (failed, untold) = self.cpu.look(|vcpu| {
            vcpu.sweeping = true;
            vcpu.late = None;
            let failure = |slot: &SlotModel| {
                let word = slot.word;
                let known = slot.known_failed.is_some_and(|(of, _)| of == word.generation().get());
                word.state().is_waiting() && known
            };
            (vcpu.ring.slots.iter().any(failure), vcpu.info.slot.is_some() && !vcpu.info.told)
        });
        if failed {
            self.reach(Reach::SweptFailure);
        }
        if untold {
            self.reach(Reach::SweptUntold);
        }
        let count = self.owning(|state| Ok(sweep(&self.cpu, state, &self.vm(), why)))?;
        self.cpu.thread.note(|| format!("sweep ({why:?}) completed {count}"));
        if count > 0 {
            self.reach(Reach::Swept);
        }
        self.cpu.look(|vcpu| vcpu.sweeping = false);
        Ok(())
    }

    fn enter(&self) -> Result<(), ()> {
        let thread = self.cpu.thread;
        if self.cpu.look(|vcpu| std::mem::take(&mut vcpu.sweep)) {
            self.sweep(Sweep::Restore)?;
        }
        loop {
            thread.forget("entry");
            if self.cpu.look(|vcpu| vcpu.request) {
                self.complete()?;
            }
            thread.forget("about to announce");
            thread.step_to(Next::OwnEntry);
            self.cpu.look(|vcpu| vcpu.announced = true);
            thread.note(|| "announces guest mode".into());
            thread.step_to(Next::OwnEntry);
            if thread.world.scenario.broken == Some(Broken::NoSecondLook)
                || !self.cpu.look(|vcpu| vcpu.request)
            {
                break;
            }
            self.reach(Reach::SecondLook);
            self.cpu.look(|vcpu| (vcpu.announced, vcpu.ipi) = (false, false));
        }
        self.cpu.look(|vcpu| {
            vcpu.mode = Mode::Guest;
            let irq = std::mem::take(&mut vcpu.woken_by_irq) && vcpu.irr;
            if std::mem::take(&mut vcpu.nmi) {
                vcpu.begin_nmi();
            } else if irq {
                (vcpu.irr, vcpu.in_irq) = (false, true);
            }
        });
        thread.note(|| "enters the guest".into());
        Ok(())
    }
}
