//! Completion: the interrupt, the scan after switching off, and the rescue.

use crate::handle::free;
use crate::platform::{Event, Platform};
use crate::waiters::Waiter;
use ve_apf_abi::access::{Bitmap, RingAccess};
use ve_apf_abi::hypercall::VE_APF_UNKNOWN;
use ve_apf_abi::ring::{SlotIndex, each_slot, injected_slot};
use ve_apf_abi::word::State;

/// The completion interrupt of the ring's CPU. Interrupts are off.
pub fn interrupt<P: Platform>(cpu: &P) {
    let ring = cpu.ring();
    let woken = wake(cpu, ring.take_bits(Bitmap::Completed));
    cpu.report(Event::Interrupt(woken));

    let epoch = ring.epoch();
    if cpu.waiters(|waiters| waiters.note_epoch(epoch)) {
        cpu.report(Event::NewEpoch(epoch));
        cpu.restore_soft_state();
    }
}

/// After `EN` was written 0, whose WRMSR completes every slot without an interrupt: wakes all, and
/// takes back a slot whose #VE the host never delivered. Interrupts are off.
pub fn after_disable<P: Platform>(cpu: &P) {
    let ring = cpu.ring();
    ring.take_bits(Bitmap::Completed);
    if let Some(slot) = injected_slot(ring.injected()) {
        ring.set_injected(0);
        let word = ring.word(slot);
        if word.state().is_outcome() {
            free(cpu, slot, word);
        }
    }
    wake(cpu, ring.bits(Bitmap::Active));
}

/// Before `EN` is written: a ring is never zeroed, since a woken task may not have freed its slot.
pub fn before_enable<P: Platform>(cpu: &P) {
    let epoch = cpu.ring().epoch();
    cpu.waiters(|waiters| waiters.note_epoch(epoch));
}

/// Wakes or frees those of `slots` that hold an outcome; returns how many tasks were woken.
///
/// The bits are a hint: one may be left from an earlier use of the slot.
fn wake<P: Platform>(cpu: &P, slots: u64) -> u32 {
    let ring = cpu.ring();
    let mut woken = 0;
    for slot in each_slot(slots) {
        cpu.waiters(|waiters| {
            let word = ring.word(slot);
            if !word.state().is_outcome() {
                return;
            }
            match waiters.get(slot) {
                // Not parked yet, or it saw the outcome by itself.
                Waiter::Nobody => {}
                Waiter::Task(task) => {
                    cpu.wake(task);
                    woken += 1;
                }
                Waiter::Abandoned => {
                    waiters.set(slot, Waiter::Nobody);
                    free(cpu, slot, word);
                }
            }
        });
    }
    woken
}

/// Now and then, on the ring's own CPU: asks the host about every slot that still waits, and
/// frees those it does not know. Returns whether any slot is in use.
///
/// Only a restore that lost the host's state makes this find anything; see
/// [`Event::Rescued`].
pub fn rescue<P: Platform>(cpu: &P) -> Rescue {
    let ring = cpu.ring();
    let active = ring.bits(Bitmap::Active);
    let mut lost = false;
    for slot in each_slot(active) {
        lost |= ask(cpu, slot);
    }
    // Also repairs a lost interrupt: harmless where none was.
    wake(cpu, active);
    Rescue { active: active != 0, lost }
}

/// What [`rescue`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// Slots are in use: call again later.
    pub active: bool,
    /// The host had lost slots: enable the ring again.
    pub lost: bool,
}

fn ask<P: Platform>(cpu: &P, slot: SlotIndex) -> bool {
    let ring = cpu.ring();
    let word = ring.word(slot);
    // Of a slot in SUSPEND_ME the host may not know yet; who waits for it asks by itself.
    if word.state() != State::CAN_CONTINUE {
        return false;
    }
    let answer = cpu.status(slot, word.generation());
    if answer >= 0 && answer != VE_APF_UNKNOWN.cast_signed() {
        return false;
    }
    // The host may have completed it since; then there was nothing to rescue.
    if ring.swap_word(slot, word, word.with_state(State::RESOLVED)).is_err() {
        return false;
    }
    cpu.report(Event::Rescued(slot));
    true
}
