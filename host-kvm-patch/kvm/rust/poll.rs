//! What KVM calls to poll; see `exports`.

use crate::exports::{completed, this};
use crate::platform::PolledVcpu;
use crate::sys::{self, Completed, KvmVcpu};
use host::poll::{self, Looked, Poll, Seen};

/// Bytes of what a vCPU's thread and its poller share.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_poll_size() -> usize {
    size_of::<Poll>()
}

/// Bytes of what the poller remembers of a vCPU.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_seen_size() -> usize {
    size_of::<Seen>()
}

/// The guest need not ring any more; `false` if it must.
///
/// # Safety
/// As [`ThisVcpu::new`](crate::platform::ThisVcpu::new), with the lock held that the poller looks under.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_poll_start(v: *mut KvmVcpu) -> bool {
    // SAFETY: the caller's promise; a vCPU's thread is inside `kvm->srcu`.
    let ((_, vm, state), polled) = unsafe { (this(v), PolledVcpu::new(v)) };
    poll::start(&polled, state, &vm)
}

/// Looks for submissions; `last`: and the guest rings again.
///
/// # Safety
/// As [`PolledVcpu::new`], with the lock held that [`ve_apf_host_poll_start`] is called under.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_poll_look(v: *mut KvmVcpu, last: bool, took: *mut u32) -> u32 {
    // SAFETY: the caller's promise.
    let polled = unsafe { PolledVcpu::new(v) };
    // SAFETY: KVM allocated it zeroed, a valid value; the lock makes this reference the only one.
    let seen = unsafe { &mut *sys::ve_apf_vcpu_seen(v).cast::<Seen>() };
    let looked = match last {
        true => poll::quit(&polled, seen, &polled.vm()),
        false => poll::look(&polled, seen, &polled.vm()),
    };
    match looked {
        Looked::Nothing => sys::LOOK_NOTHING,
        Looked::Took(count) => {
            // SAFETY: the caller's pointer is valid for writes.
            unsafe { took.write(count) };
            sys::LOOK_TOOK
        }
        Looked::Left => sys::LOOK_LEFT,
    }
}

/// The vCPU's thread ends the polling; -1 if the guest broke its ring.
///
/// # Safety
/// As [`ThisVcpu::new`](crate::platform::ThisVcpu::new); the poller does not look any more.
/// `result` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_poll_stop(v: *mut KvmVcpu, result: *mut Completed) -> i32 {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    // SAFETY: the caller's promise.
    unsafe { completed(&vcpu, poll::stop(&vcpu, state, &vm), result) }
}
