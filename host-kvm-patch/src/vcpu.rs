//! What the host remembers of one vCPU; owned by the vCPU's own thread.

use crate::platform::Page;
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
    /// Completions in a row after which the page was not mapped.
    unmapped: u32,
}

/// So many completions in a row that could not map the page, and the next fault is resolved with
/// the vCPU stopped.
const UNMAPPED: u32 = 2;
/// So many faults in a row, although the page was mapped each time: it may be reclaimed before the
/// woken task runs. High, since one instruction may well meet one page missing again and again.
const IN_A_ROW: u32 = 64;

/// All-zero bytes are a valid initial value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VcpuState {
    holds: [Option<Hold>; VE_APF_SLOTS as usize],
    progress: Progress,
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
            progress: Progress {
                rip: 0,
                page: Page { gfn: 0, write: false },
                count: 0,
                unmapped: 0,
            },
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
    pub fn held(&self) -> u64 {
        let mut bits = 0;
        for (position, hold) in self.holds.iter().enumerate() {
            bits |= u64::from(hold.is_some()) << position;
        }
        bits
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
        if let Some(entry) = self.holds.get_mut(usize::from(slot.get())) {
            *entry = hold;
        }
    }

    /// Notes a fault that starts a work of its own; `false`: the instruction has had its chances.
    ///
    /// A fault that joins a running work says nothing: many tasks may run the same code.
    pub(crate) fn may_try(&mut self, rip: u64, page: Page) -> bool {
        let other = self.progress.rip != rip && self.progress.rip != 0;
        if other || self.progress.page != page {
            self.progress = Progress { rip, page, count: 1, unmapped: 0 };
            return true;
        }
        self.progress.rip = rip;
        self.progress.count += 1;
        if self.progress.count <= IN_A_ROW && self.progress.unmapped < UNMAPPED {
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
            self.progress = Progress { rip: 0, page, count: 1, unmapped: 0 };
        }
    }

    /// Should the next fault on the page ring, to be resolved with the vCPU stopped?
    pub(crate) fn is_stuck(&self, page: Page) -> bool {
        let Progress { count, unmapped, .. } = self.progress;
        self.progress.page == page && (count >= IN_A_ROW || unmapped >= UNMAPPED)
    }

    /// Notes whether a completion mapped its page.
    pub(crate) fn note_mapping(&mut self, page: Page, mapped: bool) {
        if self.progress.page != page {
            return;
        }
        self.progress.unmapped = if mapped { 0 } else { self.progress.unmapped + 1 };
    }
}

impl Default for VcpuState {
    fn default() -> Self {
        Self::new()
    }
}
