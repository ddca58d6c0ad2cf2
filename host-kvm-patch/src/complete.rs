//! Completion, on the vCPU's own thread: map the page, write the outcome, one interrupt for all.

use crate::fault::guest_error;
use crate::platform::{GuestError, Mapping, Page, Resolution, Vcpu, Vm};
use crate::poll::take_over;
use crate::vcpu::VcpuState;
use crate::works::{Finished, SlotUse};
use ve_apf_abi::access::{Bitmap, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_CAUSE_DEADLINE};
use ve_apf_abi::word::{Generation, SlotWord, State};

/// What a call of [`complete`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Completed {
    /// Slots that became RESOLVED.
    pub resolved: u32,
    /// Slots that became FAIL.
    pub failed: u32,
    /// Of these, slots for which the vCPU was suspended.
    pub suspended: u32,
    /// The completion interrupt was raised.
    pub interrupt: bool,
    /// Slots that the guest had handed in, whatever became of them.
    pub submitted: u32,
    /// The poller brought a page again and again that did not stay: polling must [stop].
    ///
    /// [stop]: crate::poll::stop
    pub stuck: bool,
}

/// An outcome to be written: RESOLVED, or FAIL with its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    Resolved,
    Fail(u16),
}

impl Outcome {
    /// FAIL only if the memory as it is now says so too; or, of a deadline, if it does not say
    /// otherwise.
    pub(crate) fn of(mapping: Mapping, resolution: Resolution) -> Self {
        match (mapping, resolution) {
            (Mapping::Failed(cause), _) => Self::Fail(cause),
            (Mapping::NotNow, Resolution::Failed(VE_APF_CAUSE_DEADLINE)) => {
                Self::Fail(VE_APF_CAUSE_DEADLINE)
            }
            (Mapping::Mapped | Mapping::NotNow, _) => Self::Resolved,
        }
    }
}

/// Empties the vCPU's mailbox. Before each guest entry that a kick asked for.
///
/// # Errors
/// [`GuestError`] where the guest broke its ring.
pub fn complete<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
) -> Result<Completed, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    let mut done = Completed::default();
    let mut bits = 0;
    let mut error = None;
    let mut last = None;
    take_over(vcpu, state, vm, 0);
    while let Some((finished, polled)) = next_mail(vcpu, vm) {
        let Some(of) = finished.slot else {
            // It is about to touch the page again, and knows more then.
            state.stop.end(finished.resolution);
            continue;
        };
        // Taken by the poller meanwhile, or by this thread.
        let submitted = polled || state.was_submitted(of.slot);
        done.submitted += u32::from(submitted);
        if state.hold(of.slot).is_some_and(|hold| hold.ticket == finished.ticket) {
            state.set_hold(of.slot, None);
        }
        if submitted && state.polling && last.replace(finished.page) != Some(finished.page) {
            state.note_polled(finished.page);
        }
        done.stuck |= submitted && state.polling && state.is_stuck(finished.page, M::IN_A_ROW);
        match publish_finished(vcpu, of, finished.page, finished.resolution) {
            Ok(Some((before, outcome))) => {
                match outcome {
                    Outcome::Resolved => done.resolved += 1,
                    Outcome::Fail(_) => done.failed += 1,
                }
                if before == State::CAN_CONTINUE {
                    bits |= of.slot.bit();
                } else {
                    done.suspended += 1;
                }
            }
            Ok(None) => {}
            // The rest of the batch is finished all the same: a VMM may look at the VM.
            Err(found) => error = Some(found),
        }
    }
    if bits != 0 {
        done.interrupt = announce(vcpu, state, bits);
    }
    // The next use of a slot sets its bit again: before the guest runs.
    take_over(vcpu, state, vm, 0);
    error.map_or(Ok(done), Err)
}

/// Takes one finished fault, and says whether it was the poller's to hold.
fn next_mail<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    vm: &M,
) -> Option<(Finished, bool)>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    vm.locked(|works| {
        let finished = works.take_mail(vcpu.index())?;
        let polled =
            finished.slot.is_some_and(|of| vcpu.poll(|poll| poll.end(of.slot, finished.ticket)));
        Some((finished, polled))
    })
}

/// The LAPIC was enabled, or the vector set: raises what could not be raised before.
pub fn interrupts_possible<C: Vcpu>(vcpu: &C, state: &mut VcpuState) -> bool {
    if !state.raise || !vcpu.can_interrupt() {
        return false;
    }
    state.raise = false;
    // Even if `completed` is 0: after a restore the interrupt tells of the epoch alone.
    let enabled = vcpu.with_ring(|_| ()).is_some();
    if enabled {
        vcpu.inject_irq();
    }
    enabled
}

/// Sets `completed` and raises the interrupt, or remembers to.
pub(crate) fn announce<C: Vcpu>(vcpu: &C, state: &mut VcpuState, bits: u64) -> bool {
    vcpu.with_ring(|ring| ring.set_bits(Bitmap::Completed, bits));
    if vcpu.can_interrupt() {
        vcpu.inject_irq();
        return true;
    }
    state.raise = true;
    false
}

fn publish_finished<C: Vcpu>(
    vcpu: &C,
    of: SlotUse,
    page: Page,
    resolution: Resolution,
) -> Result<Option<(State, Outcome)>, GuestError> {
    // Before the outcome is visible, so that the woken task finds its page.
    let mapping = vcpu.map(page);
    let outcome = Outcome::of(mapping, resolution);
    let published = vcpu.with_ring(|ring| publish(ring, of.slot, of.generation, outcome));
    match published {
        Some(Ok(before)) => Ok(Some((before, outcome))),
        Some(Err(error)) => Err(error),
        // The guest took its ring's memory away; nobody is left to tell.
        None => Ok(None),
    }
}

/// How often a compare-and-swap that other CPUs of the guest disturb is tried.
const TRIES: u32 = 4;

/// Writes the outcome of one use of a slot; returns the state before.
pub(crate) fn publish<R: RingAccess>(
    ring: &R,
    slot: SlotIndex,
    generation: Generation,
    outcome: Outcome,
) -> Result<State, GuestError> {
    let mut word = ring.word(slot);
    for _ in 0..TRIES {
        if word.generation() != generation || !word.state().is_waiting() {
            break;
        }
        let new = match outcome {
            Outcome::Resolved => State::RESOLVED,
            Outcome::Fail(cause) => {
                ring.set_cause(slot, cause);
                State::FAIL
            }
        };
        match ring.swap_word(slot, word, word.with_state(new)) {
            Ok(()) => return Ok(word.state()),
            Err(found) => word = found,
        }
    }
    Err(guest_error(slot, word, SlotWord::new(generation, State::CAN_CONTINUE)))
}
