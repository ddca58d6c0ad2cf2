//! Programs that run as `/init`: `l1-init` in the system that has KVM, `l2-init` in the guest that is tested.
//!
//! Results go out as `@ve-apf {json}` lines: from L1 on its console, from L2 through the VMM's test device.

pub mod arena;
pub mod client;
pub mod compute;
pub mod device;
pub mod dmesg;
pub mod fault_trace;
pub mod guest_counters;
pub mod kexec;
pub mod leaks;
pub mod options;
pub mod plan;
pub mod process;
pub mod section;
pub mod selftest;
pub mod sys;
pub mod system;
pub mod tally;
pub mod trace;
pub mod vmms;
pub mod workload;
