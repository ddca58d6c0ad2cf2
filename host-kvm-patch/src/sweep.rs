//! The end of everything outstanding: restore, disable, reset, teardown.

use crate::complete::{Outcome, announce, publish};
use crate::platform::{Resolution, Vcpu, Vm};
use crate::poll::end;
use crate::stop::leave;
use crate::submit::page_of;
use crate::vcpu::VcpuState;
use ve_apf_abi::access::{Bitmap, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOTS, each_slot};

/// Why the ring is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sweep {
    /// A VMM wrote `EN`: whatever the guest waits for, this host may know nothing of.
    Restore,
    /// The guest writes `EN` = 0, or another ring, and scans for itself afterwards.
    Disable,
}

/// Completes every slot that waits, whether the host holds it or it only lies in the ring.
/// Returns how many. A slot that makes no sense is left alone: nobody waits for it.
///
/// RESOLVED is always right, since the guest then just faults again; a failure known by now stays
/// one, if the memory still says so.
pub fn sweep<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    why: Sweep,
) -> u32
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    end(vcpu, state, vm);
    let mut ended = [Resolution::Retry; VE_APF_SLOTS as usize];
    each_detached(state, vm, |slot, how| {
        if let (Some(entry), Some(how)) = (ended.get_mut(usize::from(slot.get())), how) {
            *entry = how;
        }
    });
    let mut bits = 0;
    let mut count = 0;
    let active = vcpu
        .with_ring(|ring| {
            ring.set_host_flags(0);
            ring.take_bits(Bitmap::Submitted);
            if why == Sweep::Restore {
                ring.set_epoch(ring.epoch().wrapping_add(1));
            }
            ring.bits(Bitmap::Active)
        })
        .unwrap_or(0);
    for slot in each_slot(active) {
        let how = ended.get(usize::from(slot.get())).copied().unwrap_or_default();
        let outcome = match how {
            Resolution::Retry => Outcome::Resolved,
            Resolution::Failed(_) => vcpu
                .with_ring(|ring| page_of(&ring.fault(slot)))
                .map_or(Outcome::Resolved, |page| Outcome::of(vcpu.map(page), how)),
        };
        let written = vcpu.with_ring(|ring| {
            let word = ring.word(slot);
            word.state().is_waiting() && publish(ring, slot, word.generation(), outcome).is_ok()
        });
        if written == Some(true) {
            bits |= slot.bit();
            count += 1;
        }
    }
    match why {
        Sweep::Restore => {
            // Always, since the interrupt also tells of the epoch.
            announce(vcpu, state, bits);
        }
        Sweep::Disable => {
            vcpu.with_ring(|ring| ring.set_bits(Bitmap::Completed, bits));
            state.raise = false;
        }
    }
    count
}

/// The vCPU's slots wait for nothing any more. Touches no guest memory and waits for no page:
/// for reset, teardown and an `EN` that a VMM writes. Polling has [ended](crate::poll::end).
pub fn detach_all<M, const W: usize, const N: usize, const V: usize>(state: &mut VcpuState, vm: &M)
where
    M: Vm<W, N, V>,
{
    each_detached(state, vm, |_, _| {});
}

/// Detaches every slot held, and the vCPU itself; `note` is told how its work ended, if it had.
fn each_detached<M, const W: usize, const N: usize, const V: usize>(
    state: &mut VcpuState,
    vm: &M,
    mut note: impl FnMut(SlotIndex, Option<Resolution>),
) where
    M: Vm<W, N, V>,
{
    leave(state, vm);
    for slot in each_slot(state.held()) {
        let Some(hold) = state.hold(slot) else { continue };
        note(slot, vm.locked(|works| works.detach(hold.ticket)));
        state.set_hold(slot, None);
    }
}
