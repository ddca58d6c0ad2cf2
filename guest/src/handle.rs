//! The #VE handler: take up the fault, then park the task or suspend the vCPU.

use crate::platform::{Event, Platform, Sleep, SuspendReason};
use crate::waiters::Waiter;
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess, VeInfoAccess};
use ve_apf_abi::hypercall::{VE_APF_FAIL, VE_APF_QUEUED, VE_APF_RESOLVED};
use ve_apf_abi::ring::{
    SlotIndex, VE_APF_CAUSE_GONE, VE_APF_HOST_POLLING, VE_APF_SLOT_GLA_VALID, injected_slot,
};
use ve_apf_abi::word::{SlotWord, State};

/// Where the CPU was when #VE came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// CPL 3.
    User,
    /// CPL 0.
    Kernel,
}

/// What the exception entry does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Return: the instruction executes again.
    Retry,
    /// Return: a fatal signal is pending, user mode will not be reached.
    Killed,
    /// The page can never come, for this `VE_APF_CAUSE_*`: SIGBUS, fixup or oops.
    Fail {
        /// `VE_APF_CAUSE_*`
        cause: u16,
        /// Guest-physical address.
        gpa: u64,
        /// Guest-linear address, where the host knew it.
        gla: Option<u64>,
    },
    /// There was no fault to handle.
    Spurious,
}

/// Handles #VE on the CPU `cpu`, with interrupts off; they are off again on return.
///
/// The host raises #VE only where an interrupt could be taken. The CPU itself raises it anywhere: with
/// interrupts off, in an NMI, in the idle task; there the vCPU is suspended.
#[inline(always)]
pub fn handle_ve<P: Platform>(cpu: &P, mode: Mode) -> Verdict {
    // The busy word first: an NMI may have come before the injected slot was read, and the CPU
    // raised #VE in there. Of the two, that one is ours.
    match cpu.ve_info().filter(|info| info.busy() != 0) {
        Some(info) => delivered(cpu, info, mode),
        None => injected(cpu, mode),
    }
}

/// Injected mode: the host filled a slot and works on it.
#[inline(always)]
fn injected<P: Platform>(cpu: &P, mode: Mode) -> Verdict {
    let ring = cpu.ring();
    let Some(slot) = injected_slot(ring.injected()) else {
        cpu.report(Event::SpuriousVe);
        return Verdict::Spurious;
    };
    // Interrupts are off, so until the task sleeps no second fault can be injected here.
    ring.set_injected(0);
    cpu.report(Event::Fault(slot));

    let permission = enter(cpu, mode, slot);
    let outcome = match permission {
        Ok(sleep) => early(cpu, slot).or_else(|| park(cpu, slot, sleep)),
        Err(reason) => Some(stand_still(cpu, slot, claim(cpu, slot, reason))),
    };
    leave(cpu, permission);
    conclude(cpu, slot, outcome)
}

/// Hardware mode: the CPU wrote the VE info area, and the host knows nothing yet.
///
/// Until the busy word is cleared a violation exits, and the host stops the vCPU for it. So the
/// area keeps this fault, whatever the code in between touches; and the word is never left set, or
/// this CPU would have no #VE any more.
#[inline(always)]
fn delivered<P: Platform>(cpu: &P, info: &P::VeInfo, mode: Mode) -> Verdict {
    let Some(slot) = take_slot(cpu.ring(), info) else {
        let fault = info.fault();
        cpu.report(Event::NoSlot(fault.gpa));
        let answer = cpu.suspend(fault.gpa, fault.qualification);
        info.clear_busy();
        if answer == VE_APF_FAIL.cast_signed() {
            cpu.report(Event::Failed(None, VE_APF_CAUSE_GONE));
            return failure(&fault, VE_APF_CAUSE_GONE);
        }
        return Verdict::Retry;
    };
    cpu.report(Event::Delivered(slot));

    let permission = enter(cpu, mode, slot);
    let outcome = match permission {
        Ok(sleep) => {
            let early = submit(cpu, slot);
            // Not before the host has the slot, or is bound to take it.
            info.clear_busy();
            early.or_else(|| park(cpu, slot, sleep))
        }
        Err(reason) => {
            let claimed = claim(cpu, slot, reason);
            // Interrupts may come while the vCPU stands still, and with them other faults.
            info.clear_busy();
            Some(stand_still(cpu, slot, claimed))
        }
    };
    leave(cpu, permission);
    conclude(cpu, slot, outcome)
}

