//! What the engine needs from a hypervisor.

use crate::poll::Poll;
use crate::works::{WorkId, Works};
use ve_apf_abi::access::RingAccess;

/// The missing page, and what the guest wanted of it. One work resolves it for all who want the
/// same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Page {
    /// Guest frame number: guest-physical address >> 12.
    pub gfn: u64,
    /// The page is to be written.
    pub write: bool,
}

/// How resolving a page ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The page is there, or trying again may help.
    #[default]
    Retry,
    /// It can never come, for this `VE_APF_CAUSE_*`.
    Failed(u16),
}

/// What mapping a page, without waiting for it, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// The guest can access it now; or it is no memory (any more), and the access is emulated.
    Mapped,
    /// Not there (any more), or not to be mapped here: the guest will fault again.
    NotNow,
    /// The current memslots and host mappings say that it can never be there.
    Failed(u16),
}

/// How a vCPU is made to look at its mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KickMode {
    /// Wake it if it is blocked, else an IPI that makes it exit: KVM's `kvm_vcpu_kick()`.
    Wake,
    /// An NMI, told from the guest's own by the request flag that the kicker set first: for a LAPIC
    /// that is passed through, where an IPI would reach the guest.
    Nmi,
    /// The preemption timer at 0: an exit right after the next entry. Whoever programs a later
    /// expiry writes it, then looks again whether an immediate exit was asked for.
    ImmediateExit,
}

/// The VM, shared by all its vCPUs and threads.
pub trait Vm<const W: usize, const N: usize, const V: usize> {
    /// After so many works in a row for one page at one instruction the vCPU waits for the next one
    /// itself. High, since one instruction may well meet one page missing again and again.
    const IN_A_ROW: u32 = 64;

    /// Runs `f` with the VM's lock held. `f` does not sleep; it may call [`kick`](Self::kick).
    fn locked<R>(&self, f: impl FnOnce(&mut Works<W, N, V>) -> R) -> R;

    /// Has a thread of the VM resolve the page, with the access wanted, killable, and without any
    /// reference to a vCPU or a ring; then [`Works::finish`] is called. `false`: no thread can take
    /// it. Called with the VM's lock held.
    fn start(&self, work: WorkId, page: Page) -> bool;

    /// A clock for deadlines: any unit and origin, but never back. Called with the VM's lock held.
    fn now(&self) -> u64;

    /// Makes the vCPU call [`complete`](crate::complete::complete) soon. Called with the VM's lock held.
    fn kick(&self, vcpu: u32, mode: KickMode);

    /// The same, but others of the vCPU's slots still wait: if it runs it may be left in the guest for
    /// a bounded time, to be told of all at once. Whatever it exits for meanwhile, it does so then.
    fn kick_soon(&self, vcpu: u32, mode: KickMode) {
        self.kick(vcpu, mode);
    }

    /// How to kick.
    fn kick_mode(&self) -> KickMode {
        KickMode::Wake
    }
}

/// A vCPU, on its own thread and with the guest stopped.
pub trait Vcpu {
    /// Its ring, with the memory held in place.
    type Ring: RingAccess;

    /// Its index in the VM.
    fn index(&self) -> u32;

    /// Runs `f` on the ring, whose page stays where it is meanwhile; `f` does not sleep.
    /// `None`: no ring is enabled, or its memory cannot be reached.
    fn with_ring<R>(&self, f: impl FnOnce(&Self::Ring) -> R) -> Option<R>;

    /// Runs `f` on what the vCPU's poller shares with its thread. Called with the VM's lock held.
    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R;

    /// Could the guest take an interrupt at this instruction, at any CPL (IF, shadows, GIF)?
    fn interrupt_allowed(&self) -> bool;
    /// Is any event pending, or to be injected again?
    fn event_pending(&self) -> bool;
    /// Is a nested guest running?
    fn is_nested(&self) -> bool;
    /// Must a nested VM entry complete before anything can be injected?
    fn nested_run_pending(&self) -> bool;
    /// Do mode and CPL let a fault be delivered: long mode, paging, no SMM, in-kernel LAPIC enabled,
    /// no debugger blocking interrupts, and CPL 3 or kernel mode allowed by `EN`?
    fn deliverable(&self) -> bool;
    /// Current RIP.
    fn rip(&self) -> u64;

    /// Maps the page for the guest, without waiting. May sleep, so no ring is held.
    fn map(&self, page: Page) -> Mapping;
    /// The same, of a page that nobody has waited for yet: whether one that is not there can come at all is
    /// left to be found by the wait, if asking would take long.
    fn map_if_there(&self, page: Page) -> Mapping {
        self.map(page)
    }

    /// Injects vector 20 at the next entry. Only after [`interrupt_allowed`](Self::interrupt_allowed)
    /// and not [`event_pending`](Self::event_pending).
    fn inject_ve(&self);
    /// Can the completion interrupt be raised: LAPIC enabled, vector set?
    fn can_interrupt(&self) -> bool;
    /// Raises the completion vector in the LAPIC.
    fn inject_irq(&self);
}

/// Something in the ring that the protocol does not allow: the VM stops, naming it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestError {
    /// Slot index.
    pub slot: u8,
    /// The word found there.
    pub word: u32,
    /// The word expected, or 0.
    pub expected: u32,
}
