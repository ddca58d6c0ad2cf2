//! Guest memory in a file: page `gfn` at a fixed place, whatever was written there last.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::Ram;

const PAGE: u64 = 4096;

/// Pages of a snapshot's file.
#[derive(Clone)]
pub struct Pages {
    file: Arc<File>,
    start: u64,
}

impl Pages {
    /// Page 0 lies at `start`.
    pub fn new(file: Arc<File>, start: u64) -> Pages {
        Pages { file, start }
    }

    /// Copies what these frames of guest memory hold.
    pub fn save(&self, ram: &Ram, frames: Range<u64>) -> Result<()> {
        let mut file = &*self.file;
        file.seek(SeekFrom::Start(self.start + frames.start * PAGE)).context("snapshot")?;
        let len = usize::try_from((frames.end - frames.start) * PAGE)?;
        ram.mem
            .write_all_volatile_to(GuestAddress(frames.start * PAGE), &mut file, len)
            .with_context(|| format!("cannot save guest frames {frames:#x?}"))
    }

    /// Sets one page.
    pub fn put(&self, gfn: u64, bytes: &[u8; PAGE as usize]) -> Result<()> {
        self.file.write_all_at(bytes, self.start + gfn * PAGE).context("cannot save a page")
    }

    /// One page.
    pub fn get(&self, gfn: u64) -> Result<Box<[u8; PAGE as usize]>> {
        let mut bytes = Box::new([0; PAGE as usize]);
        self.file
            .read_exact_at(&mut bytes[..], self.start + gfn * PAGE)
            .context("cannot read a page of the snapshot")?;
        Ok(bytes)
    }
}
