//! What of an ELF file goes to memory.

use anyhow::{Context, Result, ensure};

/// One PT_LOAD segment.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// Physical address.
    pub(super) at: u64,
    /// Bytes in memory; those that are not in the file are zero.
    pub(super) size: u64,
    /// Those in the file.
    pub(super) bytes: &'a [u8],
}

fn number(file: &[u8], at: usize, size: usize) -> Result<u64> {
    let bytes = at.checked_add(size).and_then(|end| file.get(at..end)).context("ELF: cut off")?;
    Ok(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// Where it is entered, physically: the kernel's entry is that already.
pub(super) fn entry(file: &[u8]) -> Result<u64> {
    number(file, 24, 8)
}

/// The segments.
pub(super) fn parts(file: &[u8]) -> Result<Vec<Part<'_>>> {
    const LOAD: u64 = 1;
    ensure!(file.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let table = usize::try_from(number(file, 32, 8)?)?;
    let (size, count) = (number(file, 54, 2)? as usize, number(file, 56, 2)? as usize);
    let mut parts = Vec::new();
    for i in 0..count {
        let header = table + i * size;
        if number(file, header, 4)? != LOAD {
            continue;
        }
        let word = |at: usize| number(file, header + at, 8);
        let (offset, in_file) = (usize::try_from(word(8)?)?, usize::try_from(word(32)?)?);
        let end = offset.checked_add(in_file).context("ELF: cut off")?;
        let bytes = file.get(offset..end).context("ELF: cut off")?;
        parts.push(Part { at: word(24)?, size: word(40)?, bytes });
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_refused() {
        assert!(parts(b"\x7fELF\x02\x01").is_err());
        assert!(parts(b"MZ").is_err());
    }

    #[test]
    fn segments() -> Result<()> {
        let mut file = vec![0; 64 + 56 + 4];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[24], file[32], file[54], file[56]) = (7, 64, 56, 1);
        (file[64], file[64 + 8], file[64 + 24], file[64 + 32], file[64 + 40]) = (1, 120, 9, 4, 10);
        let found = parts(&file)?;
        assert_eq!(
            (found[0].at, found[0].size, found[0].bytes.len(), entry(&file)?),
            (9, 10, 4, 7)
        );
        Ok(())
    }
}
