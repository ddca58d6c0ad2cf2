//! The rings, with the checks that belong to single accesses.
//!
//! An access is a step of its own unless nobody else can touch that word meanwhile: `injected`
//! belongs to whoever runs on the ring's own vCPU, be it an NMI, and so does `completed` once the
//! vCPU is in the host; the description of a fault does not change while its slot is in use.

use crate::fiber::{Next, Thread};
use crate::info::nmi_may_come;
use crate::vcpu::{RingModel, SLOTS, SlotModel, VcpuModel};
use crate::world::{Frame, State, Status};
use std::cell::Cell;
use ve_apf_abi::access::{Bitmap, FaultInfo, RingAccess};
use ve_apf_abi::ring::{SlotIndex, VE_APF_CAUSE_DEADLINE, VE_APF_SLOT_MASK};
use ve_apf_abi::word::{SlotWord, State as SlotState};
use ve_apf_host::platform::Mapping;

/// Who accesses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The guest, on any vCPU.
    Guest,
    /// The host's thread of the ring's vCPU.
    Host,
    /// The host's poller.
    Poller,
}

/// One side's access to one ring.
pub struct ModelRing<'a> {
    thread: Thread<'a>,
    ring: usize,
    side: Side,
    /// The slots that no scenario uses are seen as taken.
    pub crowded: Cell<bool>,
    /// The last page that the host tried to map, and what came of it.
    pub mapped: Cell<Option<(u64, Mapping)>>,
}

impl<'a> ModelRing<'a> {
    /// The ring of vCPU `ring`.
    pub fn new(thread: Thread<'a>, ring: usize, side: Side) -> Self {
        Self { thread, ring, side, crowded: Cell::new(false), mapped: Cell::new(None) }
    }

    fn with<R>(&self, f: impl FnOnce(&mut RingModel) -> R) -> R {
        self.thread.world.with(|state| f(&mut state.vcpus[self.ring].ring))
    }

    fn slot<R>(&self, slot: SlotIndex, f: impl FnOnce(&mut SlotModel) -> R) -> R {
        self.with(|ring| f(&mut ring.slots[usize::from(slot.get())]))
    }

    /// A task that moved accesses a ring that is not its vCPU's.
    fn step(&self) {
        let at_home = self.side == Side::Host
            || self.side == Side::Guest && {
                let tasks = self.thread.world.scenario.tasks.len();
                let status = |task: usize| {
                    self.thread.world.with(|state: &mut State| state.tasks[task].status)
                };
                self.thread.id >= tasks || status(self.thread.id) == Status::Running(self.ring)
            };
        self.thread.step_to(if at_home { Next::OwnRing } else { Next::Shared });
    }

    fn known(&self, slot: SlotIndex) -> bool {
        usize::from(slot.get()) < SLOTS
    }

    fn before(&self, map: Bitmap) {
        let polled = map == Bitmap::Submitted && self.thread.world.scenario.polls();
        if self.side != Side::Host || map == Bitmap::Active || polled {
            self.step();
        }
    }

    /// Of the host's flags, which nobody but a poller changes while a guest looks.
    fn before_flags(&self) {
        if self.thread.world.scenario.polls() {
            self.step();
        }
    }

    fn before_injected(&self) {
        if self.side == Side::Guest {
            nmi_may_come(&self.thread, self.ring);
        }
    }

    fn change(&self, map: Bitmap, name: &str, f: impl FnOnce(&mut u64)) -> u64 {
        self.before(map);
        let (old, new) = self.with(|ring| {
            let word = match map {
                Bitmap::Active => &mut ring.active,
                Bitmap::Submitted => &mut ring.submitted,
                Bitmap::Completed => &mut ring.completed,
            };
            let old = *word;
            f(word);
            (old, *word)
        });
        self.thread.note(|| format!("ring{} {map:?} {name}: {old:#b} -> {new:#b}", self.ring));
        self.thread.learn(old)
    }

    fn violate(&self, what: String) {
        self.thread.world.violate(format!("{:?}, ring {}: {what}", self.side, self.ring));
    }

