//! System calls whose argument is in a lost page.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};

use super::site::{Acted, Filled, Make, Plan, failed, result};
use crate::sys::PAGE;

pub(super) const SITES: [(&str, Make); 10] = [
    ("read", read),
    ("read_part", read_part),
    ("write", write),
    ("write_part", write_part),
    ("get_user", get_user),
    ("put_user", put_user),
    ("copy_from_user", copy_from_user),
    ("copy_to_user", copy_to_user),
    ("string", string),
    ("signal_stack", signal_stack),
];

/// Of zeroes, one page longer than any call reads.
fn zeroes() -> io::Result<i32> {
    let path = format!("/tmp/zeroes{}", std::process::id());
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(4 * PAGE as u64)?;
    Ok(file.into_raw_fd())
}

fn read() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let (fd, at) = (zeroes()?, page.pages);
    Ok(page.plan(0, 1, move || {
        // SAFETY: eight bytes of a page of ours.
        result(unsafe { libc::pread(fd, at.page(0).cast(), 8, 0) } as i64, 8)
    }))
}

/// Into two pages, of which the second is lost.
fn read_part() -> io::Result<Plan> {
    let pages = Filled::anonymous(2)?;
    let (fd, at) = (zeroes()?, pages.pages);
    Ok(pages.plan(1, 1, move || {
        // SAFETY: a page and eight bytes of two pages of ours.
        result(unsafe { libc::pread(fd, at.page(0).cast(), PAGE + 8, 0) } as i64, PAGE + 8)
    }))
}

/// From `count` pages, the last of which is lost.
fn write_from(count: usize) -> io::Result<Plan> {
    let pages = Filled::anonymous(count)?;
    let at = pages.pages;
    let len = (count - 1) * PAGE + 8;
    Ok(pages.plan(count - 1, 0, move || {
        let Ok((reader, writer)) = io::pipe() else { return failed() };
        // SAFETY: that many bytes of pages of ours.
        let n = unsafe { libc::write(writer.as_raw_fd(), at.page(0).cast(), len) };
        let acted = result(n as i64, len);
        drop(reader);
        acted
    }))
}

fn write() -> io::Result<Plan> {
    write_from(1)
}

fn write_part() -> io::Result<Plan> {
    write_from(2)
}

fn ioctl(request: libc::c_ulong, changed: usize) -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let (reader, writer) = io::pipe()?;
    let (fd, at) = (reader.as_raw_fd(), page.pages);
    let ends = (reader, writer);
    Ok(page.plan(0, changed, move || {
        let _open = &ends;
        // SAFETY: the kernel reads or writes an int there.
        match unsafe { libc::ioctl(fd, request as _, at.page(0)) } {
            0 => Acted::All,
            _ => failed(),
        }
    }))
}

fn get_user() -> io::Result<Plan> {
    ioctl(libc::FIONBIO as libc::c_ulong, 0)
}

fn put_user() -> io::Result<Plan> {
    ioctl(libc::FIONREAD as libc::c_ulong, 1)
}

/// poll() of descriptors that it ignores: 256 structures.
fn copy_from_user() -> io::Result<Plan> {
    const COUNT: usize = 256;
    let page = Filled::anonymous(1)?;
    let at = page.pages;
    (0..COUNT).for_each(|i| at.write(0, i, u64::from(u32::MAX)));
    Ok(page.plan(0, COUNT, move || {
        // SAFETY: that many pollfds of a page of ours, each with descriptor -1.
        result(unsafe { libc::poll(at.page(0).cast(), COUNT as _, 0) }.into(), 0)
    }))
}

fn copy_to_user() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let at = page.pages;
    Ok(page.plan(0, 2, move || {
        // Not libc's function, which asks the vDSO.
        // SAFETY: a timespec fits into a page of ours.
        let n =
            unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, at.page(0)) };
        result(n, 0)
    }))
}

fn string() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    // "/proc", and its end.
    page.pages.write(0, 0, u64::from_le_bytes(*b"/proc\0\0\0"));
    let at = page.pages;
    Ok(page.plan(0, 1, move || {
        // SAFETY: a C string in a page of ours.
        result(unsafe { libc::access(at.page(0).cast(), libc::F_OK) }.into(), 0)
    }))
}

/// A signal whose handler's stack is lost: nothing can be delivered there.
fn signal_stack() -> io::Result<Plan> {
    extern "C" fn nothing(_: i32) {}
    const PAGES: usize = 4;
    let stack = Filled::anonymous(PAGES)?;
    let alternate = libc::stack_t { ss_sp: stack.at(0).cast(), ss_flags: 0, ss_size: PAGES * PAGE };
    // SAFETY: the stack is ours and stays; all zero is a valid sigaction.
    let rc = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaltstack(&alternate, std::ptr::null_mut())
            | libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut plan = stack.plan(PAGES - 1, 0, || {
        // SAFETY: takes a plain integer.
        result(unsafe { libc::raise(libc::SIGUSR1) }.into(), 0)
    });
    plan.frames = stack.frames.clone();
    // The handler ran on these pages.
    plan.check = Box::new(|| Ok(0));
    Ok(plan)
}
