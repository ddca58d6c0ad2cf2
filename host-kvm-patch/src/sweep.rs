//! The end of everything outstanding: restore, disable, reset, teardown.

use crate::complete::{Outcome, announce, publish};
use crate::platform::{Page, Resolution, Vcpu, Vm};
use crate::submit::page_of;
use crate::vcpu::VcpuState;
use ve_apf_abi::access::{Bitmap, RingAccess};
use ve_apf_abi::ring::each_slot;

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
    let failed = detach_all(state, vm);
    let mut bits = 0;
    let mut count = 0;
    let active = vcpu
        .with_ring(|ring| {
            ring.set_host_flags(0);
            if why == Sweep::Restore {
                ring.set_epoch(ring.epoch().wrapping_add(1));
            }
            ring.bits(Bitmap::Active)
        })
        .unwrap_or(0);
    for slot in each_slot(active) {
        let known = failed & slot.bit() != 0;
        let retried = known.then(|| vcpu.with_ring(|ring| page_of(&ring.fault(slot))));
        let outcome = retried.flatten().map_or(Outcome::Resolved, |page| retry(vcpu, page));
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

fn retry<C: Vcpu>(vcpu: &C, page: Page) -> Outcome {
    Outcome::of(vcpu.map(page), Resolution::Retry)
}

/// The vCPU's slots wait for nothing any more. Touches no guest memory and waits for no page:
/// for reset, teardown and a `EN` that a VMM writes. Returns the slots whose work had failed.
pub fn detach_all<M, const W: usize, const N: usize, const V: usize>(
    state: &mut VcpuState,
    vm: &M,
) -> u64
where
    M: Vm<W, N, V>,
{
    let mut failed = 0;
    for slot in each_slot(state.held()) {
        let Some(hold) = state.hold(slot) else { continue };
        let ended = vm.locked(|works| works.detach(hold.ticket));
        if let Some(Resolution::Failed(_)) = ended {
            failed |= slot.bit();
        }
        state.set_hold(slot, None);
    }
    failed
}
