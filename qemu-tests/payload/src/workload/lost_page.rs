//! Pages that can never come: the host says so at once, when the fault is handed to it. A process that touches one dies of
//! SIGBUS with the address, and when the page is back, it holds what it held. A system call fails with EFAULT; the kernel
//! gives up that page for good.
//!
//! Options: `rounds`.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::Result;
use serde_json::json;
use ve_apf_testdev::{PAGE_WORDS, PolicyArgs};

use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys::PAGE;
use crate::tally::{From, Tally};

/// `lost_page`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let rounds = options.number("rounds", 3)?;
    let arena = Arena::anonymous(device, 2)?;
    let mut slices = arena.slices(2);
    let (for_good, slice) = (slices.remove(1), slices.remove(0));
    device.set_policy(&[], PolicyArgs::fixed(1000))?;
    let section = Section::begin(device, options, name)?;
    let mut tally = Tally::default();
    let mut sigbus = 0;
    for round in 0..rounds {
        device.evict(slice.frames(), round)?;
        let touch = || slice.wrong_bytes(0, round, 0..PAGE_WORDS);
        let wrong = tally.touch(From::User, touch);
        tally.wrong_bytes += wrong;
        device.set_lost(slice.frames(), true)?;
        sigbus += u64::from(dies_of_sigbus(&slice)?);
        device.set_lost(slice.frames(), false)?;
        tally.wrong_bytes += slice.wrong_bytes(0, round, 0..PAGE_WORDS);
    }
    device.set_lost(for_good.frames(), true)?;
    let efault = tally.touch(From::Kernel, || write_fails(&for_good))?;
    let measured = section.end()?;
    let more = json!({"rounds": rounds, "sigbus": sigbus, "efault": efault});
    measured.report(device, name, 1, 0, &tally, more);
    Ok(())
}

/// A child touches the page; it must die of SIGBUS, and its handler must see the page's address.
fn dies_of_sigbus(slice: &Slice) -> io::Result<bool> {
    // SAFETY: the child makes only system calls that are safe after fork(), reads memory, and ends by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            WANTED.store(slice.page(0) as usize, Relaxed);
            // SAFETY: all zero is a valid sigaction, and the handler has the signature that SA_SIGINFO wants.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_sigbus as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            }
            slice.read(0, 0);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(1) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` lives through the call; the child is ours.
            if unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return Err(io::Error::last_os_error());
            }
            Ok(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == SEEN)
        }
    }
}

const SEEN: i32 = 42;
static WANTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, of a SIGBUS, which has an address.
    let at = unsafe { (*info).si_addr() } as usize;
    let wanted = WANTED.load(Relaxed);
    // SAFETY: safe in a signal handler, and ends the process.
    unsafe { libc::_exit(if at / PAGE == wanted / PAGE { SEEN } else { 2 }) }
}

/// write() from the page: the copy fails, and says so.
fn write_fails(slice: &Slice) -> io::Result<bool> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel reads the mapping, or fails to.
    let rc = unsafe { libc::write(ends[1], slice.page(0).cast(), 8) };
    let failed = rc == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
    for end in ends {
        // SAFETY: ours, and not used again.
        unsafe { libc::close(end) };
    }
    Ok(failed)
}
