//! What an evicted page holds when it comes back.

use anyhow::Result;
use ve_apf_testdev::{PAGE_SIZE, pattern_base, pattern_word};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::Ram;

/// Content of a missing page.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// The pattern of this round.
    Pattern(u64),
    /// What it held, or a pattern that was made.
    Saved(Box<[u8; PAGE_SIZE]>),
}

impl Content {
    /// What the page holds now.
    pub(super) fn save(ram: &Ram, gfn: u64) -> Result<Content> {
        let mut bytes = Box::new([0; PAGE_SIZE]);
        ram.mem.read_slice(&mut bytes[..], GuestAddress(gfn * PAGE_SIZE as u64))?;
        Ok(Content::Saved(bytes))
    }

    /// Somebody waits: a pager has the page before it is due.
    pub(super) fn prepare(&mut self, gfn: u64) {
        if let Content::Pattern(round) = *self {
            *self = Content::Saved(Content::Pattern(round).bytes(gfn));
        }
    }

    /// The page to deliver.
    pub(super) fn bytes(self, gfn: u64) -> Box<[u8; PAGE_SIZE]> {
        match self {
            Content::Saved(bytes) => bytes,
            Content::Pattern(round) => {
                let mut bytes = Box::new([0; PAGE_SIZE]);
                let base = pattern_base(gfn, round);
                for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&pattern_word(base, i).to_le_bytes());
                }
                bytes
            }
        }
    }
}
