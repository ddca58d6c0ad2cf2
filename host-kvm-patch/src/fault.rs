//! A vCPU found a page missing: take a slot, join or start a work, inject #VE.

use crate::platform::{GuestError, Page, Vcpu, Vm};
use crate::poll::take_over;
use crate::stop::leave;
use crate::vcpu::{Hold, VcpuState};
use crate::works::{Full, Joined, SlotUse};
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOT_MASK, injected_slot, injected_value};
use ve_apf_abi::word::{SlotWord, State};

/// Why the guest cannot be told, and the vCPU waits for the page instead. The numbers are those of the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SyncReason {
    /// The guest could not take an interrupt at this instruction.
    InterruptsOff = 0,
    /// Another event is pending.
    EventPending = 1,
    /// A nested guest runs.
    Nested = 2,
    /// Mode, CPL or LAPIC do not allow it.
    NotDeliverable = 3,
    /// All slots are in use.
    NoSlot = 4,
    /// The VM's tables are full, or no thread is free.
    Full = 5,
    /// The same instruction faulted on the same page again and again, and did not get further.
    NoProgress = 6,
    /// The ring cannot be reached.
    NoRing = 7,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// #VE will be injected; run the guest.
    Injected(SlotIndex, Joined),
    /// #VE will be injected, and says that the page can never come; run the guest.
    Failed(SlotIndex),
    /// The vCPU has waited for this page, and it did not come, for this `VE_APF_CAUSE_*`: a deadline
    /// is over; of any other, ask the memory whether it is still so. Then [`fail`].
    Lost(u16),
    /// The vCPU waits for it: [`stop`](crate::stop::stop).
    Sync(SyncReason),
}

/// The vCPU exited on `page`, which is not there; `info` describes the access for the guest.
///
/// # Errors
/// [`GuestError`] where the guest broke its ring.
pub fn fault<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    page: Page,
    info: FaultInfo,
) -> Result<Answer, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    if let Some(cause) = state.stop.take_failure(page) {
        return Ok(Answer::Lost(cause));
    }
    take_over(vcpu, state, vm, 0);
    let answer = tell(vcpu, |ring| deliver(vcpu, ring, state, vm, page, info))?;
    if let Answer::Injected(..) = answer {
        leave(state, vm);
    }
    Ok(answer)
}

/// The vCPU exited on a page that can never come, for this `VE_APF_CAUSE_*`: the guest is told at
/// once, with a slot that holds FAIL from the start. [`Answer::Sync`]: it cannot be told here.
///
/// # Errors
/// [`GuestError`] where the guest broke its ring.
pub fn fail<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    info: FaultInfo,
    cause: u16,
) -> Result<Answer, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    take_over(vcpu, state, vm, 0);
    tell(vcpu, |ring| {
        drop_lost_event(ring, state, vm)?;
        let Some((slot, free)) = take_slot(ring, state)? else {
            return Ok(Answer::Sync(SyncReason::NoSlot));
        };
        ring.set_fault(slot, info);
        ring.set_cause(slot, cause);
        announce(ring, slot, free, SlotWord::new(free.generation().next(), State::FAIL))?;
        Ok(Answer::Failed(slot))
    })
}

/// If the guest can take a #VE here, writes a slot, and injects it.
fn tell<C: Vcpu>(
    vcpu: &C,
    write: impl FnOnce(&C::Ring) -> Result<Answer, GuestError>,
) -> Result<Answer, GuestError> {
    if let Some(reason) = refusal(vcpu) {
        return Ok(Answer::Sync(reason));
    }
    let answer = vcpu.with_ring(write).unwrap_or(Ok(Answer::Sync(SyncReason::NoRing)))?;
    if let Answer::Injected(..) | Answer::Failed(_) = answer {
        vcpu.inject_ve();
    }
    Ok(answer)
}

/// Has the instruction had its chances, each time with a page that was gone again when the guest's
/// task ran? Then the vCPU waits for the page, and is the next to touch it.
pub(crate) fn may_queue<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    page: Page,
) -> bool
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    vm.locked(|works| works.is_running(page)) || state.may_try(vcpu.rip(), page, M::IN_A_ROW)
}

