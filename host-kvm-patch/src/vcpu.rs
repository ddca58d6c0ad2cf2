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
    /// 0: not known.
    rip: u64,
    page: Page,
    count: u32,
}

/// All-zero bytes are a valid initial value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VcpuState {
    holds: [Option<Hold>; VE_APF_SLOTS as usize],
    /// Bit per slot of them that is held.
    held: u64,
    progress: Progress,
    /// What it waits for without a slot.
    pub(crate) stop: Stop,
    /// Completions were published while no interrupt could be raised.
    pub(crate) raise: bool,
    /// Polling was switched on, and not yet off by this thread: see [`crate::poll`].
    pub(crate) polling: bool,
    /// Of the slots held, those that the guest took and handed in.
    submitted: u64,
}

impl VcpuState {
    /// Nothing held.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            holds: [None; VE_APF_SLOTS as usize],
            held: 0,
            progress: Progress { rip: 0, page: Page { gfn: 0, write: false }, count: 0 },
            stop: Stop::new(),
            raise: false,
            polling: false,
            submitted: 0,
        }
    }

    /// What is held of `slot`.
    #[must_use]
    pub fn hold(&self, slot: SlotIndex) -> Option<Hold> {
        self.holds.get(usize::from(slot.get())).copied().flatten()
    }

    /// Bit per slot held.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Does the vCPU itself wait for a page?
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.waits()
    }

    /// Was this slot, which is held, handed in by the guest?
    pub(crate) fn was_submitted(&self, slot: SlotIndex) -> bool {
        self.submitted & slot.bit() != 0
    }

    /// Holds a slot that the guest handed in.
    pub(crate) fn set_submitted(&mut self, slot: SlotIndex, hold: Hold) {
        self.set_hold(slot, Some(hold));
        self.submitted |= slot.bit();
    }

    pub(crate) fn set_hold(&mut self, slot: SlotIndex, hold: Option<Hold>) {
        self.submitted &= !slot.bit();
        match hold {
            Some(_) => self.held |= slot.bit(),
            None => self.held &= !slot.bit(),
        }
        if let Some(entry) = self.holds.get_mut(usize::from(slot.get())) {
            *entry = hold;
        }
    }

    /// Notes a fault that starts a work of its own; `false`: the instruction has had `most` chances.
    ///
    /// A fault that joins a running work says nothing: many tasks may run the same code.
    pub(crate) fn may_try(&mut self, rip: u64, page: Page, most: u32) -> bool {
        let other = self.progress.rip != rip && self.progress.rip != 0;
        if other || self.progress.page != page {
            self.progress = Progress { rip, page, count: 1 };
            return true;
        }
        self.progress.rip = rip;
        self.progress.count += 1;
        if self.progress.count <= most {
            return true;
        }
        self.progress = Progress::default();
        false
    }

    /// Notes the completion of a page that the poller had asked for, of whatever instruction.
    pub(crate) fn note_polled(&mut self, page: Page) {
        if self.progress.page == page {
            self.progress.count += 1;
        } else {
            self.progress = Progress { rip: 0, page, count: 1 };
        }
    }

    /// Has the page had more than `most` chances? Then the next fault on it rings, and the vCPU waits.
    pub(crate) const fn is_stuck(&self, page: Page, most: u32) -> bool {
        let Progress { page: of, count, .. } = self.progress;
        of.gfn == page.gfn && of.write == page.write && count > most
    }
}

impl Default for VcpuState {
    fn default() -> Self {
        Self::new()
    }
}
