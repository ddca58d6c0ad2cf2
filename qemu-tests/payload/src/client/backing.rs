//! The file behind L2's persistent memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Debian's.
const MKE2FS: &str = "/sbin/mke2fs";

/// A file with an ext4 on it, all of whose metadata is at its beginning.
pub(super) struct Backing {
    file: File,
    len: u64,
    /// What the last cut took.
    lost: Option<(u64, Vec<u8>)>,
}

impl Backing {
    /// Makes it. One block group, no journal, and nothing left to be initialised later.
    pub(super) fn create(path: &str, mib: u64) -> Result<Backing> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let len = mib << 20;
        file.set_len(len)?;
        let status = Command::new(MKE2FS)
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "16", "-m", "0"])
            .args(["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=0,nodiscard", path])
            .status()
            .context(MKE2FS)?;
        ensure!(status.success(), "{MKE2FS}: {status}");
        Ok(Backing { file, len, lost: None })
    }

    /// Truncates it; what was there is remembered.
    pub(super) fn cut(&mut self, at: u64) -> Result<()> {
        ensure!(at < self.len, "cut at {at} of {}", self.len);
        if self.lost.is_some() {
            bail!("cut twice");
        }
        let mut bytes = vec![0; usize::try_from(self.len - at)?];
        self.file.read_exact_at(&mut bytes, at)?;
        self.file.set_len(at)?;
        self.lost = Some((at, bytes));
        Ok(())
    }

    /// Makes it what it was. The file grows as it is written: nobody sees a page of zeros.
    pub(super) fn restore(&mut self) -> Result<()> {
        let (at, bytes) = self.lost.take().context("nothing to restore")?;
        self.file.write_all_at(&bytes, at)?;
        ensure!(self.file.metadata()?.len() == self.len, "not as long as it was");
        Ok(())
    }
}
