//! What a vCPU's thread does between an exit and the next entry, in the order of KVM's `vcpu_run()`.

use crate::fiber::{Next, Thread};
use crate::host::{HostCpu, HostVm};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Broken, Reach};
use crate::world::{Exit, Frame, Mode, Owned, SlotModel};
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::hypercall::{
    VE_APF_EINVAL, VE_APF_FAIL, VE_APF_QUEUED, VE_APF_RESOLVED, VE_APF_UNKNOWN,
};
use ve_apf_abi::ring::{VE_APF_QUAL_READ, VE_APF_QUAL_WRITE};
use ve_apf_host::complete::{complete, interrupts_possible};
use ve_apf_host::fault::{Answer, fault};
use ve_apf_host::platform::{GuestError, Page};
use ve_apf_host::submit::{Submitted, status, submit};
use ve_apf_host::sweep::{Sweep, sweep};
use ve_apf_host::vcpu::VcpuState;
use ve_apf_host::works::Joined;

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

struct Host<'a> {
    cpu: HostCpu<'a>,
}

impl<'a> Host<'a> {
    fn vm(&self) -> HostVm<'a> {
        HostVm { world: self.cpu.thread.world, thread: Some(self.cpu.thread) }
    }

    fn reach(&self, what: Reach) {
        self.cpu.thread.world.reach(what);
    }

    fn owning<R>(&self, f: impl FnOnce(&mut VcpuState) -> Result<R, GuestError>) -> Result<R, ()> {
        let mut state = self.cpu.look(|vcpu| vcpu.host.take());
        let result = f(&mut state);
        self.cpu.look(|vcpu| vcpu.host = Owned::new(state));
        result.map_err(|error| {
            self.cpu.thread.world.violate(format!("an honest guest was refused: {error:x?}"));
        })
    }

    fn handle(&self, exit: Exit) -> Result<(), ()> {
        match exit {
            Exit::Kick => {}
            Exit::Fault { gfn, write, .. } => self.fault(gfn, write)?,
            Exit::Submit(slot) => self.submit(slot)?,
            Exit::Status(slot, generation) => {
                self.complete()?;
                let answer = self.owning(|state| Ok(status(&self.cpu, state, slot, generation)))?;
                self.answer(answer)?;
            }
            Exit::Disable => {
                self.sweep(Sweep::Disable)?;
                self.cpu.look(|vcpu| vcpu.enabled = false);
            }
            Exit::Enable => self.cpu.look(|vcpu| {
                vcpu.enabled = true;
                vcpu.ring.host_flags = 0;
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

    fn fault(&self, gfn: usize, write: bool) -> Result<(), ()> {
        let present = self.cpu.thread.world.with(|state| {
            let frame = &mut state.frames[gfn];
            if *frame == Frame::InHost {
                *frame = Frame::Mapped;
            }
            *frame == Frame::Mapped
        });
        if present {
            return Ok(());
        }
        let page = Page { gfn: gfn as u64, write };
        let qualification = if write { VE_APF_QUAL_WRITE } else { VE_APF_QUAL_READ };
        let info =
            FaultInfo { reason: 48, qualification, gpa: page.gfn << 12, ..FaultInfo::default() };
        self.cpu.ring.crowded.set(true);
        let answer = self.owning(|state| fault(&self.cpu, state, &self.vm(), page, info));
        self.cpu.ring.crowded.set(false);
        let answer = answer?;
        self.cpu.thread.note(|| format!("fault on gfn {gfn}: {answer:?}"));
        match answer {
            Answer::Injected(_, Joined::Running) => self.reach(Reach::Joined),
            Answer::Injected(_, Joined::Started) => {}
            Answer::Sync(_) => {
                self.reach(Reach::Sync);
                self.resolve(gfn);
            }
        }
        Ok(())
    }

    /// Resolves a page with the vCPU stopped.
    fn resolve(&self, gfn: usize) {
        self.cpu.look(|vcpu| vcpu.mode = Mode::Resolving(gfn));
        self.cpu.thread.step();
        self.cpu.thread.world.with(|state| {
            let vcpu = &mut state.vcpus[self.cpu.vcpu];
            vcpu.mode = Mode::Host;
            match &mut state.frames[gfn] {
                Frame::Gone => vcpu.fault_failed = true,
                frame => *frame = Frame::Mapped,
            }
        });
        self.cpu.thread.note(|| format!("gfn {gfn} resolved with the vCPU stopped"));
    }

    fn submit(&self, slot: u64) -> Result<(), ()> {
        self.complete()?;
        let answer = self.owning(|state| submit(&self.cpu, state, &self.vm(), slot))?;
        self.answer(answer)
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
                self.cpu.look(|vcpu| vcpu.mode = Mode::Halted);
                self.cpu.thread.step();
                self.cpu.look(|vcpu| vcpu.mode = Mode::Host);
                None
            }
            Submitted::Wait(page) => {
                self.reach(Reach::Unqueued);
                self.resolve(page.gfn as usize);
                None
            }
        };
        self.cpu.look(|vcpu| vcpu.rax = rax);
        Ok(())
    }

    fn complete(&self) -> Result<(), ()> {
        self.cpu.look(|vcpu| vcpu.request = false);
        let done = self.owning(|state| complete(&self.cpu, state, &self.vm()))?;
        self.cpu.thread.note(|| format!("completed: {done:?}"));
        Ok(())
    }

    fn sweep(&self, why: Sweep) -> Result<(), ()> {
        let failed = self.cpu.look(|vcpu| {
            vcpu.sweeping = true;
            let slots = vcpu.ring.slots.iter();
            let failure = |slot: &SlotModel| {
                let word = slot.word;
                word.state().is_waiting() && slot.known_failed == Some(word.generation().get())
            };
            slots.copied().any(|slot| failure(&slot))
        });
        if failed {
            self.reach(Reach::SweptFailure);
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
        self.cpu.look(|vcpu| vcpu.mode = Mode::Guest);
        thread.note(|| "enters the guest".into());
        Ok(())
    }
}
