//! What the VM is waiting for: works, who waits for each, and the vCPUs' mailboxes.
//!
//! Everything here is guarded by the VM's lock, so that look-up and join, and finish and detach,
//! are each one step. No allocation: capacities are fixed, a full table makes the fault wait
//! synchronously. All-zero bytes are a valid empty value.

use crate::platform::{Page, Resolution, Vm};
use core::num::NonZeroU32;
use ve_apf_abi::ring::{SlotIndex, VE_APF_CAUSE_DEADLINE};
use ve_apf_abi::word::Generation;

/// Index + 1 into an array; `None` ends a list.
type Link = Option<NonZeroU32>;

fn link(index: usize) -> Link {
    NonZeroU32::new(u32::try_from(index).ok()?.checked_add(1)?)
}

fn index(link: NonZeroU32) -> usize {
    usize::try_from(link.get() - 1).unwrap_or(usize::MAX)
}

/// One use of an entry of the work table. A finish that comes too late names an older use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkId {
    /// Place in the table.
    pub index: u32,
    /// Which use of that place.
    pub serial: u32,
}

/// One use of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotUse {
    /// Which slot.
    pub slot: SlotIndex,
    /// Which use of it.
    pub generation: Generation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Work {
    page: Page,
    serial: u32,
    in_use: bool,
    /// Who waits.
    waiters: Link,
    /// Next work in the same bucket, or next free one.
    next: Link,
}

/// A slot of a vCPU, or the vCPU itself, that waits for a work, or lies in a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Waiter {
    vcpu: u32,
    /// `None`: the vCPU itself, stopped.
    slot: Option<SlotUse>,
    page: Page,
    resolution: Resolution,
    /// When the fault happened, by [`Vm::now`].
    since: u64,
    /// The work; `None` once it is finished.
    work: Link,
    /// Next waiter of the work, in the mailbox, or free.
    next: Link,
}

/// Who waits, until its mail is taken or it is detached: by its vCPU's own thread alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(NonZeroU32);

/// A finished fault, taken out of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Finished {
    /// The slot that waited; `None`: the vCPU itself.
    pub slot: Option<SlotUse>,
    /// The page it waited for.
    pub page: Page,
    /// How that ended.
    pub resolution: Resolution,
    /// What it was held by; used up.
    pub ticket: Ticket,
}

/// Why a fault could not be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Full {
    /// No free work, no free waiter, or a vCPU index above the table.
    Table,
    /// No thread to resolve it.
    Threads,
}

/// All works of a VM: at most `W` pages, `N` that wait, `V` vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Works<const W: usize = 1024, const N: usize = 4096, const V: usize = 4096> {
    works: [Work; W],
    buckets: [Link; W],
    waiters: [Waiter; N],
    mailboxes: [Link; V],
    /// Of each vCPU, how many wait whose work is not over.
    waiting: [u32; V],
    free_works: Link,
    free_waiters: Link,
    /// Entries never used so far lie above these.
    used_works: usize,
    used_waiters: usize,
    running: u32,
}

