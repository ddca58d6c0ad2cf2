use std::sync::Arc;

use ve_apf_testdev::PolicyArgs;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::Ram;
use crate::pager::PagerThread;

const GFN: u64 = 5;
const RUN: [Run; 1] = [Run { first: GFN, count: 1 }];

struct Lab {
    ram: Arc<Ram>,
    pager: Arc<Pager>,
    thread: PagerThread,
}

/// Guest memory without a guest, with one page that holds 0x5a; where this system allows it.
fn lab() -> Option<Lab> {
    let ram = Arc::new(Ram::new(2, 1, false).unwrap());
    let pager = match Pager::new(ram.clone(), (0, 0), 0) {
        Ok(pager) => Arc::new(pager),
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return None;
        }
    };
    pager.register().unwrap();
    ram.mem.write_slice(&[0x5a; PAGE_SIZE], GuestAddress(GFN * 4096)).unwrap();
    let thread = PagerThread::new(pager.clone(), false);
    thread.start().unwrap();
    Some(Lab { ram, pager, thread })
}

impl Lab {
    /// The frame's first byte as the kernel finds it by get_user_pages(), which is KVM's way.
    fn look(&self) -> Result<u8, i32> {
        let mut byte = 0u8;
        let iov = |base: *mut libc::c_void| libc::iovec { iov_base: base, iov_len: 1 };
        let to = iov((&raw mut byte).cast());
        let from = iov(self.ram.hva(GFN).unwrap() as *mut libc::c_void);
        // SAFETY: `to` is one byte of ours; the kernel checks the other side.
        let n = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
        if n == 1 { Ok(byte) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
    }

    fn wait_for_request(&self, before: u64) {
        while self.pager.state().faults == before {
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_was_there_comes_back() {
    let Some(lab) = lab() else { return };
    for how in [Loss::NoAccess, Loss::Truncated, Loss::UffdPoison] {
        // Lost once more each, without coming back in between; present, then missing.
        for missing in [false, true] {
            if missing {
                lab.pager.evict(&RUN, None).unwrap();
            }
            lab.pager.lose(&RUN, how).unwrap();
            assert_eq!(lab.look(), Err(libc::EFAULT), "{how:?}, missing: {missing}");
            assert!(lab.pager.evict(&RUN, None).is_err(), "{how:?}: a lost page is evicted");
            lab.pager.lose(&RUN, how).unwrap();
            lab.pager.lose(&RUN, Loss::Back).unwrap();
            assert_eq!(lab.look(), Ok(0x5a), "{how:?}, missing: {missing}");
        }
    }
    lab.pager.finish().unwrap();
}

#[test]
fn one_loss_after_the_other() {
    let Some(lab) = lab() else { return };
    let all = [Loss::Truncated, Loss::UffdPoison, Loss::NoAccess, Loss::Truncated, Loss::NoAccess];
    for how in all {
        lab.pager.lose(&RUN, how).unwrap();
        assert_eq!(lab.look(), Err(libc::EFAULT), "{how:?}");
    }
    lab.pager.lose(&RUN, Loss::Back).unwrap();
    assert_eq!(lab.look(), Ok(0x5a));
    lab.pager.finish().unwrap();
}

#[test]
fn who_waits_is_told() {
    let Some(lab) = lab() else { return };
    lab.pager.policies.set(&[], PolicyArgs { never: true, ..PolicyArgs::fixed(0) });
    for how in [Loss::Truncated, Loss::UffdPoison] {
        let before = lab.pager.state().faults;
        lab.pager.evict(&RUN, None).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| lab.look());
            lab.wait_for_request(before);
            lab.pager.lose(&RUN, how).unwrap();
            assert_eq!(waiter.join().unwrap(), Err(libc::EFAULT), "{how:?}");
        });
        lab.pager.lose(&RUN, Loss::Back).unwrap();
        assert_eq!(lab.look(), Ok(0x5a), "{how:?}");
    }
    lab.pager.finish().unwrap();
}

#[test]
fn a_new_pager_serves_what_the_dead_one_had_read() {
    let Some(lab) = lab() else { return };
    lab.pager.policies.set(&[], PolicyArgs::fixed(1_500_000));
    let before = lab.pager.state().faults;
    lab.pager.evict(&RUN, None).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lab.look());
        lab.wait_for_request(before);
        lab.thread.stop().unwrap();
        lab.thread.stop().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1600));
        assert_eq!(lab.pager.state().pending, 1);
        assert!(!waiter.is_finished());
        lab.thread.start().unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(0x5a));
    });
    // One that came while there was no pager.
    lab.thread.stop().unwrap();
    lab.pager.evict(&RUN, None).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lab.look());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiter.is_finished());
        lab.thread.start().unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(0x5a));
    });
    lab.pager.finish().unwrap();
}

#[test]
fn nobody_is_left_waiting() {
    let Some(lab) = lab() else { return };
    lab.thread.stop().unwrap();
    lab.pager.evict(&RUN, None).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| lab.look());
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiter.is_finished());
        lab.pager.finish().unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(0x5a));
    });
}
