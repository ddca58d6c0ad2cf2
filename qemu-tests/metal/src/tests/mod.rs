//! The tests.

mod bad;
mod contexts;
mod delivery;
mod fail;
mod held;
mod hold;
mod init;
mod nmi;
mod park;
mod poll;
mod stopped;
mod story1;
mod story2;

use crate::suite::Test;

/// All of them, in the order in which a group runs.
pub(crate) static ALL: &[Test] = &[
    park::ONE,
    park::BURST,
    park::SAME_PAGE,
    park::RANDOM,
    park::EVERY_CPU,
    poll::ONE,
    poll::BURST,
    fail::WHILE_WAITING,
    fail::AT_ONCE,
    fail::AGAIN,
    story1::ALL_AT_ONCE,
    story1::EACH_PAGE,
    story1::ARMED_AT_ONCE,
    story1::ARMED_EACH_PAGE,
    story1::PAGE_TABLE,
    story1::ARMED_PAGE_TABLE,
    story2::SECOND,
    story2::ALL_SLOTS,
    nmi::STORM,
    nmi::PACED,
    nmi::FAULTS,
    nmi::AT_FAULT,
    nmi::STEP,
    nmi::STEP_FAULTS,
    contexts::CONTEXTS,
    delivery::EVENTS,
    delivery::EVENTS_ARMED,
    delivery::IRET,
    delivery::IRET_ARMED,
    bad::MSRS,
    bad::MOVED,
    bad::CALLS,
    bad::RANGES,
    bad::GARBAGE,
    bad::GARBAGE_STEP,
    bad::GARBAGE_STORM,
    held::PRIORITY,
    held::FLAG,
    held::LAPIC,
    init::INIT,
    stopped::STOPPED,
    hold::HOLD,
];
