//! Futexes in a lost page. Some operations look at the page table, find nothing wrong there, and try again.

use std::io;
use std::ptr::null_mut;

use super::site::{Acted, Filled, Make, Plan, failed};
use crate::sys;

pub(super) const SITES: [(&str, Make); 5] = [
    ("futex_wait", wait),
    ("futex_wake_op", wake_op),
    ("futex_requeue", cmp_requeue),
    ("futex_lock_pi", lock_pi),
    ("robust_list", robust_list),
];

/// The system call on the lost page's first word, and on one that is there.
fn futex(
    lost_is_second: bool,
    operation: i32,
    value: u32,
    fourth: usize,
    value3: u32,
    expected: Option<i32>,
) -> io::Result<Plan> {
    let (page, other) = (Filled::anonymous(1)?, Filled::anonymous(1)?);
    page.pages.write(0, 0, 0);
    other.pages.write(0, 0, 0);
    let (lost, there) = (page.at(0), other.at(0));
    let (first, second) = if lost_is_second { (there, lost) } else { (lost, there) };
    Ok(page.plan(0, 1, move || {
        // SAFETY: both are words of pages of ours; no timeout is given where `fourth` is not a count.
        let n = unsafe {
            libc::syscall(libc::SYS_futex, first, operation, value, fourth, second, value3)
        };
        match (n, expected) {
            (-1, Some(errno)) if failed() == Acted::Failed(errno) => Acted::All,
            (-1, _) => failed(),
            (_, None) => Acted::All,
            _ => Acted::Part,
        }
    }))
}

/// The word does not hold the value: EAGAIN.
fn wait() -> io::Result<Plan> {
    futex(false, libc::FUTEX_WAIT, 1, 0, 0, Some(libc::EAGAIN))
}

/// The second word is set to 0 if it is 0.
fn wake_op() -> io::Result<Plan> {
    futex(true, libc::FUTEX_WAKE_OP, 1, 1, 0, None)
}

fn cmp_requeue() -> io::Result<Plan> {
    futex(false, libc::FUTEX_CMP_REQUEUE, 1, 1, 0, None)
}

/// Taken; the next time it is ours already.
fn lock_pi() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let at = page.pages;
    at.write(0, 0, 0);
    Ok(page.plan(0, 1, move || {
        let operate = |operation: i32| {
            // SAFETY: a word of a page of ours; no timeout.
            unsafe { libc::syscall(libc::SYS_futex, at.page(0), operation, 0, null_mut::<u8>()) }
        };
        match operate(libc::FUTEX_LOCK_PI) {
            0 => {}
            _ => return failed(),
        }
        match operate(libc::FUTEX_UNLOCK_PI) {
            0 => Acted::All,
            _ => failed(),
        }
    }))
}

/// struct robust_list_head, and the only entry, whose futex is in the lost page.
#[repr(C)]
struct Robust {
    next: *mut Robust,
    offset: isize,
    pending: *mut Robust,
    entry: *mut Robust,
}

extern "C" fn exit_with_list(list: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `list` is a Robust that outlives this thread; the thread ends here, and only it.
    unsafe {
        let robust = list.cast::<Robust>();
        let word = (&raw mut (*robust).entry).byte_offset((*robust).offset).cast::<u32>();
        // Held by this thread, if its page can be had: a lost one is left as it is.
        if std::ptr::read_volatile(&raw const (*robust).pending).is_null() {
            word.write_volatile(sys::gettid().cast_unsigned());
        }
        (*robust).pending = null_mut();
        libc::syscall(libc::SYS_set_robust_list, robust, 24usize);
        libc::syscall(libc::SYS_exit, 0);
    }
    list
}

/// A thread ends that holds a robust futex: the kernel marks the futex, or can not.
fn robust_list() -> io::Result<Plan> {
    const OWNER_DIED: u64 = 0x4000_0000;
    let page = Filled::anonymous(1)?;
    let pages = page.pages;
    pages.write(0, 0, 0);
    let mut lost = true;
    let mut plan = page.plan(0, 1, move || {
        let list = Box::leak(Box::new(Robust {
            next: null_mut(),
            offset: 0,
            // Says that the page is lost.
            pending: null_mut(),
            entry: null_mut(),
        }));
        let list = std::ptr::from_mut(list);
        // SAFETY: the list is leaked, so it stays; only this thread and the one below use it, one after the other.
        unsafe {
            (*list).next = (&raw mut (*list).entry).cast();
            (*list).entry = list;
            (*list).offset = pages.page(0) as isize - (&raw mut (*list).entry) as isize;
            if lost {
                (*list).pending = list;
            }
        }
        lost = false;
        let mut thread = 0;
        // SAFETY: the function ends only its own thread, and the list outlives it.
        let rc = unsafe {
            libc::pthread_create(&mut thread, std::ptr::null(), exit_with_list, list.cast())
        };
        if rc != 0 {
            return Acted::Failed(rc);
        }
        // SAFETY: the thread was just made; the kernel says when it is gone.
        match unsafe { libc::pthread_join(thread, null_mut()) } {
            0 => Acted::All,
            errno => Acted::Failed(errno),
        }
    });
    let checked = page.clone();
    plan.check = Box::new(move || {
        let marked = pages.read(0, 0) & OWNER_DIED != 0;
        Ok(checked.wrong(0, 1..512) + if marked { 0 } else { 4 })
    });
    Ok(plan)
}
