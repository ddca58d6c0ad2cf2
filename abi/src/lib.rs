//! ABI v1 (draft) of ve-apf: asynchronous page faults delivered as #VE.
//!
//! This crate holds layouts, numbers and flags, and nothing that acts. The guest, KVM's side and
//! every test take them from here; C takes them from `include/ve_apf_abi.h`, which a test
//! generates from this crate. Everything is little endian and naturally aligned.
//!
//! * [`msr`]: how a guest switches it on.
//! * [`hypercall`]: what a guest may ask.
//! * [`ring`]: the page a vCPU shares with its host.
//! * [`access`]: the operations on it, as a trait.
//! * [`word`]: the state word of a slot, and who may change it to what.
//! * [`ve_info`]: the page the CPU itself writes in hardware mode.
//! * [`vm`]: what a VMM may set.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod access;
pub mod hypercall;
pub mod msr;
pub mod ring;
pub mod ve_info;
pub mod vm;
pub mod word;