/// The task is in the handler now: how may it sleep, or why may it not?
#[inline(always)]
fn enter<P: Platform>(cpu: &P, mode: Mode, slot: SlotIndex) -> Result<Sleep, SuspendReason> {
    match (cpu.enter_ve(), mode) {
        (true, _) => Err(SuspendReason::Nested),
        (false, Mode::User) => Ok(Sleep::Killable),
        (false, Mode::Kernel) => {
            cpu.kernel_may_park(&cpu.ring().fault(slot)).map(|()| Sleep::Unkillable)
        }
    }
}

/// And now it is not; but the flag belongs to the handler that set it, and a nested one leaves it alone.
#[inline(always)]
fn leave<P: Platform>(cpu: &P, entered: Result<Sleep, SuspendReason>) {
    if entered != Err(SuspendReason::Nested) {
        cpu.leave_ve();
    }
}

/// Frees the slot; what the outcome means for the task.
fn conclude<P: Platform>(cpu: &P, slot: SlotIndex, outcome: Option<SlotWord>) -> Verdict {
    let Some(word) = outcome else {
        return Verdict::Killed;
    };
    if word.state() != State::FAIL {
        free(cpu, slot, word);
        return Verdict::Retry;
    }
    // Before the slot is somebody else's.
    let (fault, cause) = (cpu.ring().fault(slot), cpu.ring().cause(slot));
    free(cpu, slot, word);
    cpu.report(Event::Failed(Some(slot), cause));
    failure(&fault, cause)
}

fn failure(fault: &FaultInfo, cause: u16) -> Verdict {
    let valid = fault.flags & VE_APF_SLOT_GLA_VALID != 0;
    Verdict::Fail { cause, gpa: fault.gpa, gla: valid.then_some(fault.gla) }
}

/// Takes a free slot and publishes in it what `info` says; `None` if there is no free one.
///
/// The host takes slots too, but only while this vCPU is stopped; bits of slots that it still
/// holds are set.
#[inline]
fn take_slot<R: RingAccess>(ring: &R, info: &impl VeInfoAccess) -> Option<SlotIndex> {
    loop {
        let slot = SlotIndex::lowest(!ring.bits(Bitmap::Active))?;
        // Against a host that takes slots while this vCPU runs: none does.
        if ring.set_bits(Bitmap::Active, slot.bit()) & slot.bit() != 0 {
            continue;
        }
        let free = ring.word(slot);
        if free.state() == State::NONE {
            ring.set_fault(slot, info.fault());
            let word = SlotWord::new(free.generation().next(), State::CAN_CONTINUE);
            if ring.swap_word(slot, free, word).is_ok() {
                return Some(slot);
            }
        }
        // Only the other side, broken, leaves such a word behind a free bit: the slot stays taken.
    }
}

/// Hands a slot to the host: leaves it to one that polls, else rings. Returns the
/// outcome where the host has it at once: the page is there after all.
#[inline(always)]
fn submit<P: Platform>(cpu: &P, slot: SlotIndex) -> Option<SlotWord> {
    let ring = cpu.ring();
    // Against a host that stops polling: it clears the flag, then looks at `submitted` once more.
    // All four accesses are sequentially consistent, so whoever is later sees the other.
    ring.set_bits(Bitmap::Submitted, slot.bit());
    if ring.host_flags() & VE_APF_HOST_POLLING != 0 {
        cpu.report(Event::Unrung(slot));
        return None;
    }
    let answer = cpu.ring_doorbell(slot);
    if answer == VE_APF_QUEUED.cast_signed() {
        return None;
    }
    if answer < 0 {
        // A host that refuses it, or lost it: the fault just happens again.
        let word = ring.word(slot);
        if word.state().is_waiting()
            && ring.swap_word(slot, word, word.with_state(State::RESOLVED)).is_ok()
        {
            cpu.report(Event::Rescued(slot));
        }
    }
    early(cpu, slot)
}

