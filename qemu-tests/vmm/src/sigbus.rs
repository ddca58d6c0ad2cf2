//! SIGBUS: how Linux tells a process that memory of its own is poisoned.
//!
//! KVM sends it to the vCPU thread whose guest touched such a page, unless the guest is told. `MADV_HWPOISON` sends it
//! too, to who asked. Any other SIGBUS is an access of this program to a file that ended, which can not go on.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static MET: AtomicU64 = AtomicU64::new(0);
static INJECTED: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread is inside [`injecting`].
    static INJECTING: Cell<bool> = const { Cell::new(false) };
}

/// Signals so far. Who sends more than this to one process means an instruction that is tried for ever.
const LIMIT: u64 = 1000;

/// How many there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Somebody touched poisoned memory.
    pub met: u64,
    /// Memory was poisoned.
    pub injected: u64,
    /// Where, the last time.
    pub last_hva: u64,
}

/// Handles it from now on.
pub fn install() -> vmm_sys_util::errno::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGBUS, handle)
}

/// How many there were until now.
pub fn count() -> Count {
    let at = |n: &AtomicU64| n.load(Relaxed);
    Count { met: at(&MET), injected: at(&INJECTED), last_hva: at(&LAST) }
}

/// Runs `poison`, whose signals to this thread are its own.
pub fn injecting<T>(poison: impl FnOnce() -> T) -> T {
    INJECTING.set(true);
    let result = poison();
    INJECTING.set(false);
    result
}

extern "C" fn handle(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; one of a SIGBUS has an address.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr()) };
    if ![libc::BUS_MCEERR_AR, libc::BUS_MCEERR_AO].contains(&code) {
        give_up(b"ve-apf-vmm: SIGBUS: memory behind a file that ended\n");
    }
    LAST.store(at as u64, Relaxed);
    let counter = if INJECTING.get() { &INJECTED } else { &MET };
    if counter.fetch_add(1, Relaxed) >= LIMIT {
        give_up(b"ve-apf-vmm: SIGBUS: poisoned memory is touched again and again\n");
    }
}

fn give_up(message: &[u8]) -> ! {
    // SAFETY: both are safe in a signal handler; the message lives for ever.
    unsafe {
        libc::write(2, message.as_ptr().cast(), message.len());
        libc::_exit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(code: libc::c_int) {
        // SAFETY: siginfo is plain data; all zero is valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        info.si_signo = libc::SIGBUS;
        info.si_code = code;
        handle(libc::SIGBUS, &mut info, std::ptr::null_mut());
    }

    #[test]
    fn injected_ones_are_told_apart() {
        let before = count();
        injecting(|| send(libc::BUS_MCEERR_AR));
        assert_eq!((count().met, count().injected), (before.met, before.injected + 1));
        send(libc::BUS_MCEERR_AR);
        assert_eq!((count().met, count().injected), (before.met + 1, before.injected + 1));
    }
}
