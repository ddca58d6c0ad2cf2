//! A place where a lost page is touched.

use std::io;
use std::ops::Range;

use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

use crate::sys::{PAGE, Pages};

/// How an access ended that did end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acted {
    /// As if the page were there.
    All,
    /// A part of it was done.
    Part,
    /// With an errno.
    Failed(i32),
}

/// A site that is ready: pages there, and what to do with them.
pub(super) struct Plan {
    /// What to lose.
    pub(super) frames: Vec<u64>,
    /// Where the process has the page; 0 if it has not.
    pub(super) at: usize,
    /// The access.
    pub(super) act: Box<dyn FnMut() -> Acted>,
    /// Wrong bytes, once the access was possible.
    pub(super) check: Box<dyn FnMut() -> io::Result<u64>>,
}

/// Makes one, in the process that is going to touch the page.
pub(super) type Make = fn() -> io::Result<Plan>;

/// Pages with a pattern of their own.
#[derive(Clone)]
pub(super) struct Filled {
    pub(super) pages: Pages,
    pub(super) frames: Vec<u64>,
}

const ROUND: u64 = 0x10_57;

impl Filled {
    /// Private memory.
    pub(super) fn anonymous(count: usize) -> io::Result<Filled> {
        Filled::fill(Pages::anonymous(count)?)
    }

    /// These pages.
    pub(super) fn fill(pages: Pages) -> io::Result<Filled> {
        // A private page's frame is its own only once it was written.
        (0..pages.len()).for_each(|page| pages.write(page, 0, 0));
        let filled = Filled { frames: pages.frames()?, pages };
        for page in 0..filled.pages.len() {
            (0..PAGE_WORDS)
                .for_each(|word| filled.pages.write(page, word, filled.word(page, word)));
        }
        Ok(filled)
    }

    /// What was put there.
    pub(super) fn word(&self, page: usize, word: usize) -> u64 {
        pattern_word(pattern_base(self.frames[page], ROUND), word)
    }

    /// The whole page, as it was put there.
    pub(super) fn bytes(&self, page: usize) -> Vec<u8> {
        (0..PAGE_WORDS).flat_map(|word| self.word(page, word).to_ne_bytes()).collect()
    }

    /// Bytes of these words that are something else now.
    pub(super) fn wrong(&self, page: usize, words: Range<usize>) -> u64 {
        words.filter(|word| self.pages.read(page, *word) != self.word(page, *word)).count() as u64
            * 8
    }

    /// Address of a page.
    pub(super) fn at(&self, page: usize) -> *mut u8 {
        self.pages.page(page)
    }

    /// A plan that loses page `lost`, and finds all of it unchanged but for its first `changed` words.
    pub(super) fn plan(
        &self,
        lost: usize,
        changed: usize,
        act: impl FnMut() -> Acted + 'static,
    ) -> Plan {
        let filled = self.clone();
        Plan {
            frames: vec![self.frames[lost]],
            at: self.at(lost) as usize,
            act: Box::new(act),
            check: Box::new(move || Ok(filled.wrong(lost, changed..PAGE_WORDS))),
        }
    }
}

/// A system call's result, which is to be `whole`.
pub(super) fn result(n: i64, whole: usize) -> Acted {
    match usize::try_from(n) {
        Ok(n) if n == whole => Acted::All,
        Ok(_) => Acted::Part,
        Err(_) => failed(),
    }
}

/// The last system call's errno.
pub(super) fn failed() -> Acted {
    Acted::Failed(io::Error::last_os_error().raw_os_error().unwrap_or(-1))
}

/// Bytes of `copy` that are not `expected`.
pub(super) fn differences(copy: &[u8], expected: &[u8]) -> u64 {
    let missing = expected.len().saturating_sub(copy.len());
    (copy.iter().zip(expected).filter(|(a, b)| a != b).count() + missing) as u64
}

/// Runs `body` in a child; its wait status.
pub(super) fn in_child(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child runs `body`, which uses nothing that another thread could hold, and ends by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = body();
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: `status` lives through the call; the child is ours.
            if unsafe { libc::waitpid(child, &mut status, 0) } != child {
                return Err(io::Error::last_os_error());
            }
            Ok(status)
        }
    }
}

const _: () = assert!(PAGE == PAGE_WORDS * 8);
