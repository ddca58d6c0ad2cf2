//! The host's side of ve-apf, as an engine without a hypervisor.
//!
//! A vCPU exits on a missing page; [`fault`] takes a slot, joins or starts a work and injects #VE.
//! A thread of the VM resolves the page and calls [`works::Works::finish`]; back on the vCPU's
//! thread [`complete`] maps the page, writes the outcome and injects one interrupt for the batch.
//! A vCPU whose guest cannot be told waits by [`stop`]. [`submit`] answers the hypercall, [`sweep`]
//! ends everything at restore and disable. In hardware mode the CPU raises #VE in the memory of
//! [`ranges`], and the slot comes with the hypercall, or is found in the ring by a thread that
//! [`poll`]s.
//!
//! What a hypervisor must supply are the traits of [`platform`]. Locks: one per VM, around
//! [`works::Works`]; all else belongs to the vCPU's own thread, which alone writes its ring, a flag
//! apart that a poller clears.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

pub mod complete;
pub mod fault;
pub mod platform;
pub mod poll;
pub mod ranges;
pub mod stop;
pub mod submit;
pub mod sweep;
pub mod vcpu;
pub mod works;
