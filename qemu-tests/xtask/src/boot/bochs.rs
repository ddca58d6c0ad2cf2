//! Bochs, which emulates Intel's VMX. It boots from a CD image and is told everything in a file.

use super::Boot;
use super::machine::Machine;
use crate::lane::Lane;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// The boot loader, and the module it cannot do without.
pub(crate) const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
/// See [`ISOLINUX`].
pub(crate) const LDLINUX: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";
/// Firmware.
pub(crate) const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// Of its display adapter.
pub(crate) const VGABIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

/// The boot loader introduces itself on the console.
pub(super) const FIRST_WORDS: &str = "ISOLINUX";
/// Not every line that Bochs prints is a complaint.
pub(super) const STDERR: &str = "bochs stderr: ";
/// How Bochs says that it gives up.
const PANIC: &str = ">>PANIC<< ";
/// This is how L1's power switch works.
const POWER_OFF: &str = "soft power off";

pub(super) fn machine(boot: &Boot<'_>) -> Result<Machine> {
    // Bochs divides its options at commas, so it gets names relative to its working directory.
    let dir = boot.log.parent().unwrap_or(Path::new("."));
    let name = |what: &str| format!("{}.{what}", boot.name);
    let log = name("bochs.log");
    cd_image(boot, dir, &name("isolinux.cfg"), &name("iso"))?;
    let mut config = config(boot, &name("iso"), &log);
    if boot.debugger.is_some() {
        config
            .push_str(&format!("magic_break: enabled=1\ndebugger_log: {}\n", name("debugger.log")));
    }
    paths::write_atomic(&dir.join(name("bochsrc")), config.as_bytes())?;
    // Debian's Bochs has its debugger built in, which waits for a command.
    let commands = boot.debugger.as_deref().unwrap_or("c\n");
    paths::write_atomic(&dir.join(name("bochs.rc")), commands.as_bytes())?;
    // An old log's last words would be taken for the new one's.
    match std::fs::remove_file(dir.join(&log)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("removing {log}"));
        }
        _ => {}
    }
    let mut command = isolated("bochs");
    command.args(["-q", "-f", &name("bochsrc"), "-rc", &name("bochs.rc")]).current_dir(dir);
    Ok(Machine { lane: Lane::Vmx, command, _disk: None, log: Some(dir.join(log)), monitor: None })
}

/// Without a display to draw on, Bochs offers its screen and keyboard to the network, on every address and with no
/// password. So it gets a network of its own where that is possible.
fn isolated(program: &str) -> Command {
    const UNSHARE: [&str; 2] = ["--map-root-user", "--net"];
    if proc::stdout_of(Command::new("unshare").args(UNSHARE).arg("true")).is_err() {
        eprintln!(
            "xtask: unshare is not permitted here, so Bochs's screen is on the network, port 5900"
        );
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(UNSHARE).arg(program);
    command
}

fn config(boot: &Boot<'_>, iso: &str, log: &str) -> String {
    let (mem, cpus) = (boot.mem_mib, boot.cpus);
    let ips = u64::from(boot.mips) * 1_000_000;
    format!(
        "config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         # Its sound thread dies on machines without a sound card.\n\
         plugin_ctrl: speaker=0, gameport=0, parallel=0\n\
         megs: {mem}\n\
         # Else it waits three seconds for a key, which two CPUs that do nothing take half a minute for.\n\
         romimage: file={BIOS}, options=fastboot\n\
         vgaromimage: file={VGABIOS}\n\
         cpu: model=corei7_skylake_x, count=1:{cpus}:1, ips={ips}, reset_on_triple_fault=0\n\
         # Time is a count of instructions, from the same date on: nothing depends on the host.\n\
         clock: sync=none, time0=1767225600\n\
         ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
         ata0-master: type=cdrom, path={iso}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev=/dev/stdout\n\
         log: {log}\n\
         panic: action=fatal\n\
         error: action=report\n\
         info: action=ignore\n\
         debug: action=ignore\n"
    )
}

fn cd_image(boot: &Boot<'_>, dir: &Path, config: &str, iso: &str) -> Result<()> {
    let text = format!(
        "SERIAL 0 115200\nDEFAULT l1\nLABEL l1\n KERNEL /kernel\n INITRD /initrd\n APPEND {}\n",
        boot.cmdline
    );
    paths::write_atomic(&dir.join(config), text.as_bytes())?;
    let mut command = Command::new("xorriso");
    command
        .args(["-as", "mkisofs", "-quiet", "-o", iso, "-b", "isolinux.bin", "-c", "boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-graft-points"])
        .arg(graft("isolinux.bin", Path::new(ISOLINUX)))
        .arg(graft("ldlinux.c32", Path::new(LDLINUX)))
        .arg(graft("isolinux.cfg", Path::new(config)))
        .arg(graft("kernel", boot.kernel))
        .arg(graft("initrd", boot.initrd))
        .current_dir(dir);
    proc::stdout_of(&mut command).context("making a CD image")?;
    Ok(())
}

/// "NAME=FILE"; a backslash escapes what would divide them.
fn graft(name: &str, file: &Path) -> String {
    let file = file.to_string_lossy().replace('\\', "\\\\").replace('=', "\\=");
    format!("{name}={file}")
}

/// Why Bochs gave up: its last panic, other than the one that a power-off is.
pub(super) fn panic<'a>(lines: impl Iterator<Item = &'a str>) -> Option<String> {
    lines
        .filter_map(|line| {
            let (head, why) = line.split_once(PANIC)?;
            // The part of the machine stands in brackets before it.
            let part = head.rsplit_once('[').map_or("", |(_, p)| p).trim_end_matches([' ', ']']);
            Some(format!("{part} {}", why.trim()).trim_start().to_owned())
        })
        .filter(|why| !why.contains(POWER_OFF))
        .last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_off_is_no_panic() {
        let off = "02796091786p[ACPI  ] >>PANIC<< ACPI control: soft power off";
        assert_eq!(panic([off].into_iter()), None);
        let fault = "01p[CPU0  ] >>PANIC<< exception(): 3rd (14) exception with no resolution";
        let why = panic(["02e[CPU0  ] RDMSR: Unknown register 0x17", fault, off].into_iter());
        assert_eq!(why.unwrap(), "CPU0 exception(): 3rd (14) exception with no resolution");
    }

    #[test]
    fn a_panic_before_there_is_a_log_counts() {
        let line = "[    0.1] bochs stderr: 00000000000p[      ] >>PANIC<< x.bochsrc:2: no display";
        assert_eq!(panic([line].into_iter()).unwrap(), "x.bochsrc:2: no display");
    }

    #[test]
    fn names_on_the_cd_can_come_from_anywhere() {
        assert_eq!(graft("kernel", Path::new("/a=b/c\\d")), "kernel=/a\\=b/c\\\\d");
    }
}