fn refusal<C: Vcpu>(vcpu: &C) -> Option<SyncReason> {
    if vcpu.is_nested() || vcpu.nested_run_pending() {
        Some(SyncReason::Nested)
    } else if !vcpu.deliverable() {
        Some(SyncReason::NotDeliverable)
    } else if vcpu.event_pending() {
        Some(SyncReason::EventPending)
    } else if !vcpu.interrupt_allowed() {
        Some(SyncReason::InterruptsOff)
    } else {
        None
    }
}

fn deliver<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    ring: &C::Ring,
    state: &mut VcpuState,
    vm: &M,
    page: Page,
    info: FaultInfo,
) -> Result<Answer, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    drop_lost_event(ring, state, vm)?;

    // Asked of what could be delivered: a vCPU that waits itself takes nobody's chances.
    if !may_queue(vcpu, state, vm, page) {
        return Ok(Answer::Sync(SyncReason::NoProgress));
    }
    let Some((slot, free)) = take_slot(ring, state)? else {
        return Ok(Answer::Sync(SyncReason::NoSlot));
    };
    let generation = free.generation().next();
    let of = Some(SlotUse { slot, generation });
    let joined = vm.locked(|works| works.join(vm, vcpu.index(), of, page));
    let (ticket, joined) = match joined {
        Ok(joined) => joined,
        Err(Full::Table | Full::Threads) => {
            ring.clear_bits(Bitmap::Active, slot.bit());
            return Ok(Answer::Sync(SyncReason::Full));
        }
    };
    // A work may be over before the next line; its mail waits for this thread.
    state.set_hold(slot, Some(Hold { ticket, generation }));
    ring.set_fault(slot, info);
    announce(ring, slot, free, SlotWord::new(generation, State::CAN_CONTINUE))?;
    Ok(Answer::Injected(slot, joined))
}

/// Takes a free slot, and returns it with its word; `None` if there is none.
fn take_slot<R: RingAccess>(
    ring: &R,
    state: &VcpuState,
) -> Result<Option<(SlotIndex, SlotWord)>, GuestError> {
    let taken = ring.bits(Bitmap::Active) | state.held();
    let Some(slot) = SlotIndex::lowest(!taken & VE_APF_SLOT_MASK) else { return Ok(None) };
    if ring.set_bits(Bitmap::Active, slot.bit()) & slot.bit() != 0 {
        // In hardware mode the guest takes slots too, on its other CPUs' behalf never: so this
        // is a guest that plays with its ring. It waits.
        return Ok(None);
    }
    let free = ring.word(slot);
    if free.state() == State::NONE {
        Ok(Some((slot, free)))
    } else {
        Err(guest_error(slot, free, free.with_state(State::NONE)))
    }
}

/// Publishes the word of a slot that is filled, and names the slot to the guest's #VE handler.
fn announce<R: RingAccess>(
    ring: &R,
    slot: SlotIndex,
    free: SlotWord,
    word: SlotWord,
) -> Result<(), GuestError> {
    if let Err(found) = ring.swap_word(slot, free, word) {
        return Err(guest_error(slot, found, free));
    }
    ring.set_injected(injected_value(slot));
    Ok(())
}

/// The guest clears `injected` with interrupts off. If it could take an interrupt now and the
/// word is still set, then somebody dropped the event (a VMM may): that use of the slot never was.
fn drop_lost_event<R, M, const W: usize, const N: usize, const V: usize>(
    ring: &R,
    state: &mut VcpuState,
    vm: &M,
) -> Result<(), GuestError>
where
    R: RingAccess,
    M: Vm<W, N, V>,
{
    let injected = ring.injected();
    if injected == 0 {
        return Ok(());
    }
    let Some(slot) = injected_slot(injected) else {
        return Err(GuestError { slot: u8::MAX, word: injected, expected: 0 });
    };
    if let Some(hold) = state.hold(slot) {
        vm.locked(|works| works.detach(hold.ticket));
        state.set_hold(slot, None);
    }
    let word = ring.word(slot);
    if ring.swap_word(slot, word, word.with_state(State::NONE)).is_err() {
        return Err(guest_error(slot, ring.word(slot), word));
    }
    ring.clear_bits(Bitmap::Active, slot.bit());
    ring.set_injected(0);
    Ok(())
}

pub(crate) fn guest_error(slot: SlotIndex, found: SlotWord, expected: SlotWord) -> GuestError {
    GuestError { slot: slot.get(), word: found.0, expected: expected.0 }
}
