//! The kernel inside a bzImage. A guest that gets it unpacked need not do that itself, which takes seconds where
//! every instruction is emulated.

use crate::proc;
use anyhow::{Context, Result};
use std::io::Write;
use std::process::{Command, Stdio};

/// The ELF file inside, or the image as it is if it is not packed by gzip: our VMM takes both.
pub(crate) fn unpack(image: Vec<u8>) -> Result<Vec<u8>> {
    match payload(&image).filter(|p| p.starts_with(b"\x1f\x8b")) {
        Some(packed) => gunzip(packed).context("unpacking the kernel"),
        None => Ok(image),
    }
}

/// Documentation/arch/x86/boot.rst: setup_sects, header, payload_offset, payload_length.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let code = (usize::from(*image.get(0x1f1)?) + 1) * 512;
    let start = code.checked_add(word(0x248)?)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

fn gunzip(packed: &[u8]) -> Result<Vec<u8>> {
    let mut file = tempfile::tempfile().context("making a temporary file")?;
    file.write_all(packed).context("writing a temporary file")?;
    std::io::Seek::rewind(&mut file).context("writing a temporary file")?;
    let mut command = Command::new("gzip");
    command.arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::piped());
    let out = proc::output_with_stdin(&mut command)?;
    anyhow::ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(content: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = u8::try_from(content.len()).unwrap();
        image[1024 + 16..1024 + 16 + content.len()].copy_from_slice(content);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&image(b"hello")), Some(&b"hello"[..]));
        assert_eq!(payload(b"short"), None);
        let mut cut = image(b"hello");
        cut.truncate(1024 + 18);
        assert_eq!(payload(&cut), None);
    }

    #[test]
    fn it_is_unpacked() {
        // `printf hello | gzip -n`
        let packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\x07\x00\x86\xa6\x10\x36\x05\x00\x00\x00";
        assert_eq!(unpack(image(packed)).unwrap(), b"hello");
        assert_eq!(unpack(image(b"other")).unwrap(), image(b"other"));
    }
}
