//! The state word of a slot: `generation << 8 | state`, changed only by one compare-and-swap.
//!
//! | from | to | by |
//! |---|---|---|
//! | NONE | CAN_CONTINUE | host (injected mode) or guest (hardware mode), who took the slot |
//! | NONE | FAIL | host (injected mode), of a page of which it knows already that it can never come |
//! | CAN_CONTINUE | SUSPEND_ME | guest, where it may not sleep |
//! | CAN_CONTINUE, SUSPEND_ME | RESOLVED, FAIL | host |
//! | RESOLVED, FAIL | NONE | guest, whoever read the outcome; then it clears the `active` bit |
//!
//! The generation grows by one, modulo 2^24, whenever a slot leaves NONE.

/// Slot not in use.
pub const VE_APF_STATE_NONE: u8 = 0;
/// The task is parked, or about to be; the vCPU runs on.
pub const VE_APF_STATE_CAN_CONTINUE: u8 = 1;
/// The vCPU must stop until the page is there.
pub const VE_APF_STATE_SUSPEND_ME: u8 = 2;
/// The page is there, or may be: retry.
pub const VE_APF_STATE_RESOLVED: u8 = 3;
/// The page can never come; [`Slot::cause`](crate::ring::Slot::cause) says why.
pub const VE_APF_STATE_FAIL: u8 = 4;
/// Generations count modulo this.
pub const VE_APF_GENERATIONS: u32 = 1 << 24;

/// A state, of which this version knows five; others are the other side's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct State(pub u8);

impl State {
    /// See [`VE_APF_STATE_NONE`].
    pub const NONE: Self = Self(VE_APF_STATE_NONE);
    /// See [`VE_APF_STATE_CAN_CONTINUE`].
    pub const CAN_CONTINUE: Self = Self(VE_APF_STATE_CAN_CONTINUE);
    /// See [`VE_APF_STATE_SUSPEND_ME`].
    pub const SUSPEND_ME: Self = Self(VE_APF_STATE_SUSPEND_ME);
    /// See [`VE_APF_STATE_RESOLVED`].
    pub const RESOLVED: Self = Self(VE_APF_STATE_RESOLVED);
    /// See [`VE_APF_STATE_FAIL`].
    pub const FAIL: Self = Self(VE_APF_STATE_FAIL);

    /// RESOLVED or FAIL: the host is done with the slot.
    #[must_use]
    pub const fn is_outcome(self) -> bool {
        matches!(self, Self::RESOLVED | Self::FAIL)
    }

    /// CAN_CONTINUE or SUSPEND_ME: the guest waits for the host.
    #[must_use]
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::CAN_CONTINUE | Self::SUSPEND_ME)
    }
}

/// A generation: which use of a slot is meant. Below [`VE_APF_GENERATIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Generation(u32);

impl Generation {
    /// The generation `value` modulo 2^24.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value % VE_APF_GENERATIONS)
    }

    /// As an integer.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// That of the slot's next use.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }
}

/// The word at offset 4 of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SlotWord(pub u32);

impl SlotWord {
    /// Puts a word together.
    #[must_use]
    pub const fn new(generation: Generation, state: State) -> Self {
        Self(generation.0 << 8 | state.0 as u32)
    }

    /// Bits 7:0.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is meant")]
    pub const fn state(self) -> State {
        State(self.0 as u8)
    }

    /// Bits 31:8.
    #[must_use]
    pub const fn generation(self) -> Generation {
        Generation(self.0 >> 8)
    }

    /// The same use of the slot in another state.
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self::new(self.generation(), state)
    }
}
