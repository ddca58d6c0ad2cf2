//! What the host remembers of one vCPU; owned by the vCPU's own thread.

use crate::platform::Page;
use crate::stop::Stop;
use crate::works::Ticket;
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOTS};
use ve_apf_abi::word::Generation;

/// A slot that the host is bound to complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hold {
    /// Its place in the VM's table.
    pub ticket: Ticket,
    /// Which use of the slot.
    pub generation: Generation,
}

/// Faults in a row at one instruction and page: has it any chance to get further?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Progress {
    rip: u64,
    page: Page,
    count: u32,
}

/// All-zero bytes are a valid initial value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VcpuState {
    holds: [Option<Hold>; VE_APF_SLOTS as usize],
    progress: Progress,
    /// What it waits for without a slot.
    pub(crate) stop: Stop,
    /// Completions were published while no interrupt could be raised.
    pub(crate) raise: bool,
}

impl VcpuState {
    /// Nothing held.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            holds: [None; VE_APF_SLOTS as usize],
            progress: Progress { rip: 0, page: Page { gfn: 0, write: false }, count: 0 },
            stop: Stop::new(),
            raise: false,
        }
    }

    /// What is held of `slot`.
    #[must_use]
    pub fn hold(&self, slot: SlotIndex) -> Option<Hold> {
        self.holds.get(usize::from(slot.get())).copied().flatten()
    }

    /// Bit per slot held.
    #[must_use]
    pub fn held(&self) -> u64 {
        let mut bits = 0;
        for (position, hold) in self.holds.iter().enumerate() {
            bits |= u64::from(hold.is_some()) << position;
        }
        bits
    }

    /// Does the vCPU itself wait for a page?
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.waits()
    }

    pub(crate) fn set_hold(&mut self, slot: SlotIndex, hold: Option<Hold>) {
        if let Some(entry) = self.holds.get_mut(usize::from(slot.get())) {
            *entry = hold;
        }
    }

    /// Notes a fault that starts a work of its own; `false`: the instruction has had `most` chances.
    ///
    /// A fault that joins a running work says nothing: many tasks may run the same code.
    pub(crate) fn may_try(&mut self, rip: u64, page: Page, most: u32) -> bool {
        if self.progress.rip != rip || self.progress.page != page {
            self.progress = Progress { rip, page, count: 1 };
            return true;
        }
        self.progress.count += 1;
        if self.progress.count <= most {
            return true;
        }
        self.progress = Progress::default();
        false
    }
}

impl Default for VcpuState {
    fn default() -> Self {
        Self::new()
    }
}
