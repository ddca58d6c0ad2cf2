//! NMIs on vCPU 0, between any two steps of what runs there. They stand for a handler that touches
//! memory of its own too: that also happens with interrupts off, on top of anything.

use crate::cpu::{Context, Cpu, Raised};
use crate::fiber::Thread;
use crate::info::{Reached, access};
use crate::vcpu::{Exit, Mode};
use crate::world::State;
use ve_apf_guest::handle::{Mode as CpuMode, Verdict};

/// May an NMI hit the vCPU now? One that arrives while host code runs comes after the entry. A
/// suspended vCPU leaves for it.
pub fn nmi_possible(state: &State, vcpu: usize) -> bool {
    let model = &state.vcpus[vcpu];
    let here = matches!(model.mode, Mode::Guest | Mode::Halted);
    vcpu == 0 && here && state.budget.nmis > 0 && !model.in_nmi && !model.nmi
}

/// The body of the NMI handler.
pub fn run_nmi(thread: Thread<'_>, vcpu: usize) {
    for &gfn in &thread.world.scenario.nmi {
        touch(thread, vcpu, gfn);
    }
    thread.forget("nmi over");
    thread.note(|| "NMI is over".into());
    thread.world.with(|state| {
        let vcpu = &mut state.vcpus[vcpu];
        vcpu.in_nmi = false;
        vcpu.found = std::mem::take(&mut vcpu.below);
    });
}

/// A read with a fixup, as of user memory by perf.
fn touch(thread: Thread<'_>, vcpu: usize, gfn: usize) {
    loop {
        thread.forget(("nmi touches", gfn));
        thread.step();
        let cpu = Cpu::new(thread, vcpu, Context::Nmi);
        match access(&thread, vcpu, gfn, false) {
            Reached::Page => return,
            Reached::Exception => {
                let verdict = cpu.exception(CpuMode::Kernel, Raised { gfn, hardware: true });
                if let Verdict::Fail { .. } = verdict {
                    return;
                }
            }
            Reached::Exit => {
                cpu.exit(Exit::Fault { gfn, write: false, rip: 0xff00 });
                let found = thread.world.with(|state| std::mem::take(&mut state.vcpus[vcpu].found));
                if found.ve {
                    thread.world.violate("#VE is injected into an NMI");
                }
                if found.fault_failed {
                    return;
                }
            }
        }
    }
}
