//! Polling: a thread of the VM takes submissions, so that the guest need not ring.
//!
//! While [`VE_APF_HOST_POLLING`] stands in `host_flags` the guest leaves SUBMIT out of what it may.
//! The poller only reads the ring, that flag apart: for each new bit in `submitted` it joins or
//! starts a work, and leaves the hold in [`Poll`], which the VM's lock guards. The vCPU's own thread
//! [takes over](take_over) what lies there before it relies on its own holds, clears the bits in
//! `submitted`, and does all else as ever: it alone maps, publishes and interrupts.
//!
//! Whoever ends the polling clears the flag, has a full fence, and looks at `submitted` once more;
//! the guest sets its bit, has a full fence, and looks at the flag. Whoever is later sees the other.
//!
//! [`start`] and [`stop`] exclude [`look`] and [`quit`] of the same vCPU: by a lock of the caller's.

use crate::complete::{Completed, Outcome, announce, publish};
use crate::platform::{GuestError, Vcpu, Vm};
use crate::submit::{Submitted, page_of, take_up};
use crate::vcpu::{Hold, VcpuState};
use crate::works::{SlotUse, Ticket};
use core::sync::atomic::{Ordering, fence};
use ve_apf_abi::access::{Bitmap, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_HOST_POLLING, VE_APF_SLOT_MASK, VE_APF_SLOTS, each_slot};
use ve_apf_abi::word::State;

/// What a vCPU's own thread and its poller share; guarded by the VM's lock. All-zero bytes are a
/// valid initial value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Poll {
    /// The poller may take slots.
    on: bool,
    /// Grows whenever the vCPU's thread cleared bits of `submitted`: what was read before is old.
    round: u32,
    /// Slots taken whose bit in `submitted` the vCPU's thread has not cleared yet.
    taken: u64,
    /// Those of them that still wait.
    holds: [Option<Hold>; VE_APF_SLOTS as usize],
}

impl Poll {
    /// Off.
    #[must_use]
    pub const fn new() -> Self {
        Self { on: false, round: 0, taken: 0, holds: [None; VE_APF_SLOTS as usize] }
    }

    /// Is polling on?
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Slots that the poller need not look at.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }

    /// Does anything wait that the vCPU's thread has not taken over?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holds.iter().all(Option::is_none)
    }

    fn set_hold(&mut self, slot: SlotIndex, hold: Option<Hold>) {
        if let Some(entry) = self.holds.get_mut(usize::from(slot.get())) {
            *entry = hold;
        }
    }

    fn take_hold(&mut self, slot: SlotIndex) -> Option<Hold> {
        self.holds.get_mut(usize::from(slot.get()))?.take()
    }

    /// The mail of `ticket` was taken: its hold, if it lies here, holds nothing any more. Returns
    /// whether it did.
    pub(crate) fn end(&mut self, slot: SlotIndex, ticket: Ticket) -> bool {
        let entry = self.holds.get_mut(usize::from(slot.get()));
        match entry {
            Some(entry) if entry.is_some_and(|hold| hold.ticket == ticket) => {
                *entry = None;
                true
            }
            _ => false,
        }
    }
}

impl Default for Poll {
    fn default() -> Self {
        Self::new()
    }
}

/// A vCPU, as its poller sees it, from any thread.
pub trait Polled {
    /// Its ring.
    type Ring: RingAccess;

    /// Its index in the VM.
    fn index(&self) -> u32;
    /// As [`Vcpu::with_ring`], but nothing sleeps: `None` also where the ring's memory must be
    /// looked up again.
    fn with_ring<R>(&self, f: impl FnOnce(&Self::Ring) -> R) -> Option<R>;
    /// As [`Vcpu::poll`].
    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R;
}

/// What the poller remembers of a vCPU between two looks: what it need not look at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    round: u32,
    bits: u64,
}

/// What came of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Looked {
    /// Nothing new.
    Nothing,
    /// So many slots were taken.
    Took(u32),
    /// Something must be left to the vCPU's own thread, which has to [`stop`]: no thread, no room,
    /// or no ring that can be reached without sleeping.
    Left,
}

/// The guest may leave the doorbell out from now on. `false`: the ring cannot be reached.
pub fn start<P, M, const W: usize, const N: usize, const V: usize>(
    polled: &P,
    state: &mut VcpuState,
    vm: &M,
) -> bool
where
    P: Polled,
    M: Vm<W, N, V>,
{
    vm.locked(|_| polled.poll(|poll| poll.on = true));
    let started = polled.with_ring(|ring| ring.set_host_flags(VE_APF_HOST_POLLING)).is_some();
    if !started {
        vm.locked(|_| polled.poll(|poll| poll.on = false));
    }
    state.polling |= started;
    started
}

/// Looks for submissions and takes them. At most one pass over the slots.
pub fn look<P, M, const W: usize, const N: usize, const V: usize>(
    polled: &P,
    seen: &mut Seen,
    vm: &M,
) -> Looked
where
    P: Polled,
    M: Vm<W, N, V>,
{
    polled.with_ring(|ring| take_submitted(polled, ring, seen, vm)).unwrap_or(Looked::Left)
}

/// The time is over: as [`look`], for the last time. The guest rings again.
pub fn quit<P, M, const W: usize, const N: usize, const V: usize>(
    polled: &P,
    seen: &mut Seen,
    vm: &M,
) -> Looked
where
    P: Polled,
    M: Vm<W, N, V>,
{
    let looked = polled.with_ring(|ring| {
        ring.set_host_flags(0);
        fence(Ordering::SeqCst);
        let looked = take_submitted(polled, ring, seen, vm);
        // Taken over in the meantime, or not to be taken: somebody has to look after this.
        let rest = ring.bits(Bitmap::Submitted) & VE_APF_SLOT_MASK;
        let taken = vm.locked(|_| {
            polled.poll(|poll| {
                poll.on = false;
                poll.taken
            })
        });
        if rest & !taken == 0 { looked } else { Looked::Left }
    });
    looked.unwrap_or(Looked::Left)
}

