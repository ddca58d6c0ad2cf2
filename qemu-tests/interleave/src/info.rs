//! Hardware mode: what the CPU does when guest code touches a page, and the guest's access to the
//! VE info area.
//!
//! The area belongs to one vCPU, and only to what runs there, so nobody but an NMI can tell one
//! order of accesses from another.

use crate::fiber::{Next, Thread};
use crate::host::interrupts_on;
use crate::scenario::Reach;
use crate::vcpu::InfoModel;
use crate::world::{Frame, State};
use ve_apf_abi::access::{FaultInfo, VeInfoAccess};
use ve_apf_abi::ring::{
    VE_APF_QUAL_READ, VE_APF_QUAL_WRITE, VE_APF_SLOT_GLA_VALID, VE_APF_SLOT_HARDWARE,
};
use ve_apf_abi::ve_info::{VE_APF_QUAL_GLA_VALID, VE_APF_REASON_EPT_VIOLATION, VE_APF_VE_BUSY};

/// What an access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reached {
    /// The page.
    Page,
    /// #VE, without an exit.
    Exception,
    /// An exit.
    Exit,
}

/// The CPU's part of an access (SDM vol. 3, 26.5.7): it raises #VE where the entry says so and the
/// busy word is 0, whatever runs there.
pub fn access(thread: &Thread<'_>, vcpu: usize, gfn: usize, write: bool) -> Reached {
    let world = thread.world;
    let reached = world.with(|state| {
        if state.frames[gfn] == Frame::Mapped {
            return Reached::Page;
        }
        let armed = state.declared && world.scenario.declared & 1 << gfn != 0;
        let model = &mut state.vcpus[vcpu];
        if !(armed && model.veinfo) {
            return Reached::Exit;
        }
        if model.info.busy != 0 {
            world.reach(Reach::Busy);
            return Reached::Exit;
        }
        let fault = described(gfn, write);
        model.info = InfoModel { busy: VE_APF_VE_BUSY, fault, ..InfoModel::default() };
        Reached::Exception
    });
    thread.note(|| match reached {
        Reached::Page => format!("accesses gfn {gfn}"),
        Reached::Exception => format!("the CPU raises #VE for gfn {gfn}"),
        Reached::Exit => format!("exits on gfn {gfn}"),
    });
    thread.learn(reached)
}

fn described(gfn: usize, write: bool) -> FaultInfo {
    let access = if write { VE_APF_QUAL_WRITE } else { VE_APF_QUAL_READ };
    FaultInfo {
        reason: VE_APF_REASON_EPT_VIOLATION,
        qualification: access | VE_APF_QUAL_GLA_VALID,
        gla: linear(gfn),
        gpa: (gfn as u64) << 12,
        eptp_index: 0,
        flags: VE_APF_SLOT_HARDWARE | VE_APF_SLOT_GLA_VALID,
    }
}

/// Where the guest maps a frame.
pub fn linear(gfn: usize) -> u64 {
    0x7f00_0000_0000 | (gfn as u64) << 12
}

/// The VE info area, for code that runs on its vCPU.
pub struct ModelInfo<'a> {
    /// That code.
    pub thread: Thread<'a>,
    /// Whose area.
    pub vcpu: usize,
}

impl ModelInfo<'_> {
    fn look<R>(&self, f: impl FnOnce(&mut InfoModel) -> R) -> R {
        nmi_may_come(&self.thread, self.vcpu);
        self.thread.world.with(|state| f(&mut state.vcpus[self.vcpu].info))
    }
}

/// Before an access that only an NMI can tell from one later.
pub fn nmi_may_come(thread: &Thread<'_>, vcpu: usize) {
    if vcpu == 0 && thread.world.with(|state| state.budget.nmis > 0) {
        thread.step_to(Next::OwnRing);
    }
}

impl VeInfoAccess for ModelInfo<'_> {
    fn busy(&self) -> u32 {
        self.thread.learn(self.look(|info| info.busy))
    }

    fn fault(&self) -> FaultInfo {
        let (busy, fault) = self.look(|info| (info.busy, info.fault));
        if busy == 0 {
            self.thread.world.violate("the VE info area is read though it is not busy");
        }
        self.thread.learn(fault)
    }

    fn clear_busy(&self) {
        let info = self.look(std::mem::take);
        self.thread.note(|| format!("vCPU {} busy = 0", self.vcpu));
        let completed = info.slot.is_some_and(|(slot, usage)| {
            let slot = usize::from(slot.get());
            let model = self.thread.world.with(|state| state.vcpus[self.vcpu].ring.slots[slot]);
            model.completed_use == Some(usage)
        });
        // Invariant 1. A sweep may have completed a slot before the host was told of it.
        if info.busy == 0 || !(info.told || completed) {
            self.thread.world.violate("the busy word is cleared, but the host knows nothing");
        }
    }
}

/// What no state may be like.
pub fn wrong_state(state: &State) -> Option<String> {
    let stuck = |&vcpu: &usize| {
        let model = &state.vcpus[vcpu];
        // The handler runs with interrupts off until it clears the word.
        model.info.busy != 0 && !model.info.lost && !model.found.ve && interrupts_on(state, vcpu)
    };
    (0..state.vcpus.len()).find(stuck).map(|vcpu| format!("vCPU {vcpu}: the busy word is left set"))
}
