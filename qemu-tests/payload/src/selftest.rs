//! The guest kernel's test files in debugfs (CONFIG_VE_APF_SELFTEST).

use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, Result};

/// Writes `line` to the file `name`; returns what it then reads as.
fn ask(name: &str, line: &str) -> Result<i64> {
    let path = format!("/sys/kernel/debug/ve_apf/{name}");
    let mut file =
        File::options().read(true).write(true).open(&path).with_context(|| path.clone())?;
    file.write_all(line.as_bytes()).with_context(|| format!("{path}: {line}"))?;
    // The write left the position at 0.
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    text.trim().parse().with_context(|| format!("{path}: {text}"))
}

/// Has the kernel read the byte at `address`, in the context `context`.
///
/// # Errors
/// No such file or context, or the kernel could not read it there.
pub fn touch(context: &str, address: *const u8) -> Result<u8> {
    Ok(u8::try_from(ask("touch", &format!("{context} {:#x}", address as usize))?)?)
}

/// Has the kernel make a hypercall: number and arguments, separated by blanks. Returns RAX.
///
/// # Errors
/// No such file, or words that are not numbers.
pub fn hypercall(words: &str) -> Result<i64> {
    ask("hypercall", words)
}