fn take_submitted<P, M, const W: usize, const N: usize, const V: usize>(
    polled: &P,
    ring: &P::Ring,
    seen: &mut Seen,
    vm: &M,
) -> Looked
where
    P: Polled,
    M: Vm<W, N, V>,
{
    if ring.bits(Bitmap::Submitted) & VE_APF_SLOT_MASK == 0 {
        return Looked::Nothing;
    }
    // The round before the bits, and the same round when a slot is taken: then nobody has cleared
    // its bit, so it is still the use of the slot that was read.
    let (on, round, taken) = vm.locked(|_| polled.poll(|poll| (poll.on, poll.round, poll.taken)));
    if !on {
        return Looked::Nothing;
    }
    if seen.round != round {
        *seen = Seen { round, bits: 0 };
    }
    let active = ring.bits(Bitmap::Active);
    let bits = ring.bits(Bitmap::Submitted) & active & !taken & !seen.bits;
    let mut count = 0;
    for slot in each_slot(bits) {
        seen.bits |= slot.bit();
        let word = ring.word(slot);
        // SUSPEND_ME rings, and all else makes no sense: the vCPU's thread may say so.
        if word.state() != State::CAN_CONTINUE {
            continue;
        }
        let page = page_of(&ring.fault(slot));
        let generation = word.generation();
        let joined = vm.locked(|works| {
            if !polled.poll(|poll| poll.on && poll.round == round && poll.taken & slot.bit() == 0) {
                return None;
            }
            let joined = works.join(vm, polled.index(), Some(SlotUse { slot, generation }), page);
            if let Ok((ticket, _)) = joined {
                polled.poll(|poll| {
                    poll.taken |= slot.bit();
                    poll.set_hold(slot, Some(Hold { ticket, generation }));
                });
            }
            Some(joined.is_ok())
        });
        match joined {
            None => break,
            Some(true) => count += 1,
            Some(false) => return Looked::Left,
        }
    }
    if count == 0 { Looked::Nothing } else { Looked::Took(count) }
}

/// Makes what the poller took so far the vCPU's own. Before the vCPU's thread looks at its holds;
/// it has cleared the bits `cleared` of `submitted` itself.
pub(crate) fn take_over<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    cleared: u64,
) where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    if !state.polling {
        return;
    }
    let taken = vm.locked(|_| vcpu.poll(|poll| poll.taken));
    if taken != 0 {
        // The guest sets bits on this vCPU only, which is stopped.
        vcpu.with_ring(|ring| ring.clear_bits(Bitmap::Submitted, taken));
    }
    if taken | cleared != 0 {
        own(vcpu, state, vm, taken | cleared);
    }
}

/// Ends the polling without a look at the ring: whatever was handed in there is swept, or nobody's.
pub fn end<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
) where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    if !state.polling {
        return;
    }
    vm.locked(|_| vcpu.poll(|poll| poll.on = false));
    own(vcpu, state, vm, u64::MAX);
    state.polling = false;
}

/// Moves the holds; of the bits in `cleared` the ring knows nothing any more.
fn own<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    cleared: u64,
) where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    vm.locked(|works| {
        vcpu.poll(|poll| {
            poll.round = poll.round.wrapping_add(1);
            poll.taken &= !cleared;
            for slot in each_slot(VE_APF_SLOT_MASK) {
                let Some(hold) = poll.take_hold(slot) else { continue };
                if state.hold(slot).is_some() {
                    // A guest that submits what is submitted: nobody waits twice.
                    works.detach(hold.ticket);
                } else {
                    state.set_submitted(slot, hold);
                }
            }
        });
    });
}

/// The vCPU's thread ends the polling, if that is on: the guest rings again, and what it left in
/// `submitted` is taken up. Before the vCPU leaves `KVM_RUN`, too.
///
/// # Errors
/// [`GuestError`] where the guest broke its ring.
pub fn stop<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
) -> Result<Completed, GuestError>
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    let mut done = Completed::default();
    if !state.polling {
        return Ok(done);
    }
    vm.locked(|_| vcpu.poll(|poll| poll.on = false));
    vcpu.with_ring(|ring| ring.set_host_flags(0));
    fence(Ordering::SeqCst);
    take_over(vcpu, state, vm, 0);
    state.polling = false;

    let left = vcpu.with_ring(|ring| ring.take_bits(Bitmap::Submitted)).unwrap_or(0);
    let mut bits = 0;
    for slot in each_slot(left & !state.held()) {
        let read = vcpu.with_ring(|ring| {
            (ring.word(slot), ring.bits(Bitmap::Active) & slot.bit(), ring.fault(slot))
        });
        let Some((word, active, fault)) = read else { break };
        if word.state() != State::CAN_CONTINUE || active == 0 {
            continue;
        }
        match take_up(vcpu, state, vm, slot, word, page_of(&fault), Submitted::Queued)? {
            Submitted::Resolved => done.resolved += 1,
            Submitted::Fail => done.failed += 1,
            // What cannot be queued happens again, and then rings.
            Submitted::Wait(_) => {
                let generation = word.generation();
                let told =
                    vcpu.with_ring(|ring| publish(ring, slot, generation, Outcome::Resolved));
                if let Some(told) = told {
                    told?;
                }
                done.resolved += 1;
            }
            _ => continue,
        }
        bits |= slot.bit();
    }
    if bits != 0 {
        done.interrupt = announce(vcpu, state, bits);
    }
    Ok(done)
}
