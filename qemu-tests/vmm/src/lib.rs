//! A small VMM for tests: boots Linux with 1 to 8 vCPUs, takes guest pages away on the guest's request and delivers
//! them again when a policy says so.
//!
//! Data path of a missing page: [`testdev`] evicts it (`MADV_DONTNEED`); KVM's next look at it meets userfaultfd;
//! the [`pager`] thread reads the request, asks its policy table when to answer, and copies the page in at that time.

pub mod acpi;
pub mod args;
pub mod bare;
pub mod boot;
pub mod bus;
pub mod counters;
pub mod cpuid;
pub mod end;
pub mod machine;
pub mod mark;
pub mod memory;
pub mod mmu;
pub mod nmi;
pub mod pager;
pub mod report;
pub mod reset;
pub mod serial;
pub mod sigbus;
pub mod snapshot;
pub mod stats;
pub mod sys;
pub mod testdev;
pub mod trace;
pub mod uffd;
pub mod vcpu;
pub mod vm_cap;