impl<const W: usize, const N: usize, const V: usize> Works<W, N, V> {
    /// Nothing waits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            works: [Work::default(); W],
            buckets: [None; W],
            waiters: [Waiter::default(); N],
            mailboxes: [None; V],
            waiting: [0; V],
            free_works: None,
            free_waiters: None,
            used_works: 0,
            used_waiters: 0,
            running: 0,
        }
    }

    /// How many works are not finished.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running
    }

    /// Is anything in the vCPU's mailbox?
    #[must_use]
    pub fn has_mail(&self, vcpu: u32) -> bool {
        self.mailbox(vcpu).is_some_and(|mailbox| mailbox.is_some())
    }

    /// Makes the slot, or the vCPU itself, wait for the page, with a work that runs already or one
    /// that `vm` starts.
    ///
    /// # Errors
    /// [`Full`]; nothing waits then.
    pub fn join<M: Vm<W, N, V>>(
        &mut self,
        vm: &M,
        vcpu: u32,
        slot: Option<SlotUse>,
        page: Page,
    ) -> Result<(Ticket, Joined), Full> {
        if self.mailbox(vcpu).is_none() {
            return Err(Full::Table);
        }
        let entry = self.new_waiter().ok_or(Full::Table)?;
        let found = self.find(page);
        let (work, joined) = match found {
            Some(work) => (work, Joined::Running),
            None => match self.start(vm, page) {
                Ok(work) => (work, Joined::Started),
                Err(full) => {
                    self.free_waiter(entry);
                    return Err(full);
                }
            },
        };
        let head = match self.work_mut(work) {
            Some(work) => work.waiters.replace(entry),
            None => None,
        };
        let since = vm.now();
        if let Some(waiter) = self.waiter_mut(entry) {
            *waiter = Waiter {
                vcpu,
                slot,
                page,
                resolution: Resolution::Retry,
                since,
                work: Some(work),
                next: head,
            };
        }
        if let Some(waiting) = self.waiting_mut(vcpu) {
            *waiting += 1;
        }
        Ok((Ticket(entry), joined))
    }

    /// The work is over: all that wait for it go to their vCPUs' mailboxes, whose vCPUs are kicked. A work that is not the one meant (any more) is left alone.
    pub fn finish<M: Vm<W, N, V>>(&mut self, vm: &M, id: WorkId, resolution: Resolution) {
        let Some(work) = link(usize::try_from(id.index).unwrap_or(usize::MAX)) else { return };
        let Some(entry) = self.work_mut(work) else { return };
        if !entry.in_use || entry.serial != id.serial {
            return;
        }
        let mut next = entry.waiters.take();
        self.remove(work);
        while let Some(at) = next {
            let Some(waiter) = self.waiter_mut(at) else { return };
            next = waiter.next.take();
            self.mail(vm, at, resolution);
        }
    }

    /// Fails whatever has waited since `before` or longer, by [`Vm::now`], with
    /// `VE_APF_CAUSE_DEADLINE`. Their works go on: whoever touches the page joins them, and is not
    /// one more thread that waits. Returns since when the longest of those left has waited.
    pub fn expire<M: Vm<W, N, V>>(&mut self, vm: &M, before: u64) -> Option<u64> {
        let mut oldest: Option<u64> = None;
        for position in 0..self.used_waiters {
            let Some(at) = link(position) else { break };
            let Some(waiter) = self.waiter_mut(at).map(|waiter| *waiter) else { break };
            if waiter.work.is_none() {
                continue;
            }
            if waiter.since > before {
                oldest = Some(oldest.map_or(waiter.since, |oldest| oldest.min(waiter.since)));
                continue;
            }
            self.unlink(at, waiter);
            self.mail(vm, at, Resolution::Failed(VE_APF_CAUSE_DEADLINE));
        }
        oldest
    }

    /// The frames from `start` to below `end` are other memory now, or none: whoever waits for one
    /// tries again. The works end; their threads, which wait for what is no longer wanted, find them
    /// ended.
    pub fn moved<M: Vm<W, N, V>>(&mut self, vm: &M, start: u64, end: u64) {
        for index in 0..self.used_works {
            let Some(work) = self.works.get(index) else { return };
            if work.in_use && (start..end).contains(&work.page.gfn) {
                let Ok(index) = u32::try_from(index) else { return };
                let id = WorkId { index, serial: work.serial };
                self.finish(vm, id, Resolution::Retry);
            }
        }
    }

    /// Puts a waiter, which is in no list, into its vCPU's mailbox, and kicks.
    fn mail<M: Vm<W, N, V>>(&mut self, vm: &M, at: NonZeroU32, resolution: Resolution) {
        let Some(waiter) = self.waiter_mut(at) else { return };
        waiter.work = None;
        waiter.resolution = resolution;
        let vcpu = waiter.vcpu;
        let Some(head) = self.mailbox_mut(vcpu).map(|mailbox| mailbox.replace(at)) else { return };
        if let Some(waiter) = self.waiter_mut(at) {
            waiter.next = head;
        }
        match self.waits_no_more(vcpu) {
            0 => vm.kick(vcpu, vm.kick_mode()),
            _ => vm.kick_soon(vcpu, vm.kick_mode()),
        }
    }

    /// One fewer waits; returns how many are left.
    fn waits_no_more(&mut self, vcpu: u32) -> u32 {
        self.waiting_mut(vcpu).map_or(0, |waiting| {
            *waiting = waiting.saturating_sub(1);
            *waiting
        })
    }

    /// Takes one finished fault of the vCPU.
    pub fn take_mail(&mut self, vcpu: u32) -> Option<Finished> {
        let at = (*self.mailbox(vcpu)?)?;
        let waiter = *self.waiter_mut(at)?;
        *self.mailbox_mut(vcpu)? = waiter.next;
        self.free_waiter(at);
        Some(Finished {
            slot: waiter.slot,
            page: waiter.page,
            resolution: waiter.resolution,
            ticket: Ticket(at),
        })
    }

    /// It waits no more; returns how its work ended, if it had. The ticket is used up.
    pub fn detach(&mut self, ticket: Ticket) -> Option<Resolution> {
        let waiter = *self.waiter_mut(ticket.0)?;
        self.unlink(ticket.0, waiter);
        self.free_waiter(ticket.0);
        if waiter.work.is_none() {
            return Some(waiter.resolution);
        }
        self.waits_no_more(waiter.vcpu);
        None
    }

    /// Does a work run that would give this page?
    #[must_use]
    pub fn is_running(&self, page: Page) -> bool {
        self.find(page).is_some()
    }

    /// Takes a waiter out of the list it is in: its work's, or its vCPU's mailbox.
    fn unlink(&mut self, at: NonZeroU32, waiter: Waiter) {
        let head = match waiter.work {
            Some(work) => self.work_mut(work).map(|work| &mut work.waiters),
            None => self.mailbox_mut(waiter.vcpu),
        };
        let Some(head) = head else { return };
        if *head == Some(at) {
            *head = waiter.next;
            return;
        }
        let mut next = *head;
        while let Some(before) = next {
            let Some(entry) = self.waiter_mut(before) else { return };
            if entry.next == Some(at) {
                entry.next = waiter.next;
                return;
            }
            next = entry.next;
        }
    }

    fn start<M: Vm<W, N, V>>(&mut self, vm: &M, page: Page) -> Result<NonZeroU32, Full> {
        let work = match self.free_works {
            Some(work) => {
                self.free_works = self.work_mut(work).and_then(|work| work.next.take());
                work
            }
            None if self.used_works < W => {
                let work = link(self.used_works).ok_or(Full::Table)?;
                self.used_works += 1;
                work
            }
            None => return Err(Full::Table),
        };
        let bucket = Self::bucket(page);
        let head = self.buckets.get_mut(bucket).and_then(|head| head.replace(work));
        let entry = self.work_mut(work).ok_or(Full::Table)?;
        let serial = entry.serial.wrapping_add(1);
        *entry = Work { page, serial, in_use: true, waiters: None, next: head };
        self.running += 1;
        let id = WorkId { index: work.get() - 1, serial };
        if vm.start(id, page) {
            return Ok(work);
        }
        self.remove(work);
        Err(Full::Threads)
    }

    /// The running work that gives what is wanted: a write gives a read too.
    fn find(&self, page: Page) -> Option<NonZeroU32> {
        let mut next = self.buckets.get(Self::bucket(page)).copied().flatten();
        while let Some(at) = next {
            let work = self.works.get(index(at))?;
            if work.page.gfn == page.gfn && (work.page.write || !page.write) {
                return Some(at);
            }
            next = work.next;
        }
        None
    }

    fn remove(&mut self, work: NonZeroU32) {
        let Some(entry) = self.work_mut(work) else { return };
        let (page, after) = (entry.page, entry.next);
        entry.in_use = false;
        let free = self.free_works.replace(work);
        if let Some(entry) = self.work_mut(work) {
            entry.next = free;
        }
        self.running -= 1;
        let Some(head) = self.buckets.get_mut(Self::bucket(page)) else { return };
        if *head == Some(work) {
            *head = after;
            return;
        }
        let mut next = *head;
        while let Some(before) = next {
            let Some(entry) = self.work_mut(before) else { return };
            if entry.next == Some(work) {
                entry.next = after;
                return;
            }
            next = entry.next;
        }
    }

    fn new_waiter(&mut self) -> Option<NonZeroU32> {
        if let Some(at) = self.free_waiters {
            self.free_waiters = self.waiter_mut(at)?.next.take();
            return Some(at);
        }
        if self.used_waiters >= N {
            return None;
        }
        let at = link(self.used_waiters)?;
        self.used_waiters += 1;
        Some(at)
    }

    fn free_waiter(&mut self, at: NonZeroU32) {
        let free = self.free_waiters.replace(at);
        if let Some(waiter) = self.waiter_mut(at) {
            *waiter = Waiter { next: free, ..Waiter::default() };
        }
    }

    fn bucket(page: Page) -> usize {
        // Fibonacci hashing: neighbouring gfns are the common case and must not collide.
        let hash = page.gfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        usize::try_from(hash).unwrap_or(0) % W.max(1)
    }

    fn work_mut(&mut self, at: NonZeroU32) -> Option<&mut Work> {
        self.works.get_mut(index(at))
    }

    fn waiter_mut(&mut self, at: NonZeroU32) -> Option<&mut Waiter> {
        self.waiters.get_mut(index(at))
    }

    fn waiting_mut(&mut self, vcpu: u32) -> Option<&mut u32> {
        self.waiting.get_mut(usize::try_from(vcpu).ok()?)
    }

    fn mailbox(&self, vcpu: u32) -> Option<&Link> {
        self.mailboxes.get(usize::try_from(vcpu).ok()?)
    }

    fn mailbox_mut(&mut self, vcpu: u32) -> Option<&mut Link> {
        self.mailboxes.get_mut(usize::try_from(vcpu).ok()?)
    }
}

impl<const W: usize, const N: usize, const V: usize> Default for Works<W, N, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a fault found its work running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Joined {
    /// Another fault had started it.
    Running,
    /// This one did.
    Started,
}
