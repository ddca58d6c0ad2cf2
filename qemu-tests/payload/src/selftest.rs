//! The guest kernel's test files in debugfs (CONFIG_VE_APF_SELFTEST).

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Range;

use anyhow::{Context, Result, bail};

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

/// Makes one hypercall after the other.
pub struct Hypercalls {
    file: File,
}

impl Hypercalls {
    /// Opens the file.
    ///
    /// # Errors
    /// There is none.
    pub fn open() -> Result<Hypercalls> {
        let path = "/sys/kernel/debug/ve_apf/hypercall";
        Ok(Hypercalls { file: File::options().read(true).write(true).open(path).context(path)? })
    }

    /// ve-apf's, with these arguments, the operation first. Returns RAX.
    ///
    /// # Errors
    /// The file does not answer.
    pub fn call(&mut self, arguments: &[u64]) -> Result<i64> {
        let mut line = "0x5645".to_owned();
        for argument in arguments {
            line.push_str(&format!(" {argument:#x}"));
        }
        self.file.write_all(line.as_bytes()).with_context(|| line.clone())?;
        // The write left the position at 0.
        let mut raw = [0; 32];
        let n = self.file.read(&mut raw)?;
        let text = String::from_utf8_lossy(&raw[..n]);
        text.trim().parse().with_context(|| format!("{line}: {text}"))
    }
}

const RANGE: &str = "0x5645 4";

/// Declares these frames to the host, or withdraws them.
///
/// # Errors
/// Anything but success, from the host or before it.
pub fn declare(frames: &Range<u64>, withdraw: bool) -> Result<()> {
    let (start, length) = (frames.start << 12, (frames.end - frames.start) << 12);
    let words = format!("{RANGE} {start:#x} {length:#x} {}", u8::from(withdraw));
    match hypercall(&words)? {
        0 => Ok(()),
        answer => bail!("hypercall {words}: {answer}"),
    }
}

/// The frames that the kernel declared to the host.
///
/// # Errors
/// The kernel does not tell.
pub fn ranges() -> Result<Vec<Range<u64>>> {
    let path = "/sys/kernel/debug/ve_apf/ranges";
    let text = std::fs::read_to_string(path).context(path)?;
    let range = |line: &str| {
        let (start, end) = line.split_once(' ')?;
        Some(start.parse().ok()?..end.parse().ok()?)
    };
    text.lines().map(|line| range(line).with_context(|| format!("{path}: {line}"))).collect()
}

/// What every NMI touches, until it is dropped.
pub struct NmiList {
    file: File,
}

/// What NMIs have done so far.
#[derive(Debug, Clone)]
pub struct NmiState {
    /// Handlers begun.
    pub begun: u64,
    /// Handlers ended.
    pub ended: u64,
    /// How many were in the handler at once, at most.
    pub deepest: u64,
    /// The first word of each page, when it was last read.
    pub words: Vec<u64>,
}

impl NmiList {
    /// From now on each NMI adds 1 to `counter` and reads the first word of the next of `count` pages.
    ///
    /// # Errors
    /// No such file, one is in use, or the pages are not mapped.
    pub fn new(counter: *const u8, pages: *const u8, count: usize) -> Result<NmiList> {
        let path = "/sys/kernel/debug/ve_apf/nmi";
        let mut file = File::options().read(true).write(true).open(path).context(path)?;
        let line = format!("{:#x} {:#x} {count}", counter as usize, pages as usize);
        file.write_all(line.as_bytes()).with_context(|| format!("{path}: {line}"))?;
        Ok(NmiList { file })
    }

    /// Where they stand.
    ///
    /// # Errors
    /// The file does not say what it should.
    pub fn state(&mut self) -> Result<NmiState> {
        let mut text = String::new();
        self.file.rewind()?;
        self.file.read_to_string(&mut text)?;
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(|word| word.parse().with_context(|| format!("ve_apf/nmi: {word}")))
            .collect::<Result<_>>()?;
        let [begun, ended, deepest, words @ ..] = numbers.as_slice() else {
            bail!("ve_apf/nmi: {text}");
        };
        Ok(NmiState { begun: *begun, ended: *ended, deepest: *deepest, words: words.to_vec() })
    }
}
