//! A kernel for tests that need exact control of every instruction and page: which page is missing when, in which context
//! it is touched, and where an NMI comes in between.
//!
//! `ve-apf-vmm --bare` boots it. Its command line is words `KEY=VALUE`: `veapf.run=NAME[+NAME...]` (tests or groups of
//! [`tests::ALL`]), `ve-apf=injected|hardware`, and `veapf.KEY=VALUE` as each group's file lists. Each test prints one record,
//! by the VMM's test device. Exit code 0, 1 (a test failed), 2 (panic), 3 (no such test or mode).
//!
//! * [`suite`]: what a test is, and its record; [`tests`]: the tests, a file for each group.
//! * [`probe`]: takes a page away and touches one, with no other page in between.
//! * [`arena`], [`layout`]: memory that may be missing, and the kernel's own pages, by name.
//! * [`device`]: the VMM's test device; [`smp`]: the same work on every CPU.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(dead_code, unused_imports))]

mod arena;
mod device;
mod layout;
mod options;
mod probe;
mod smp;
mod start;
mod suite;
mod tests;
mod text;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a kernel: build it for x86_64-unknown-none and boot it with ve-apf-vmm --bare");
    std::process::exit(2);
}
