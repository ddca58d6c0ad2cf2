//! FUTEX_WAIT on a word of a missing page, which does not hold the value: the kernel reads it, and says so.
//!
//! The look that counts is with page faults disabled, where nobody may sleep: by then the task has waited for the page.
//! Options: `tasks`, `pages` (of each task), `rounds`.

use std::io;
use std::ptr::null;

use anyhow::Result;
use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

use super::kernel_io::go;
use crate::device::Device;
use crate::options::Options;
use crate::tally::From;

/// `futex_wait`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    go(name, options, device, "futex", |_, slice, index, round, tally| {
        let there = pattern_word(pattern_base(slice.frames()[index], round), 0);
        let other = !u32::try_from(there & u64::from(u32::MAX)).unwrap_or(0);
        let (word, wait) = (slice.page(index), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
        let forever = null::<libc::timespec>();
        let errno = tally.touch(From::Kernel, || {
            // SAFETY: a word of a mapped page that the kernel only reads; no timeout.
            match unsafe { libc::syscall(libc::SYS_futex, word, wait, other, forever) } {
                -1 => io::Error::last_os_error().raw_os_error(),
                _ => None,
            }
        });
        tally.wrong_bytes += slice.wrong_bytes(index, round, 0..PAGE_WORDS);
        match errno {
            Some(libc::EAGAIN) => Ok(()),
            other => Err(io::Error::other(format!("FUTEX_WAIT: errno {other:?}"))),
        }
    })
}
