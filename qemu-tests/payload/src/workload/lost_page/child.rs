//! The process that touches the page: does as it is told, and reports every signal it gets for it.

use std::io;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};

use super::shared::{Shared, done, order, stage};
use super::site::{Acted, Make, Plan};

/// Exit code after a signal although the page is back.
const SIGNALLED_AGAIN: i32 = 3;

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

/// Body of the process; returns its exit code.
pub(super) fn body(shared: &'static Shared, make: Make) -> i32 {
    SHARED.store(std::ptr::from_ref(shared).cast_mut(), SeqCst);
    let plan = handle_signals().and_then(|()| make());
    let mut plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            shared.errno.store(error.raw_os_error().unwrap_or(-1), SeqCst);
            shared.stage.store(stage::FAILED, SeqCst);
            return 1;
        }
    };
    announce(shared, &plan);
    shared.wait_for(order::ACT);
    let (how, errno) = words((plan.act)());
    shared.done.store(how, SeqCst);
    shared.errno.store(errno, SeqCst);
    shared.stage.store(stage::ACTED, SeqCst);
    shared.wait_for(order::CHECK);
    let (how, errno) = words(again(shared, &mut plan));
    shared.again_errno.store(errno, SeqCst);
    shared.again_done.store(how, SeqCst);
    shared.stage.store(stage::CHECKED, SeqCst);
    0
}

fn announce(shared: &Shared, plan: &Plan) {
    for (to, frame) in shared.frames.iter().zip(&plan.frames) {
        to.store(*frame, SeqCst);
    }
    shared.at.store(plan.at as u64, SeqCst);
    shared.count.store(plan.frames.len().min(shared.frames.len()) as u32, SeqCst);
    shared.stage.store(stage::READY, SeqCst);
}

/// Once more, and the content.
fn again(shared: &Shared, plan: &mut Plan) -> Acted {
    let acted = (plan.act)();
    if acted != Acted::All {
        return acted;
    }
    match (plan.check)() {
        Ok(wrong) => {
            shared.wrong_bytes.store(wrong, SeqCst);
            Acted::All
        }
        Err(error) => Acted::Failed(error.raw_os_error().unwrap_or(-1)),
    }
}

fn words(acted: Acted) -> (u32, i32) {
    match acted {
        Acted::All => (done::ALL, 0),
        Acted::Part => (done::PART, 0),
        Acted::Failed(errno) => (done::ERROR, errno),
    }
}

fn handle_signals() -> io::Result<()> {
    // On a stack of its own where a site says so, but not what tells that it is lost.
    for (signal, stack) in [(libc::SIGBUS, libc::SA_ONSTACK), (libc::SIGSEGV, 0)] {
        // SAFETY: all zero is a valid sigaction, and the handler has the signature that SA_SIGINFO wants.
        let rc = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | stack;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reports the signal, waits until the page is back, and returns: the instruction executes again.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: set before the handler was, and the memory stays.
    let shared = unsafe { &*SHARED.load(SeqCst) };
    // SAFETY: the kernel passes a valid siginfo, of a signal that has an address; si_addr_lsb follows it.
    let (code, at, lsb) = unsafe {
        ((*info).si_code, (*info).si_addr() as u64, info.cast::<u8>().add(24).cast::<i16>().read())
    };
    if shared.order.load(SeqCst) >= order::CHECK {
        shared.again_code.store(code, SeqCst);
        shared.again_signal.store(signal, SeqCst);
        // SAFETY: safe in a signal handler, and ends the process.
        unsafe { libc::_exit(SIGNALLED_AGAIN) }
    }
    shared.code.store(code, SeqCst);
    shared.signal_at.store(at, SeqCst);
    shared.lsb.store(lsb.into(), SeqCst);
    shared.signal.store(signal, SeqCst);
    shared.stage.store(stage::SIGNALLED, SeqCst);
    shared.wait_for(order::CHECK);
}
