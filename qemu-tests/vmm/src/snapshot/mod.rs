//! Snapshots: the whole machine saved at a random moment, and put back into the same VM or into a new process.
//!
//! What a VMM has to do for a guest with asynchronous page faults outstanding is nothing: `MSR_KVM_ASYNC_PF_EN` and
//! `MSR_KVM_ASYNC_PF_INT` are two MSRs among others. Requests for pages that the old pager had are not saved; whoever still
//! needs a page asks again.
//!
//! Saving: all vCPUs leave KVM_RUN with no exit half handled ([`gate`]), then vCPUs ([`vcpu`]), VM ([`vm`]), devices and
//! the pager are read. Loading goes the other way round for memory, which comes first: all of it is missing then, and comes
//! from the file ([`file`], [`memory`]) page by page as it is touched, be it by the guest or by KVM.

pub mod campaign;
pub mod driver;
pub mod file;
pub mod found;
pub mod gate;
pub mod memory;
pub mod vcpu;
pub mod vm;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::bus::BusState;
use crate::counters::CountersState;
use crate::pager::saved::Saved;
use campaign::Campaign;
use vcpu::VcpuState;
use vm::VmState;

/// Everything but memory.
#[derive(Serialize, Deserialize)]
pub struct State {
    shape: Shape,
    /// By number.
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// Ports.
    pub bus: BusState,
    /// Which pages are missing.
    pub pager: Saved,
    /// Totals so far.
    pub counters: CountersState,
    /// Snapshots that are still to be taken.
    pub campaign: Campaign,
}

/// What the command line must say about the machine that loads a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    vcpus: u8,
    mem_mib: u32,
    slots: u32,
    hlt_in_guest: bool,
    pv_eoi: bool,
}

impl Shape {
    /// The one that was asked for.
    pub fn of(args: &Args) -> Shape {
        Shape {
            vcpus: args.vcpus,
            mem_mib: args.mem_mib,
            slots: args.slots,
            hlt_in_guest: args.hlt_in_guest,
            pv_eoi: args.pv_eoi,
        }
    }
}

impl State {
    /// Fits the machine that the command line asks for.
    pub fn check(&self, args: &Args, memory_len: u64) -> Result<()> {
        let wanted = Shape::of(args);
        ensure!(
            self.shape == wanted && memory_len == u64::from(args.mem_mib) << 20,
            "the snapshot is one of {:?}, the command line says {wanted:?}",
            self.shape
        );
        ensure!(self.vcpus.len() == usize::from(args.vcpus), "the snapshot lacks a vCPU");
        Ok(())
    }
}