    fn check_swap(&self, state: &mut State, slot: SlotIndex, old: SlotWord, new: SlotWord) {
        let lost = state.event_lost;
        let sweeping = state.vcpus[self.ring].sweeping;
        let disturbed = state.disturbed || sweeping;
        let late = state.vcpus[self.ring].late;
        let model = &state.vcpus[self.ring].ring.slots[usize::from(slot.get())];
        let (from, to) = (old.state(), new.state());
        let next = new.generation() == old.generation().next();
        let same = new.generation() == old.generation();
        let usage = old.generation().get();
        let frame = state.frames[usize::try_from(model.fault.gpa >> 12).unwrap_or(0)];
        if (self.side, from) == (Side::Guest, SlotState::NONE) {
            self.check_publication(&mut state.vcpus[self.ring], slot, new);
        }
        let model = &mut state.vcpus[self.ring].ring.slots[usize::from(slot.get())];
        let allowed = match (self.side, from, to) {
            (_, SlotState::NONE, SlotState::CAN_CONTINUE) => next,
            (Side::Host, SlotState::NONE, SlotState::FAIL) => {
                let budget = self.thread.world.scenario.budget.deadlines;
                let late = model.cause == VE_APF_CAUSE_DEADLINE && state.budget.deadlines < budget;
                if frame != Frame::Gone && !late {
                    self.violate(format!("slot {}: FAIL of a page that is not gone", slot.get()));
                }
                next
            }
            (Side::Guest, SlotState::CAN_CONTINUE, SlotState::SUSPEND_ME) => same,
            (Side::Guest, from, SlotState::NONE) => same && from.is_outcome(),
            (Side::Host, _, SlotState::NONE) => lost,
            (Side::Host, from, to) if from.is_waiting() && to.is_outcome() => {
                if model.completed_use.replace(usage) == Some(usage) {
                    self.violate(format!("slot {} completed twice", slot.get()));
                }
                let gfn = model.fault.gpa >> 12;
                let tried = self.mapped.get().and_then(|(at, how)| (at == gfn).then_some(how));
                let known = model.known_failed.filter(|(of, _)| *of == usage).map(|(_, why)| why);
                let expired = known == Some(VE_APF_CAUSE_DEADLINE);
                let expired = expired && tried == Some(Mapping::NotNow);
                let stays = if frame == Frame::Gone { known.is_some() } else { expired };
                if to == SlotState::RESOLVED {
                    if !sweeping && !matches!(tried, Some(Mapping::Mapped | Mapping::NotNow)) {
                        self.violate(format!("slot {}: RESOLVED, not mapped", slot.get()));
                    }
                    if stays {
                        self.violate(format!("slot {}: FAIL became RESOLVED", slot.get()));
                    }
                    if !disturbed && frame != Frame::Mapped {
                        self.violate(format!("slot {}: RESOLVED without the page", slot.get()));
                    }
                } else if !(expired
                    || matches!(tried, Some(Mapping::Failed(_)))
                    // The vCPU had waited for it itself.
                    || late.is_some_and(|late| late as u64 == gfn && tried == Some(Mapping::NotNow)))
                {
                    self.violate(format!("slot {}: FAIL, not tried again", slot.get()));
                }
                same
            }
            _ => false,
        };
        if !allowed {
            self.violate(format!("slot {} {} -> {}", slot.get(), show(old), show(new)));
        }
    }

    /// The guest makes a slot of what the CPU wrote.
    fn check_publication(&self, vcpu: &mut VcpuModel, slot: SlotIndex, new: SlotWord) {
        if vcpu.info.busy == 0 {
            self.violate(format!("slot {} is taken, but nothing was delivered", slot.get()));
        }
        if vcpu.ring.slots[usize::from(slot.get())].fault != vcpu.info.fault {
            self.violate(format!("slot {} is not what the CPU wrote", slot.get()));
        }
        if vcpu.info.slot.replace((slot, new.generation().get())).is_some() {
            self.violate(format!("slot {} is the second of one fault", slot.get()));
        }
        if vcpu.ring.active & slot.bit() == 0 {
            self.violate(format!("slot {} is published, but free", slot.get()));
        }
    }
}

/// A word, readable.
pub fn show(word: SlotWord) -> String {
    let name = match word.state() {
        SlotState::NONE => "NONE",
        SlotState::CAN_CONTINUE => "CAN_CONTINUE",
        SlotState::SUSPEND_ME => "SUSPEND_ME",
        SlotState::RESOLVED => "RESOLVED",
        SlotState::FAIL => "FAIL",
        _ => "?",
    };
    format!("{name}#{}", word.generation().get())
}

