//! The guest's private array beside the ring: who waits for which slot.

use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOTS};

/// A task, as the kernel names it; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub core::num::NonZeroUsize);

/// Who waits for a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Waiter {
    /// Nobody, or not yet.
    #[default]
    Nobody,
    /// This task.
    Task(TaskId),
    /// The task that did was killed; the completion interrupt frees the slot.
    Abandoned,
}

/// One entry per slot, guarded by the ring's lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Waiters {
    slots: [Waiter; VE_APF_SLOTS as usize],
    epoch: u32,
}

impl Waiters {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [Waiter::Nobody; VE_APF_SLOTS as usize], epoch: 0 }
    }

    /// Who waits for `slot`.
    #[must_use]
    pub fn get(&self, slot: SlotIndex) -> Waiter {
        self.slots.get(usize::from(slot.get())).copied().unwrap_or_default()
    }

    /// Changes who waits for `slot`.
    pub fn set(&mut self, slot: SlotIndex, waiter: Waiter) {
        if let Some(entry) = self.slots.get_mut(usize::from(slot.get())) {
            *entry = waiter;
        }
    }

    /// Remembers the ring's epoch; returns whether it is a new one.
    pub fn note_epoch(&mut self, epoch: u32) -> bool {
        core::mem::replace(&mut self.epoch, epoch) != epoch
    }
}

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}
