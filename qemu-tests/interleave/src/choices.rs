//! What can happen next.

use crate::host::interrupts_on;
use crate::nmi::nmi_possible;
use crate::reduce::goes_first;
use crate::vcpu::{Mode, PollLock, VcpuModel};
use crate::world::{Frame, State, Status, World};
use ve_apf_abi::ring::VE_APF_SLOT_MASK;

/// One thing that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The code that runs on the vCPU goes on.
    Vcpu(usize),
    /// The vCPU takes the completion interrupt.
    Interrupt(usize),
    /// The IPI of a kick arrives.
    Ipi(usize),
    /// The time to gather completions is over.
    Timer(usize),
    /// An NMI arrives.
    Nmi(usize),
    /// The scheduler picks a task.
    Run(usize, usize),
    /// A thread of the VM goes on with this work.
    Worker(usize),
    /// SIGKILL.
    Kill(usize),
    /// A wake-up for nothing.
    Wake(usize),
    /// A page is taken away.
    Reclaim(usize),
    /// A page becomes possible.
    Repair(usize),
    /// The deadline of a work.
    Deadline,
    /// Other memory appears at the frame that this thread works for.
    Move(usize),
    /// A task in user mode is preempted.
    Preempt(usize),
    /// The poller looks at the vCPU's ring, or goes on with that.
    Look(usize),
    /// It does so for the last time.
    Quit(usize),
    /// The vCPU leaves `KVM_RUN`.
    Leave(usize),
    /// Save and restore; the pending events are lost, or the pages.
    Restore {
        /// #VE and interrupt.
        events: bool,
        /// All mapped pages.
        pages: bool,
    },
}

impl Choice {
    /// It need not happen: a machine that waits for it is stuck.
    pub fn is_optional(self) -> bool {
        !matches!(
            self,
            Self::Vcpu(_)
                | Self::Interrupt(_)
                | Self::Ipi(_)
                | Self::Timer(_)
                | Self::Run(..)
                | Self::Worker(_)
                | Self::Look(_)
        )
    }
}

/// Appends all that can happen, or one thing that makes all else wait.
pub fn choices(world: &World, state: &State, out: &mut Vec<Choice>) {
    let first = (0..state.vcpus.len()).find(|&vcpu| goes_first(world, state, vcpu));
    if let (Some(vcpu), true) = (first, world.scenario.reduced) {
        out.push(Choice::Vcpu(vcpu));
        return;
    }
    for vcpu in 0..state.vcpus.len() {
        if nmi_possible(state, vcpu) {
            out.push(Choice::Nmi(vcpu));
        }
        vcpu_choices(world, state, vcpu, out);
        if state.vcpus[vcpu].gathering {
            out.push(Choice::Timer(vcpu));
        }
        poll_choices(state, vcpu, out);
    }
    for worker in 0..state.workers.len() {
        out.push(Choice::Worker(worker));
    }
    let budget = &state.budget;
    for (index, task) in state.tasks.iter().enumerate() {
        // Looked at only between prepare_to_sleep() and finish_sleep(); a signal that comes
        // earlier is one that comes at the beginning of that.
        if budget.kills > 0 && task.killable && !task.fatal {
            out.push(Choice::Kill(index));
        }
        if budget.wakes > 0 && task.status == Status::Parked {
            out.push(Choice::Wake(index));
        }
    }
    for (gfn, frame) in state.frames.iter().enumerate() {
        if budget.reclaims > 0 && matches!(frame, Frame::Mapped | Frame::InHost) {
            out.push(Choice::Reclaim(gfn));
        }
        if budget.repairs > 0 && *frame == Frame::Gone {
            out.push(Choice::Repair(gfn));
        }
    }
    let running = |&worker: &usize| !state.workers[worker].late;
    let mut running = (0..state.workers.len()).filter(running).peekable();
    if budget.deadlines > 0 && running.peek().is_some() {
        out.push(Choice::Deadline);
    }
    if budget.moves > 0 {
        out.extend(running.map(Choice::Move));
    }
    let outside = |mode| mode != Mode::Host;
    // What is polled runs: to be saved it leaves KVM_RUN first.
    let still = |vcpu: &VcpuModel| outside(vcpu.mode) && !vcpu.polling;
    if budget.restores > 0 && state.vcpus.iter().all(still) {
        for events in [false, true] {
            for pages in [false, true] {
                if events <= world.scenario.loses_events && pages <= world.scenario.loses_pages {
                    out.push(Choice::Restore { events, pages });
                }
            }
        }
    }
}

fn poll_choices(state: &State, index: usize, out: &mut Vec<Choice>) {
    let vcpu = &state.vcpus[index];
    if vcpu.looking.is_some() {
        out.push(Choice::Look(index));
    } else if vcpu.watched && vcpu.poll_lock != PollLock::Held {
        // A look that finds nothing new changes nothing.
        let taken = vcpu.poll.get().map_or(0, |poll| poll.taken());
        if vcpu.ring.submitted & !taken & VE_APF_SLOT_MASK != 0 {
            out.push(Choice::Look(index));
        }
        if state.budget.quits > 0 {
            out.push(Choice::Quit(index));
        }
    }
    if state.budget.leaves > 0 && vcpu.mode == Mode::Guest && vcpu.polling {
        out.push(Choice::Leave(index));
    }
}

fn vcpu_choices(world: &World, state: &State, index: usize, out: &mut Vec<Choice>) {
    let vcpu = &state.vcpus[index];
    match vcpu.mode {
        Mode::Host if vcpu.poll_lock == PollLock::Wanted && vcpu.looking.is_some() => {}
        Mode::Host | Mode::Resolving(_) => out.push(Choice::Vcpu(index)),
        Mode::Halted if vcpu.request || vcpu.nmi => out.push(Choice::Vcpu(index)),
        Mode::Halted if vcpu.irr && interrupts_on(state, index) => out.push(Choice::Vcpu(index)),
        Mode::Halted => {}
        Mode::Guest => {
            if vcpu.ipi && !vcpu.found.ve {
                out.push(Choice::Ipi(index));
            }
            if vcpu.in_nmi {
                out.push(Choice::Vcpu(index));
                return;
            }
            let free =
                |lock: Option<usize>| lock.is_none_or(|ring: usize| !state.vcpus[ring].ring.locked);
            if vcpu.in_irq {
                if free(vcpu.irq_lock) {
                    out.push(Choice::Vcpu(index));
                }
                return;
            }
            if vcpu.irr && vcpu.lapic && !vcpu.found.ve && interrupts_on(state, index) {
                out.push(Choice::Interrupt(index));
                if !world.scenario.late_interrupts {
                    return;
                }
            }
            if let Some(task) = vcpu.current {
                if free(state.tasks[task].lock) {
                    out.push(Choice::Vcpu(index));
                }
                // What a hypercall returned is the task's own.
                let nothing = !vcpu.found.ve && vcpu.found.rax.is_none();
                if state.budget.preemptions > 0 && state.tasks[task].preemptible && nothing {
                    out.push(Choice::Preempt(index));
                }
                return;
            }
            for (task, model) in state.tasks.iter().enumerate() {
                let spec = &world.scenario.tasks[task];
                let bound = spec.pinned || !model.started;
                let here = (!bound || spec.starts.is_none_or(|starts| starts == index))
                    && model.stays.is_none_or(|stays| stays == index);
                if model.status == Status::Runnable && here {
                    out.push(Choice::Run(index, task));
                }
            }
        }
    }
}
