//! The hypercall's SUBMIT and STATUS.

use crate::complete::{Outcome, publish};
use crate::fault::{guest_error, may_queue};
use crate::platform::{GuestError, Mapping, Page, Resolution, Vcpu, Vm};
use crate::poll::take_over;
use crate::stop::leave;
use crate::vcpu::{Hold, VcpuState};
use crate::works::SlotUse;
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_CAUSE_DEADLINE, VE_APF_QUAL_WRITE};
use ve_apf_abi::word::{Generation, SlotWord, State};

/// What SUBMIT or STATUS comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Submitted {
    /// Return QUEUED.
    Queued,
    /// Return RESOLVED.
    Resolved,
    /// Return FAIL.
    Fail,
    /// Return UNKNOWN.
    Unknown,
    /// Return -EINVAL.
    Invalid,
    /// Do not return: stop the vCPU with RIP on the hypercall until something happens.
    Halt,
    /// Nothing could be queued: the vCPU waits for the page, as for a fault that cannot be told,
    /// and executes it again.
    Wait(Page),
}

/// The page a slot asks for, from words that were read once.
#[must_use]
pub fn page_of(fault: &FaultInfo) -> Page {
    Page { gfn: fault.gpa >> 12, write: fault.qualification & VE_APF_QUAL_WRITE != 0 }
}

/// SUBMIT(`claim`). Mail that was there was taken before. Idempotent.
///
/// # Errors
/// [`GuestError`] where the slot holds what the protocol does not allow.
pub fn submit<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    claim: u64,
) -> Result<Submitted, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    let Some(slot) = SlotIndex::new(claim) else { return Ok(Submitted::Invalid) };
    let Some((word, active, fault)) = vcpu.with_ring(|ring| {
        ring.clear_bits(Bitmap::Submitted, slot.bit());
        (ring.word(slot), ring.bits(Bitmap::Active), ring.fault(slot))
    }) else {
        return Ok(Submitted::Invalid);
    };
    take_over(vcpu, state, vm, slot.bit());
    match word.state() {
        State::RESOLVED => return Ok(Submitted::Resolved),
        State::FAIL => return Ok(Submitted::Fail),
        State::NONE => return Ok(Submitted::Invalid),
        State::CAN_CONTINUE | State::SUSPEND_ME => {}
        _ => return Err(guest_error(slot, word, word.with_state(State::CAN_CONTINUE))),
    }
    let queued = match word.state() {
        State::SUSPEND_ME => Submitted::Halt,
        _ => Submitted::Queued,
    };
    if let Some(hold) = state.hold(slot) {
        if hold.generation != word.generation() {
            return Err(guest_error(slot, word, SlotWord::new(hold.generation, word.state())));
        }
        return Ok(queued);
    }
    if active & slot.bit() == 0 {
        return Ok(Submitted::Invalid);
    }
    take_up(vcpu, state, vm, slot, word, page_of(&fault), queued)
}

/// A slot the host does not hold: the guest took it (hardware mode), or a restore lost it.
pub(crate) fn take_up<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    slot: SlotIndex,
    word: SlotWord,
    page: Page,
    queued: Submitted,
) -> Result<Submitted, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    let generation = word.generation();
    // The vCPU itself may have waited for it.
    let failure = state.stop.take_failure(page);
    let mut mapping = match failure {
        None => vcpu.map_if_there(page),
        Some(_) => vcpu.map(page),
    };
    if mapping == Mapping::NotNow && failure != Some(VE_APF_CAUSE_DEADLINE) {
        if may_queue(vcpu, state, vm, page) {
            let of = Some(SlotUse { slot, generation });
            let joined = vm.locked(|works| works.join(vm, vcpu.index(), of, page));
            if let Ok((ticket, _)) = joined {
                state.set_submitted(slot, Hold { ticket, generation });
                leave(state, vm);
                return Ok(queued);
            }
        }
        // What can never come is not waited for, again and again, by the vCPU either.
        mapping = vcpu.map(page);
        if mapping == Mapping::NotNow {
            return Ok(Submitted::Wait(page));
        }
    }
    let (outcome, answer) = match mapping {
        Mapping::Mapped => (Outcome::Resolved, Submitted::Resolved),
        Mapping::Failed(_) | Mapping::NotNow => {
            let resolution = failure.map_or(Resolution::Retry, Resolution::Failed);
            (Outcome::of(mapping, resolution), Submitted::Fail)
        }
    };
    // Answered at once: the slot says so too, `completed` does not.
    match vcpu.with_ring(|ring| publish(ring, slot, generation, outcome)) {
        Some(Ok(_)) => Ok(answer),
        Some(Err(error)) => Err(error),
        None => Ok(Submitted::Invalid),
    }
}

/// STATUS(`claim`, `generation`). Mail that was there was taken, and polling stopped, before.
pub fn status<C: Vcpu>(vcpu: &C, state: &VcpuState, claim: u64, generation: u64) -> Submitted {
    let (Some(slot), Ok(generation)) = (SlotIndex::new(claim), u32::try_from(generation)) else {
        return Submitted::Invalid;
    };
    let generation = Generation::new(generation);
    if state.hold(slot).is_some_and(|hold| hold.generation == generation) {
        return Submitted::Queued;
    }
    let word = vcpu.with_ring(|ring| ring.word(slot));
    match word {
        Some(word) if word.generation() == generation => match word.state() {
            State::RESOLVED => Submitted::Resolved,
            State::FAIL => Submitted::Fail,
            _ => Submitted::Unknown,
        },
        _ => Submitted::Unknown,
    }
}
