//! Partial-order reduction.
//!
//! Where a vCPU's next access commutes with everything that all others can do before it, no other
//! order needs a look: it goes first, alone. There are no cycles in the graph of states, so nobody
//! is ignored for ever.

use crate::fiber::Next;
use crate::host::interrupts_on;
use crate::nmi::nmi_possible;
use crate::vcpu::{Mode, VcpuModel};
use crate::world::{State, Status, TaskModel, World};

/// Does the next step of the vCPU make all else wait?
pub fn goes_first(world: &World, state: &State, index: usize) -> bool {
    let vcpu = &state.vcpus[index];
    // The poller reads what the vCPU writes, and takes its locks.
    if vcpu.watched || vcpu.polling || vcpu.looking.is_some() {
        return false;
    }
    let commutes = match vcpu.mode {
        Mode::Host => host(vcpu, world.next.borrow()[world.scenario.host_fiber(index)]),
        Mode::Guest => guest(world, state, index),
        Mode::Halted | Mode::Resolving(_) => false,
    };
    // Nobody else may have a hand on the ring: a task that was woken, or can be by a signal.
    let budget = &state.budget;
    let elsewhere = |task: &TaskModel| match task.status {
        Status::Running(vcpu) => vcpu != index,
        Status::Parked => budget.kills > 0 || budget.wakes > 0,
        _ => true,
    };
    let touched = |task: &TaskModel| task.rings & 1 << index != 0 && elsewhere(task);
    commutes && (state.vcpus.len() == 1 || !state.tasks.iter().any(touched))
}

/// A kick can come as long as the host holds a slot, or the vCPU itself waits.
fn can_be_kicked(vcpu: &VcpuModel) -> bool {
    vcpu.request
        || vcpu.ipi
        || vcpu.host.get().is_none_or(|host| host.held() != 0 || host.is_stopped())
}

/// Host code: the guest does not run, and a VMM that pauses the vCPU waits for it.
fn host(vcpu: &VcpuModel, next: Next) -> bool {
    match next {
        Next::OwnRing => true,
        Next::OwnEntry => !can_be_kicked(vcpu),
        Next::OwnTask | Next::Shared => false,
    }
}

fn guest(world: &World, state: &State, index: usize) -> bool {
    let (vcpu, budget) = (&state.vcpus[index], &state.budget);
    let task = vcpu.current.map(|task| &state.tasks[task]);
    if vcpu.irr && !vcpu.in_irq && interrupts_on(state, index) {
        return false;
    }
    if nmi_possible(state, index) {
        return false;
    }
    let fiber = match (vcpu.in_irq, vcpu.current) {
        _ if vcpu.in_nmi => world.scenario.nmi_fiber(index),
        (true, _) => world.scenario.irq_fiber(index),
        (false, Some(task)) => task,
        (false, None) => return false,
    };
    match world.next.borrow()[fiber] {
        // The host writes the ring after a kick and after a restore. A look at a fatal signal
        // belongs to the access before it.
        Next::OwnRing => {
            let above = vcpu.in_irq || vcpu.in_nmi;
            let signal = budget.kills > 0 && !above && task.is_some_and(|task| task.killable);
            budget.restores == 0 && !can_be_kicked(vcpu) && !signal
        }
        // The host sees neither tasks nor locks: an exit before it is one after it.
        Next::OwnTask => budget.kills == 0 && budget.wakes == 0,
        Next::OwnEntry | Next::Shared => false,
    }
}
