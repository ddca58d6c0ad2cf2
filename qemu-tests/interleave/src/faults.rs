//! What a vCPU's thread does about a page that is not there.

use crate::exits::Host;
use crate::host::interrupts_on;
use crate::scenario::Reach;
use crate::vcpu::Mode;
use crate::world::Frame;
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::ring::{
    VE_APF_CAUSE_DEADLINE, VE_APF_CAUSE_GONE, VE_APF_QUAL_READ, VE_APF_QUAL_WRITE,
};
use ve_apf_host::fault::{Answer, SyncReason, fail, fault};
use ve_apf_host::platform::Page;
use ve_apf_host::stop::{Stopped, stop};
use ve_apf_host::vcpu::VcpuState;
use ve_apf_host::works::Joined;

/// What became of a fault.
pub(crate) enum Faulted {
    /// The guest runs on.
    Done,
    /// The vCPU was halted, and something woke it.
    Woken,
    /// The page can never come, for this cause.
    Lost(u16),
}

impl Host<'_> {
    /// An access that exits.
    pub(crate) fn fault(&self, gfn: usize, write: bool) -> Result<Faulted, ()> {
        let (present, gone) = self.cpu.thread.world.with(|state| {
            let frame = &mut state.frames[gfn];
            if *frame == Frame::InHost {
                *frame = Frame::Mapped;
            }
            (*frame == Frame::Mapped, *frame == Frame::Gone)
        });
        if present {
            return Ok(Faulted::Done);
        }
        let known = self.cpu.thread.world.scenario.fails_at_once;
        if known && gone {
            return Ok(Faulted::Lost(VE_APF_CAUSE_GONE));
        }
        if !self.cpu.look(|vcpu| vcpu.enabled) {
            return Ok(self.resolve(gfn));
        }
        let page = Page { gfn: gfn as u64, write };
        let waited = self.cpu.look(|vcpu| vcpu.host.get().is_some_and(VcpuState::is_stopped));
        self.cpu.ring.crowded.set(true);
        let answer = self.owning(|state| {
            fault(&self.cpu, state, &self.vm(), page, fault_info(gfn, write)).map(|answer| {
                let stopped = match answer {
                    Answer::Sync(_) => stop(&self.cpu, state, &self.vm(), page),
                    _ => Stopped::Block,
                };
                (answer, stopped)
            })
        });
        self.cpu.ring.crowded.set(false);
        let (answer, stopped) = answer?;
        self.cpu.thread.note(|| format!("fault on gfn {gfn}: {answer:?}"));
        // What its mail says is known to it once that is taken.
        let late = self.cpu.look(|vcpu| match stopped {
            Stopped::Again => None,
            _ => vcpu.late.take().filter(|_| !waited),
        });
        if late == Some(gfn) && !matches!(answer, Answer::Lost(_)) {
            self.cpu.thread.world.violate(format!("gfn {gfn}: a deadline is over, and forgotten"));
        }
        if waited && matches!(answer, Answer::Injected(..)) {
            self.reach(Reach::FoundSlot);
        }
        Ok(match (answer, stopped) {
            (Answer::Injected(_, Joined::Running), _) => {
                self.reach(Reach::Joined);
                Faulted::Done
            }
            (Answer::Injected(_, Joined::Started) | Answer::Failed(_), _) => Faulted::Done,
            // Of any other cause than a deadline the memory knows best.
            (Answer::Lost(cause), _) => match cause == VE_APF_CAUSE_DEADLINE || gone {
                true => Faulted::Lost(cause),
                false => Faulted::Done,
            },
            (Answer::Sync(_), Stopped::Block) => self.resolve(gfn),
            (Answer::Sync(_), Stopped::Halt) => {
                self.reach(Reach::Stopped);
                self.halt()
            }
            (Answer::Sync(_), Stopped::Again) => {
                self.reach(Reach::StoppedAgain);
                self.halt()
            }
        })
    }

    /// The guest is told of a page that can never come, or the VMM is.
    pub(crate) fn lost(&self, gfn: usize, write: bool, cause: u16) -> Result<(), ()> {
        let info = fault_info(gfn, write);
        // Its first step is the same as that of `fault()`.
        self.cpu.thread.learn(cause);
        self.cpu.ring.crowded.set(true);
        let answer = self.owning(|state| fail(&self.cpu, state, &self.vm(), info, cause));
        self.cpu.ring.crowded.set(false);
        match answer? {
            Answer::Failed(_) => self.reach(Reach::FailedAtOnce),
            Answer::Sync(SyncReason::NoSlot) if cause == VE_APF_CAUSE_DEADLINE => {}
            answer => {
                self.cpu.thread.note(|| format!("the VMM is told of gfn {gfn}: {answer:?}"));
                self.reach(Reach::Told);
                self.cpu.look(|vcpu| vcpu.found.fault_failed = true);
            }
        }
        Ok(())
    }

    /// Until somebody kicks the vCPU, or it can take an event.
    pub(crate) fn halt(&self) -> Faulted {
        self.cpu.look(|vcpu| vcpu.mode = Mode::Halted);
        self.cpu.thread.step();
        let vcpu = self.cpu.vcpu;
        self.cpu.thread.world.with(|state| {
            let on = interrupts_on(state, vcpu);
            let vcpu = &mut state.vcpus[vcpu];
            vcpu.mode = Mode::Host;
            vcpu.woken_by_irq = vcpu.irr && on;
        });
        Faulted::Woken
    }

    /// Resolves a page on the vCPU's thread.
    pub(crate) fn resolve(&self, gfn: usize) -> Faulted {
        self.reach(Reach::Sync);
        self.cpu.look(|vcpu| vcpu.mode = Mode::Resolving(gfn));
        self.cpu.thread.step();
        self.cpu.thread.world.with(|state| {
            let vcpu = &mut state.vcpus[self.cpu.vcpu];
            vcpu.mode = Mode::Host;
            match &mut state.frames[gfn] {
                Frame::Gone => vcpu.found.fault_failed = true,
                frame => *frame = Frame::Mapped,
            }
        });
        self.cpu.thread.note(|| format!("gfn {gfn} resolved with the vCPU stopped"));
        Faulted::Done
    }
}

fn fault_info(gfn: usize, write: bool) -> FaultInfo {
    let qualification = if write { VE_APF_QUAL_WRITE } else { VE_APF_QUAL_READ };
    FaultInfo { reason: 48, qualification, gpa: (gfn as u64) << 12, ..FaultInfo::default() }
}
