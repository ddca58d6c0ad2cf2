//! Starts another kernel: what kexec-tools does for an unpacked kernel, with kexec_load(2) and the 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst).

mod elf;

use std::fs;
use std::io;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::sys::PAGE;

/// Memory of the new kernel, as its boot parameters say it.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Usable.
    pub ram: bool,
}

/// When it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// By reboot(2).
    Asked,
    /// When this kernel crashes, in the memory set aside for that.
    Crashed,
}

/// struct kexec_segment
#[repr(C)]
#[derive(Debug)]
struct Segment {
    buffer: *const u8,
    buffer_size: usize,
    memory: u64,
    memory_size: usize,
}

/// Of `struct boot_params`.
mod field {
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const RAMDISK: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMDLINE: usize = 0x228;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const E820: usize = 0x2d0;
    pub(super) const E820_MAX: usize = 128;
}

/// Loads `kernel`, an ELF file, with an initial RAM disk of these programs, names and contents. A crash kernel lies in `beside`
/// with all that goes with it; another one where it was linked to, and the rest in `beside`.
pub fn load(
    kernel: &[u8],
    files: &[(&str, &[u8])],
    cmdline: &str,
    memory: &[Memory],
    beside: Range<u64>,
    when: When,
) -> Result<()> {
    const HUGE: u64 = 2 << 20;
    let parts = elf::parts(kernel)?;
    let linked = parts.iter().map(|part| part.at).min().context("the kernel has no segments")?;
    let end = parts.iter().map(|part| part.at + part.size).max().unwrap_or(linked);
    // Behind it, if it is moved.
    let (moved_to, mut free) = match when {
        When::Asked => (linked, beside.start),
        When::Crashed => {
            let start = beside.start.next_multiple_of(HUGE);
            (start, (start + (end - linked)).next_multiple_of(PAGE as u64))
        }
    };
    let mut place = |size: usize| {
        let at = free;
        free += (size.max(1) as u64).next_multiple_of(PAGE as u64);
        at
    };
    let ramdisk = cpio(files);
    let mut cmdline = cmdline.as_bytes().to_vec();
    cmdline.push(0);
    let (ramdisk_at, cmdline_at) = (place(ramdisk.len()), place(cmdline.len()));
    let params = boot_params(memory, (ramdisk_at, ramdisk.len()), cmdline_at)?;
    let params_at = place(params.len());
    let jump = jump(params_at, elf::entry(kernel)? - linked + moved_to);
    let jump_at = place(jump.len());
    ensure!(free <= beside.end, "{free:#x} is beyond {:#x}", beside.end);

    let mut segments: Vec<Segment> = parts
        .iter()
        .map(|part| segment(part.bytes, part.at - linked + moved_to, part.size))
        .collect();
    for (bytes, at) in
        [(&ramdisk, ramdisk_at), (&cmdline, cmdline_at), (&params, params_at), (&jump, jump_at)]
    {
        segments.push(segment(bytes, at, bytes.len() as u64));
    }
    const ON_CRASH: u64 = 1;
    const X86_64: u64 = 62 << 16;
    let flags = X86_64 | if when == When::Crashed { ON_CRASH } else { 0 };
    // SAFETY: the kernel reads the list and the buffers, all of which live through the call.
    let rc = unsafe {
        libc::syscall(libc::SYS_kexec_load, jump_at, segments.len(), segments.as_ptr(), flags)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("kexec_load") }
}

/// Starts what was loaded for [`When::Asked`]; returns only if that fails.
pub fn start() -> io::Error {
    // SAFETY: no pointers; nothing in this system needs an orderly end.
    unsafe { libc::reboot(libc::RB_KEXEC) };
    io::Error::last_os_error()
}

