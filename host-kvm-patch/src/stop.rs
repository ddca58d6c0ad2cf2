//! A vCPU whose guest cannot be told of a fault waits in the table of works too, without a slot.
//!
//! It is halted meanwhile, so it takes whatever a halted vCPU takes, and touches the page again when
//! it is kicked. Then [`fault`](crate::fault::fault) is asked once more: it may find a free slot, or
//! that the wait has failed.

use crate::platform::{Page, Resolution, Vcpu, Vm};
use crate::vcpu::VcpuState;
use crate::works::Ticket;
use ve_apf_abi::ring::VE_APF_CAUSE_NONE;

/// What the vCPU waits for, or why that wait failed. All-zero bytes: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stop {
    page: Page,
    /// While it waits.
    ticket: Option<Ticket>,
    /// `VE_APF_CAUSE_*`, once it has failed.
    failed: u16,
}

impl Stop {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self { page: Page { gfn: 0, write: false }, ticket: None, failed: VE_APF_CAUSE_NONE }
    }

    pub(crate) fn waits(&self) -> bool {
        self.ticket.is_some()
    }

    /// Does the page it waits for serve this access?
    fn serves(&self, page: Page) -> bool {
        self.page.gfn == page.gfn && (self.page.write || !page.write)
    }

    /// The wait is over, and its mail taken.
    pub(crate) fn end(&mut self, resolution: Resolution) {
        self.ticket = None;
        self.failed = match resolution {
            Resolution::Retry => VE_APF_CAUSE_NONE,
            Resolution::Failed(cause) => cause,
        };
    }

    /// Why the wait for this page failed. Told once, to the next fault, and to none on another page.
    pub(crate) fn take_failure(&mut self, page: Page) -> Option<u16> {
        let cause = core::mem::take(&mut self.failed);
        (cause != VE_APF_CAUSE_NONE && self.serves(page)).then_some(cause)
    }
}

/// How a vCPU waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stopped {
    /// Halt it until it is kicked.
    Halt,
    /// The same; it has waited for this page since an earlier fault, and something else woke it.
    Again,
    /// No other thread can: resolve the page on the vCPU's own.
    Block,
}

/// [`fault`](crate::fault::fault) answered `Sync`: the vCPU waits for the page, and for no other any
/// more. The deadline is that of the first fault on it in a row.
pub fn stop<C, M, const W: usize, const N: usize, const V: usize>(
    vcpu: &C,
    state: &mut VcpuState,
    vm: &M,
    page: Page,
) -> Stopped
where
    C: Vcpu,
    M: Vm<W, N, V>,
{
    if state.stop.waits() && state.stop.serves(page) {
        return Stopped::Again;
    }
    leave(state, vm);
    match vm.locked(|works| works.join(vm, vcpu.index(), None, page)) {
        Ok((ticket, _)) => {
            state.stop = Stop { page, ticket: Some(ticket), failed: VE_APF_CAUSE_NONE };
            Stopped::Halt
        }
        Err(_) => Stopped::Block,
    }
}

/// The vCPU waits without a slot no more.
pub fn leave<M, const W: usize, const N: usize, const V: usize>(state: &mut VcpuState, vm: &M)
where
    M: Vm<W, N, V>,
{
    if let Some(ticket) = state.stop.ticket {
        vm.locked(|works| works.detach(ticket));
    }
    state.stop = Stop::new();
}
