//! The guest's private array beside the ring: who waits for which slot.

use core::hash::{Hash, Hasher};
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use ve_apf_abi::ring::{SlotIndex, VE_APF_SLOTS};

/// A task, as the kernel names it; never 0, and never `usize::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub NonZeroUsize);

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

const NOBODY: usize = 0;
const ABANDONED: usize = usize::MAX;

/// One entry per slot, guarded by the ring's lock, but for
/// [`announce`](crate::platform::Platform::announce).
#[derive(Debug)]
pub struct Waiters {
    slots: [AtomicUsize; VE_APF_SLOTS as usize],
    epoch: AtomicU32,
}

impl Waiters {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [const { AtomicUsize::new(NOBODY) }; VE_APF_SLOTS as usize],
            epoch: AtomicU32::new(0),
        }
    }

    /// Nobody waits any more.
    #[inline]
    pub fn clear(&self) {
        for entry in &self.slots {
            entry.store(NOBODY, Relaxed);
        }
        self.epoch.store(0, Relaxed);
    }

    /// Who waits for `slot`.
    #[must_use]
    #[inline]
    pub fn get(&self, slot: SlotIndex) -> Waiter {
        let entry = self.slots.get(usize::from(slot.get()));
        match entry.map_or(NOBODY, |entry| entry.load(Relaxed)) {
            ABANDONED => Waiter::Abandoned,
            id => NonZeroUsize::new(id).map_or(Waiter::Nobody, |id| Waiter::Task(TaskId(id))),
        }
    }

    /// Changes who waits for `slot`.
    #[inline]
    pub fn set(&self, slot: SlotIndex, waiter: Waiter) {
        if let Some(entry) = self.slots.get(usize::from(slot.get())) {
            let value = match waiter {
                Waiter::Nobody => NOBODY,
                Waiter::Task(task) => task.0.get(),
                Waiter::Abandoned => ABANDONED,
            };
            entry.store(value, Relaxed);
        }
    }

    /// Remembers the ring's epoch; returns whether it is a new one.
    #[inline]
    pub fn note_epoch(&self, epoch: u32) -> bool {
        self.epoch.swap(epoch, Relaxed) != epoch
    }

    /// What [`note_epoch`](Self::note_epoch) remembered.
    #[must_use]
    #[inline]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Relaxed)
    }

    fn values(&self) -> ([usize; VE_APF_SLOTS as usize], u32) {
        (self.slots.each_ref().map(|entry| entry.load(Relaxed)), self.epoch())
    }
}

impl Default for Waiters {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for Waiters {
    fn clone(&self) -> Self {
        let (slots, epoch) = self.values();
        Self { slots: slots.map(AtomicUsize::new), epoch: AtomicU32::new(epoch) }
    }
}

impl PartialEq for Waiters {
    fn eq(&self, other: &Self) -> bool {
        self.values() == other.values()
    }
}

impl Eq for Waiters {}

impl Hash for Waiters {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.values().hash(state);
    }
}
