//! ve-apf's host engine as an object for KVM.
//!
//! `sys` declares what `arch/x86/kvm/ve_apf/ffi.h` does, `platform` implements the engine's traits
//! on it, `exports` and `poll` are what KVM calls.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

extern crate ve_apf_abi as abi;
extern crate ve_apf_host as host;

mod exports;
mod platform;
mod poll;
mod ranges;
mod ring_ptr;
mod sys;

/// The engine has no reachable panic; the linker would say so if it had, since KVM defines no
/// such function.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: takes nothing and does not return.
    unsafe { sys::ve_apf_panic() }
}
