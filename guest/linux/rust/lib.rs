//! t
#![no_std]
use ve_apf_abi as abi;
mod ring_ptr;
use ring_ptr::RingPtr;
use abi::access::{RingAccess, Bitmap};
use core::ptr::NonNull;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }
/// t
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_test(p: NonNull<u8>) -> u64 {
    let r = unsafe { RingPtr::new(p) };
    for s in abi::ring::each_slot(r.take_bits(Bitmap::Completed)) { if r.word(s).state().is_outcome() { return 1 } }
    r.bits(Bitmap::Active)
}
