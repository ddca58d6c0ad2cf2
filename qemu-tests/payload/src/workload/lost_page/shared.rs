//! What the tester and the process that it watches tell each other, in memory that both see.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Most frames that a site loses.
pub(super) const MAX_FRAMES: usize = 8;

/// How far the process is.
pub(super) mod stage {
    /// It did not get ready: `errno`.
    pub(crate) const FAILED: u32 = 1;
    /// The pages are there: `frames`, `at`.
    pub(crate) const READY: u32 = 2;
    /// It got a signal, and waits in its handler for the page: `signal` and what follows.
    pub(crate) const SIGNALLED: u32 = 3;
    /// The access is over: `done`, `errno`.
    pub(crate) const ACTED: u32 = 4;
    /// The second one too: `again_done`, `again_errno`, `wrong_bytes`.
    pub(crate) const CHECKED: u32 = 5;
}

/// What the process may do.
pub(super) mod order {
    /// The page is lost: touch it.
    pub(crate) const ACT: u32 = 1;
    /// It is back: touch it again.
    pub(crate) const CHECK: u32 = 2;
}

/// How an access ended.
pub(super) mod done {
    /// It did not.
    pub(crate) const NOT: u32 = 0;
    /// As if the page were there.
    pub(crate) const ALL: u32 = 1;
    /// A part of it was done.
    pub(crate) const PART: u32 = 2;
    /// With an errno.
    pub(crate) const ERROR: u32 = 3;
}

/// The shared memory; all zero at first.
#[repr(C)]
pub(super) struct Shared {
    pub(super) stage: AtomicU32,
    pub(super) order: AtomicU32,
    pub(super) count: AtomicU32,
    pub(super) frames: [AtomicU64; MAX_FRAMES],
    /// Address of the lost page.
    pub(super) at: AtomicU64,
    pub(super) done: AtomicU32,
    pub(super) errno: AtomicI32,
    pub(super) signal: AtomicI32,
    pub(super) code: AtomicI32,
    pub(super) signal_at: AtomicU64,
    pub(super) lsb: AtomicI32,
    pub(super) again_done: AtomicU32,
    pub(super) again_errno: AtomicI32,
    /// A signal although the page is back.
    pub(super) again_signal: AtomicI32,
    pub(super) again_code: AtomicI32,
    pub(super) wrong_bytes: AtomicU64,
}

impl Shared {
    /// New memory, which stays for good.
    pub(super) fn new() -> io::Result<&'static Shared> {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let len = size_of::<Shared>();
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped for `len` bytes and never unmapped; all zero is valid; atomics may change at any time.
        Ok(unsafe { &*at.cast::<Shared>() })
    }

    /// Waits, in the process, for an order.
    pub(super) fn wait_for(&self, order: u32) {
        while self.order.load(SeqCst) < order {
            // Safe in a signal handler: it is one system call.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