impl RingAccess for ModelRing<'_> {
    fn bits(&self, map: Bitmap) -> u64 {
        let bits = self.change(map, "read", |_| {});
        let free = (1 << self.thread.world.scenario.slots) - 1;
        if self.crowded.get() { bits | VE_APF_SLOT_MASK & !free } else { bits }
    }

    fn set_bits(&self, map: Bitmap, bits: u64) -> u64 {
        self.change(map, "set", |word| *word |= bits)
    }

    fn clear_bits(&self, map: Bitmap, bits: u64) -> u64 {
        let old = self.change(map, "clear", |word| *word &= !bits);
        if map == Bitmap::Active && old & bits != bits {
            self.violate(format!("slots {:#b} freed twice", bits & !old));
        }
        old
    }

    fn take_bits(&self, map: Bitmap) -> u64 {
        self.change(map, "take", |word| *word = 0)
    }

    fn injected(&self) -> u32 {
        self.before_injected();
        self.thread.learn(self.with(|ring| ring.injected))
    }

    fn set_injected(&self, value: u32) {
        self.before_injected();
        self.thread.note(|| format!("ring{} injected = {value}", self.ring));
        self.with(|ring| ring.injected = value);
    }

    fn host_flags(&self) -> u32 {
        self.before_flags();
        self.thread.learn(self.with(|ring| ring.host_flags))
    }

    fn set_host_flags(&self, value: u32) {
        self.before_flags();
        self.thread.note(|| format!("ring{} host_flags = {value}", self.ring));
        self.with(|ring| ring.host_flags = value);
    }

    fn epoch(&self) -> u32 {
        if self.side == Side::Guest {
            self.step();
        }
        self.thread.learn(self.with(|ring| ring.epoch))
    }

    fn set_epoch(&self, value: u32) {
        self.with(|ring| ring.epoch = value);
    }

    fn word(&self, slot: SlotIndex) -> SlotWord {
        if !self.known(slot) {
            return SlotWord(0);
        }
        self.step();
        let word = self.thread.learn(self.slot(slot, |slot| slot.word));
        self.thread.note(|| format!("ring{} slot{} is {}", self.ring, slot.get(), show(word)));
        word
    }

    fn swap_word(
        &self,
        slot: SlotIndex,
        expected: SlotWord,
        new: SlotWord,
    ) -> Result<(), SlotWord> {
        if !self.known(slot) {
            self.violate(format!("slot {} changed", slot.get()));
            return Err(SlotWord(0));
        }
        self.step();
        let result = self.thread.world.with(|state| {
            let word = state.vcpus[self.ring].ring.slots[usize::from(slot.get())].word;
            if word != expected {
                return Err(word);
            }
            self.check_swap(state, slot, word, new);
            state.vcpus[self.ring].ring.slots[usize::from(slot.get())].word = new;
            Ok(())
        });
        self.thread.note(|| {
            let slot = slot.get();
            match result {
                Ok(()) => {
                    format!("ring{} slot{slot} {} -> {}", self.ring, show(expected), show(new))
                }
                Err(word) => format!("ring{} slot{slot} swap fails: {}", self.ring, show(word)),
            }
        });
        self.thread.learn(result.is_ok());
        self.thread.learn(result.err().map(|word| word.0));
        result
    }

    fn fault(&self, slot: SlotIndex) -> FaultInfo {
        if !self.known(slot) {
            return FaultInfo::default();
        }
        self.thread.learn(self.slot(slot, |slot| slot.fault))
    }

    fn set_fault(&self, slot: SlotIndex, fault: FaultInfo) {
        self.slot(slot, |slot| {
            slot.fault = fault;
            slot.cause = 0;
        });
    }

    fn cause(&self, slot: SlotIndex) -> u16 {
        self.step();
        self.thread.learn(self.slot(slot, |slot| slot.cause))
    }

    fn set_cause(&self, slot: SlotIndex, cause: u16) {
        self.step();
        self.slot(slot, |slot| slot.cause = cause);
        self.thread.learn(());
    }
}