/// The outcome, if the host was faster. The slot's completion interrupt may still come: it finds
/// nobody there.
#[inline(always)]
fn early<P: Platform>(cpu: &P, slot: SlotIndex) -> Option<SlotWord> {
    let word = cpu.ring().word(slot);
    if word.state().is_waiting() {
        return None;
    }
    cpu.report(Event::EarlyOutcome(slot));
    Some(word)
}

/// Sleeps until the slot holds an outcome, which is returned; `None` if a fatal signal came first,
/// and the slot belongs to the completion interrupt from then on.
#[inline(always)]
fn park<P: Platform>(cpu: &P, slot: SlotIndex, sleep: Sleep) -> Option<SlotWord> {
    cpu.announce(slot, cpu.current());
    cpu.report(Event::Parked(slot, sleep));

    let mut slept = false;
    let outcome = loop {
        // Against the completion interrupt: it reads the word, then wakes us. We say that we
        // sleep, then read the word. Whoever is later sees the other.
        cpu.prepare_to_sleep(sleep);
        let word = cpu.ring().word(slot);
        if !word.state().is_waiting() {
            break word;
        }
        // A signal that came before is left to schedule(), which does not sleep then.
        if slept && sleep == Sleep::Killable && cpu.fatal_signal() {
            // Under the lock the interrupt can not look between our look and our mark.
            let word = cpu.waiters(|waiters| {
                let word = cpu.ring().word(slot);
                if word.state().is_waiting() {
                    waiters.set(slot, Waiter::Abandoned);
                }
                word
            });
            if !word.state().is_waiting() {
                break word;
            }
            cpu.finish_sleep();
            cpu.report(Event::Abandoned(slot, word.generation()));
            return None;
        }
        if slept {
            cpu.report(Event::SpuriousWake(slot));
        }
        cpu.schedule();
        slept = true;
    };
    cpu.finish_sleep();
    cpu.waiters(|waiters| waiters.set(slot, Waiter::Nobody));
    cpu.report(Event::Unparked(slot));
    Some(outcome)
}

/// Marks the slot as one that the vCPU stands still for; `Ok` with its word, or `Err` with the
/// outcome if that came first.
#[inline(always)]
fn claim<P: Platform>(
    cpu: &P,
    slot: SlotIndex,
    reason: SuspendReason,
) -> Result<SlotWord, SlotWord> {
    let ring = cpu.ring();
    let word = ring.word(slot);
    if !word.state().is_waiting() {
        return Err(word);
    }
    let claimed = word.with_state(State::SUSPEND_ME);
    ring.swap_word(slot, word, claimed)?;
    cpu.report(Event::Suspended(slot, reason));
    Ok(claimed)
}

/// Stops the vCPU until the slot holds an outcome, which is returned. Where the code that faulted
/// could be interrupted, it still can.
fn stand_still<P: Platform>(
    cpu: &P,
    slot: SlotIndex,
    claimed: Result<SlotWord, SlotWord>,
) -> SlotWord {
    let ring = cpu.ring();
    let claimed = match claimed {
        Ok(word) => word,
        Err(outcome) => return outcome,
    };
    loop {
        let answer = cpu.wait(slot);
        let word = ring.word(slot);
        if !word.state().is_waiting() {
            return word;
        }
        let done = [VE_APF_RESOLVED, VE_APF_FAIL].map(|answer| answer.cast_signed());
        if answer < 0 || done.contains(&answer) {
            // A host that refuses the slot, or lost it: the fault just happens again.
            cpu.report(Event::Rescued(slot));
            let resolved = claimed.with_state(State::RESOLVED);
            return match ring.swap_word(slot, claimed, resolved) {
                Ok(()) => resolved,
                Err(word) => word,
            };
        }
    }
}

/// Gives the slot back: first the word, then the bit, or the host could take a slot in use.
pub(crate) fn free<P: Platform>(cpu: &P, slot: SlotIndex, word: SlotWord) {
    let ring = cpu.ring();
    // Of an outcome the host is done, so the swap can not fail.
    if word.state().is_outcome() && ring.swap_word(slot, word, word.with_state(State::NONE)).is_ok()
    {
        ring.clear_bits(Bitmap::Active, slot.bit());
    }
}
