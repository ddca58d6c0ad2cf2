//! The file of a snapshot: one page of header, guest memory, and the rest of the state as JSON.
//!
//! | offset | what |
//! |---|---|
//! | 0 | "VEAPFSNP", version, bytes of memory, bytes of JSON: little-endian 64-bit words |
//! | 4096 | guest memory |
//! | after it | [`State`] |

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::State;
use super::memory::Pages;

const MAGIC: u64 = u64::from_le_bytes(*b"VEAPFSNP");
const VERSION: u64 = 1;
const HEADER: u64 = 4096;

/// An open one.
pub struct SnapshotFile {
    file: Arc<File>,
    path: PathBuf,
    memory_len: u64,
}

impl SnapshotFile {
    /// A new one without a name, for this much memory. A program that this one becomes by `exec` finds it at
    /// [`SnapshotFile::path`].
    pub fn create(memory_len: u64) -> Result<SnapshotFile> {
        // SAFETY: the name is NUL-terminated; no flags: the descriptor is to be inherited.
        let raw = unsafe { libc::memfd_create(c"ve-apf-snapshot".as_ptr(), 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error()).context("memfd_create");
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let file = unsafe { File::from_raw_fd(raw) };
        file.set_len(HEADER + memory_len).context("snapshot")?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(SnapshotFile { file: Arc::new(file), path, memory_len })
    }

    /// An existing one, and the state in it.
    pub fn open(path: &Path) -> Result<(SnapshotFile, State)> {
        let name = path.display();
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("cannot open {name}"))?;
        let mut header = [0; 32];
        file.read_exact_at(&mut header, 0).with_context(|| format!("{name}: no snapshot"))?;
        let word = |i: usize| {
            header[8 * i..8 * i + 8].iter().rev().fold(0, |word: u64, b| word << 8 | u64::from(*b))
        };
        let [magic, version, memory_len, json_len] = [0, 1, 2, 3].map(word);
        ensure!(magic == MAGIC, "{name}: no snapshot");
        ensure!(version == VERSION, "{name}: a snapshot of version {version}, not {VERSION}");
        let len = file.metadata().with_context(|| name.to_string())?.len();
        let expected = HEADER.checked_add(memory_len).and_then(|at| at.checked_add(json_len));
        ensure!(expected == Some(len), "{name}: a snapshot that is cut off");
        let mut json = vec![0; usize::try_from(json_len)?];
        file.read_exact_at(&mut json, HEADER + memory_len).with_context(|| name.to_string())?;
        let state =
            serde_json::from_slice(&json).with_context(|| format!("{name}: a damaged snapshot"))?;
        Ok((SnapshotFile { file: Arc::new(file), path: path.to_owned(), memory_len }, state))
    }

    /// Writes all but the memory, which [`SnapshotFile::pages`] takes.
    pub fn write(&self, state: &State) -> Result<()> {
        let json = serde_json::to_vec(state).context("snapshot")?;
        self.file.write_all_at(&json, HEADER + self.memory_len).context("snapshot")?;
        let len = json.len() as u64;
        self.file.set_len(HEADER + self.memory_len + len).context("snapshot")?;
        let header = [MAGIC, VERSION, self.memory_len, len].map(u64::to_le_bytes).concat();
        self.file.write_all_at(&header, 0).context("snapshot")
    }

    /// Guest memory in it.
    pub fn pages(&self) -> Pages {
        Pages::new(self.file.clone(), HEADER)
    }

    /// Where it can be opened again.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of guest memory.
    pub fn memory_len(&self) -> u64 {
        self.memory_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Ram;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn what_is_no_snapshot_is_refused() -> Result<()> {
        let header = |words: [u64; 4]| words.map(u64::to_le_bytes).concat();
        for (bytes, says) in [
            (Vec::new(), "no snapshot"),
            (vec![b'x'; 5000], "no snapshot"),
            (header([MAGIC, VERSION + 1, 0, 0]), "of version 2"),
            (header([MAGIC, VERSION, 4096, 0]), "cut off"),
            (header([MAGIC, VERSION, u64::MAX, 2]), "cut off"),
            (
                [header([MAGIC, VERSION, 0, 2]), vec![b'}'; HEADER as usize - 30]].concat(),
                "damaged",
            ),
        ] {
            let path = std::env::temp_dir().join(format!("ve-apf-snapshot-{}", std::process::id()));
            std::fs::write(&path, bytes)?;
            let error = SnapshotFile::open(&path).err().map(|e| format!("{e:#}"));
            std::fs::remove_file(&path)?;
            assert!(error.as_ref().is_some_and(|e| e.contains(says)), "{says}: {error:?}");
        }
        Ok(())
    }

    #[test]
    fn pages_come_back() -> Result<()> {
        let ram = Ram::new(2, 1, false)?;
        ram.mem.write_slice(&[7; 8192], GuestAddress(3 * 4096))?;
        let file = SnapshotFile::create(2 << 20)?;
        file.pages().save(&ram, 3..5)?;
        file.pages().put(4, &[9; 4096])?;
        for (gfn, byte) in [(2, 0), (3, 7), (4, 9), (5, 0)] {
            assert_eq!(file.pages().get(gfn)?, Box::new([byte; 4096]), "{gfn}");
        }
        assert!(file.pages().get(512).is_err());
        // As a program finds it that this one becomes.
        assert!(std::fs::metadata(file.path())?.len() == 4096 + (2 << 20));
        Ok(())
    }
}
