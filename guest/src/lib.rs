//! The guest's side of ve-apf, as a state machine without a kernel.
//!
//! A missing page raises #VE; [`handle::handle_ve`] parks the task, or suspends the vCPU where it
//! may not sleep; [`complete`] wakes tasks when the host is done. Everything that a kernel must
//! supply is a method of [`platform::Platform`], everything shared with the host goes through
//! [`RingAccess`](ve_apf_abi::access::RingAccess). So the same code runs in Linux, on bare metal
//! and in an exhaustive interleaving test.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod complete;
pub mod handle;
pub mod platform;
pub mod waiters;
