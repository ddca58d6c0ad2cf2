//! A dynamically linked program with everything it needs at run time, for the initramfs of L1 or L2.

use crate::cpio::Archive;
use crate::error::{Kind, fail};
use crate::proc;
use crate::tools::{self, Prefix, Qemu};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the file system of a client's persistent memory.
pub(crate) const MKE2FS: &str = "/sbin/mke2fs";

/// Debian's QEMU, as the client that knows nothing of us.
pub(crate) const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Firmware that the machine types we start may ask for; what a Debian release does not have is skipped.
const FIRMWARE: &[&str] = &[
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/seabios/bios.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/bios.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/multiboot.bin",
    "/usr/share/qemu/multiboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];

/// Adds QEMU, its libraries and its firmware, and mke2fs, all under the names they have where they are installed.
pub(crate) fn add_client(archive: &mut Archive) -> Result<()> {
    let qemu = Qemu::find()?.ok_or_else(|| missing(QEMU))?;
    for path in [QEMU, MKE2FS] {
        add_program(archive, &qemu.prefix, path)?;
    }
    for path in FIRMWARE.iter().map(|f| qemu.prefix.locate(f)).filter(|p| p.exists()) {
        add(archive, &qemu.prefix, &path)?;
    }
    Ok(())
}

/// Adds the server and its libraries.
pub(crate) fn add_server(archive: &mut Archive) -> Result<()> {
    let prefix = tools::server()?.ok_or_else(|| missing(tools::SERVER))?;
    add_program(archive, &prefix, tools::SERVER)
}

fn missing(path: &str) -> anyhow::Error {
    fail(Kind::Environment, format!("{path} is missing"), "run `cargo xtask setup`")
}

fn add_program(archive: &mut Archive, prefix: &Prefix, path: &str) -> Result<()> {
    let program = prefix.locate(path);
    if !program.exists() {
        return Err(missing(path));
    }
    add(archive, prefix, &program)?;
    let mut ldd = Command::new("ldd");
    ldd.arg(&program);
    prefix.set_libraries(&mut ldd);
    for library in libraries(&proc::stdout_of(&mut ldd)?) {
        add(archive, prefix, &library)?;
    }
    Ok(())
}

/// The content goes to the name that is asked for, so links need not be followed in the archive.
fn add(archive: &mut Archive, prefix: &Prefix, path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let name = prefix.standard_name(path);
    let name = name.to_str().with_context(|| format!("strange name: {}", path.display()))?;
    archive.file(name, 0o755, bytes);
    Ok(())
}

/// Lines are "name => /path (address)", "/path (address)" or "linux-vdso (address)".
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let path = line.split_once("=> ").map_or(line, |(_, p)| p).trim();
            let path = path.split(" (").next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_from_every_form_of_line() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/libz.so.1 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        let found = libraries(text);
        assert_eq!(found, [Path::new("/lib/libz.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }
}
