//! The guest's side of ve-apf without an operating system: what a small 64-bit kernel needs to take
//! #VE, park tasks and be told of completions.
//!
//! * [`cpu`]: what belongs to one CPU, and how it is found: by its task register, so that neither
//!   `swapgs` nor a per-CPU segment can be wrong in an exception.
//! * [`tables`]: GDT, TSS and IDT of each CPU, every one on a page of its own.
//! * [`trap`]: from an IDT entry to a handler in Rust and back.
//! * [`sched`]: a cooperative scheduler; a parked task is one that is not ready.
//! * [`platform`]: the state machine's `Platform`, on all of that.
//! * [`sys`]: hypercall, MSRs that may be refused, memory that may never come.
//! * [`lapic`]: x2APIC, and the end of an interrupt without an exit.
//! * [`counters`]: what happened.
//!
//! There is no user mode, no allocation and no floating point; memory is mapped to itself. All code
//! runs on the stack that it interrupted, NMIs too: an NMI handler may then fault, and be
//! interrupted by the next NMI, which the `IRET` of that fault let through.
//!
//! A kernel calls, on each CPU: [`cpu::init`], [`lapic::init`], [`cpu::Cpu::enable`]; then it spawns tasks.
#![no_std]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub use ve_apf_abi as abi;

pub mod counters;
pub mod cpu;
pub mod lapic;
pub mod platform;
#[path = "../../../abi/kbuild/ring_ptr.rs"]
mod ring_ptr;
pub mod sched;
pub mod sys;
pub mod tables;
pub mod trap;
#[path = "../../../abi/kbuild/ve_info_ptr.rs"]
mod ve_info_ptr;