/// Memory that is set aside for a crash kernel.
pub fn crash_area() -> Result<Range<u64>> {
    let text = fs::read_to_string("/proc/iomem").context("/proc/iomem")?;
    let line = text.lines().find(|line| line.ends_with(": Crash kernel"));
    let (range, _) = line.and_then(|line| line.split_once(" :")).context("no crashkernel=")?;
    let (first, last) = range.trim().split_once('-').context("/proc/iomem")?;
    Ok(u64::from_str_radix(first, 16)?..u64::from_str_radix(last, 16)? + 1)
}

/// Memory of the running kernel, as it was told.
pub fn memory() -> Result<Vec<Memory>> {
    let params = running_params()?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| params[at + i]));
    let entries = usize::from(params[field::E820_ENTRIES]).min(field::E820_MAX);
    let entry = |i: usize| {
        let at = field::E820 + i * 20;
        Memory { start: word(at), size: word(at + 8), ram: params[at + 16] == 1 }
    };
    Ok((0..entries).map(entry).collect())
}

fn running_params() -> Result<Vec<u8>> {
    let path = "/sys/kernel/boot_params/data";
    let params = fs::read(path).context(path)?;
    ensure!(params.len() == PAGE, "{path}: {} bytes", params.len());
    Ok(params)
}

fn boot_params(memory: &[Memory], ramdisk: (u64, usize), cmdline_at: u64) -> Result<Vec<u8>> {
    ensure!(memory.len() <= field::E820_MAX, "{} ranges of memory", memory.len());
    let mut params = running_params()?;
    let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::RAMDISK, &u32::try_from(ramdisk.0)?.to_le_bytes());
    put(field::RAMDISK_SIZE, &u32::try_from(ramdisk.1)?.to_le_bytes());
    put(field::CMDLINE, &u32::try_from(cmdline_at)?.to_le_bytes());
    put(field::SETUP_DATA, &0u64.to_le_bytes());
    put(field::E820_ENTRIES, &[memory.len() as u8]);
    for (i, one) in memory.iter().enumerate() {
        let at = field::E820 + i * 20;
        put(at, &one.start.to_le_bytes());
        put(at + 8, &one.size.to_le_bytes());
        put(at + 16, &if one.ram { 1u32 } else { 2 }.to_le_bytes());
    }
    Ok(params)
}

/// `mov rsi, params; mov rax, entry; jmp rax`: kexec enters with all registers zero.
fn jump(params: u64, entry: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xbe];
    code.extend(params.to_le_bytes());
    code.extend([0x48, 0xb8]);
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]);
    code
}

fn segment(bytes: &[u8], at: u64, size: u64) -> Segment {
    let memory_size = size.next_multiple_of(PAGE as u64) as usize;
    Segment { buffer: bytes.as_ptr(), buffer_size: bytes.len(), memory: at, memory_size }
}

/// An archive of programs (Documentation/driver-api/early-userspace/buffer-format.rst).
fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let programs = files.iter().map(|(name, bytes)| (*name, 0o100_755, *bytes));
    for (name, mode, bytes) in programs.chain([("TRAILER!!!", 0, &[][..])]) {
        let numbers = [1, mode, 0, 0, 1, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
        out.extend(b"070701");
        numbers.iter().for_each(|n| out.extend(format!("{n:08x}").bytes()));
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jump_is_what_it_says() {
        let code = jump(0x1122, 0x3344);
        assert_eq!(code.len(), 22);
        assert_eq!(
            (&code[..4], &code[10..14]),
            (&[0x48, 0xbe, 0x22, 0x11][..], &[0x48, 0xb8, 0x44, 0x33][..])
        );
        assert_eq!(code[20..], [0xff, 0xe0]);
    }

    #[test]
    fn archive() {
        let bytes = cpio(&[("init", b"hello")]);
        assert_eq!(&bytes[..6], b"070701");
        assert!(bytes.len().is_multiple_of(4));
        // Header and name are 110 + 5 bytes, padded.
        assert_eq!(&bytes[116..121], b"hello");
    }
}
