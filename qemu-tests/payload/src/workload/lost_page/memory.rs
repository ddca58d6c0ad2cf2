//! What the kernel does with a lost page for its own reasons: copy it on write, hold it in a pipe.

use std::io;
use std::os::fd::AsRawFd;

use super::site::{Acted, Filled, Make, Plan, failed, in_child, result};
use crate::sys::PAGE;

pub(super) const SITES: [(&str, Make); 2] = [("fork_cow", fork_cow), ("vmsplice", vmsplice)];

/// A child writes to its copy, which the kernel has to make first.
fn fork_cow() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let pages = page.pages;
    Ok(page.plan(0, 0, move || {
        let status = in_child(|| {
            pages.write(0, 0, 1);
            0
        });
        match status {
            Ok(0) => Acted::All,
            Ok(status) if libc::WIFSIGNALED(status) => Acted::Failed(128 + libc::WTERMSIG(status)),
            Ok(_) => Acted::Part,
            Err(_) => failed(),
        }
    }))
}

/// The pipe holds the page, and is read.
fn vmsplice() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let at = page.pages;
    Ok(page.plan(0, 0, move || {
        let Ok((reader, writer)) = io::pipe() else { return failed() };
        let part = libc::iovec { iov_base: at.page(0).cast(), iov_len: PAGE };
        // SAFETY: a page of ours, which stays as it is.
        let n = unsafe { libc::vmsplice(writer.as_raw_fd(), &part, 1, 0) };
        if n != PAGE as isize {
            return result(n as i64, PAGE);
        }
        let mut copy = vec![0u8; PAGE];
        // SAFETY: `copy` has PAGE bytes.
        let n = unsafe { libc::read(reader.as_raw_fd(), copy.as_mut_ptr().cast(), PAGE) };
        result(n as i64, PAGE)
    }))
}
