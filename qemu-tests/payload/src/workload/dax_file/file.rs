//! A file with known content, and where on its device it is.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::sys::PAGE;

const WORDS: usize = PAGE / 8;

/// What word `word` of page `page` holds.
pub(super) fn content(page: usize, word: usize) -> u64 {
    let x = ((page as u64) << 32 | word as u64) ^ 0x00da_f11e_5eed_c0de;
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// One page of it.
pub(super) fn page_content(page: usize) -> Vec<u8> {
    (0..WORDS).flat_map(|word| content(page, word).to_le_bytes()).collect()
}

/// An open file, mapped for reading and writing.
pub(super) struct DaxFile {
    pub(super) file: File,
    pub(super) pages: usize,
    start: usize,
}

impl DaxFile {
    /// Creates and fills it; fails where the file system has it in the page cache.
    pub(super) fn create(path: &str, pages: usize) -> Result<DaxFile> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let bytes: Vec<u8> = (0..pages).flat_map(page_content).collect();
        file.write_all_at(&bytes, 0).context(path.to_owned())?;
        file.sync_all()?;
        ensure!(is_dax(&file)?, "{path}: not DAX");
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            let (shared, fd) = (libc::MAP_SHARED, file.as_raw_fd());
            libc::mmap(std::ptr::null_mut(), pages * PAGE, prot, shared, fd, 0)
        };
        ensure!(start != libc::MAP_FAILED, "{path}: {}", std::io::Error::last_os_error());
        Ok(DaxFile { file, pages, start: start as usize })
    }

    /// Where a word is mapped.
    pub(super) fn at(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < WORDS, "page {page}, word {word}");
        (self.start + page * PAGE + word * 8) as *mut u64
    }

    /// Reads a word through the mapping.
    pub(super) fn load(&self, page: usize, word: usize) -> u64 {
        // SAFETY: inside the mapping (checked), aligned, and the mapping is never removed.
        unsafe { self.at(page, word).read_volatile() }
    }

    /// Writes a word through the mapping.
    pub(super) fn store(&self, page: usize, word: usize, value: u64) {
        // SAFETY: as for `load`; no reference into the mapping exists.
        unsafe { self.at(page, word).write_volatile(value) }
    }

    /// Words that are wrong, seen through the mapping and by pread().
    pub(super) fn verify(&self) -> Value {
        let wrong = (0..self.pages)
            .flat_map(|page| (0..WORDS).map(move |word| (page, word)))
            .filter(|(page, word)| self.load(*page, *word) != content(*page, *word))
            .count();
        let mut bytes = vec![0; PAGE];
        let (mut misread, mut errors) = (0, Vec::new());
        for page in 0..self.pages {
            match self.file.read_exact_at(&mut bytes, (page * PAGE) as u64) {
                Ok(()) => misread += usize::from(bytes != page_content(page)),
                Err(error) => errors.push(format!("page {page}: {error}")),
            }
        }
        json!({"wrong": wrong, "misread": misread, "errors": errors})
    }

    /// Offset of its lowest byte on the device.
    pub(super) fn first_byte(&self) -> Result<u64> {
        self.extents()?.iter().map(|(first, _)| *first).min().context("a file without extents")
    }

    /// Offset behind its highest byte on the device.
    pub(super) fn end_byte(&self) -> Result<u64> {
        self.extents()?.iter().map(|(_, end)| *end).max().context("a file without extents")
    }

    /// `FS_IOC_FIEMAP` (include/uapi/linux/fiemap.h): first byte and end of each extent.
    fn extents(&self) -> Result<Vec<(u64, u64)>> {
        const FS_IOC_FIEMAP: u64 = 0xc020_660b;
        const HEADER: usize = 4;
        const EXTENT: usize = 7;
        const ROOM: usize = 16;
        let mut words = vec![0_u64; HEADER + EXTENT * ROOM];
        words[1] = u64::MAX; // fm_length
        words[3] = ROOM as u64; // fm_extent_count
        // SAFETY: `words` is a struct fiemap with room for as many extents as it says, and lives through the call.
        let rc =
            unsafe { libc::ioctl(self.file.as_raw_fd(), FS_IOC_FIEMAP as _, words.as_mut_ptr()) };
        ensure!(rc == 0, "FIEMAP: {}", std::io::Error::last_os_error());
        let count = usize::try_from(words[2] >> 32)?; // fm_mapped_extents
        ensure!(count < ROOM, "a file in {count} pieces");
        let extents = words[HEADER..].chunks_exact(EXTENT).take(count);
        // fe_physical, fe_length
        Ok(extents.map(|extent| (extent[1], extent[1] + extent[2])).collect())
    }
}

fn is_dax(file: &File) -> Result<bool> {
    const STATX_ATTR_DAX: u64 = 0x0020_0000;
    // SAFETY: statx is plain integers; all zero is valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is a C string, and `stat` lives through the call.
    let rc = unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_BASIC_STATS, &mut stat) };
    ensure!(rc == 0, "statx: {}", std::io::Error::last_os_error());
    Ok(stat.stx_attributes & STATX_ATTR_DAX != 0)
}
