//! What the machine must have, and `apt-get install` for what it lacks.

use crate::boot::bochs;
use crate::closure;
use crate::error::{Kind, fail};
use crate::proc;
use crate::tools::{self, Prefix, Qemu};
use anyhow::Result;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) mod debs;
mod private;

/// A Debian package, and a file that is there when it is.
struct Need {
    package: &'static str,
    probe: &'static str,
    why: &'static str,
}

const fn need(package: &'static str, probe: &'static str, why: &'static str) -> Need {
    Need { package, probe, why }
}

/// A probe that starts with '/' is a file, anything else a program on PATH; [`RUST_SOURCE`] is neither.
const NEEDS: &[Need] = &[
    need("build-essential", "g++", "compiler"),
    need("libc6-dev", "/usr/lib/x86_64-linux-gnu/libc.a", "static guest binaries"),
    need("make", "make", "kernel build"),
    need("flex", "flex", "kernel build"),
    need("bison", "bison", "kernel build"),
    need("bc", "bc", "kernel build"),
    need("libelf-dev", "/usr/include/gelf.h", "objtool"),
    need("libssl-dev", "/usr/include/openssl/ssl.h", "kernel build"),
    need("perl-base", "perl", "kernel build"),
    need("xz-utils", "xz", "unpacking the kernel source"),
    need("patch", "patch", "the patch series"),
    need("linux-source-6.12", crate::kernel::source::TARBALL, "kernel source"),
    need("rustc-web", RUST_SOURCE, "Rust objects in the kernel"),
    need("rust-web-src", RUST_SOURCE, "source of core, for the kernel's target"),
    need(tools::QEMU_PACKAGE, tools::QEMU, "the test machine, and a client in it"),
    need("seabios", "/usr/share/seabios/bios-256k.bin", "firmware of the test machine"),
    need("e2fsprogs", closure::MKE2FS, "the file system of a persistent memory"),
    // Bochs itself comes with it; of the displays that it could depend on, this is the smallest, and is not used.
    need("bochs-term", "bochs", "the test machine with VMX"),
    need("bochsbios", bochs::BIOS, "its firmware"),
    // To Debian's bochs seabios is as good; this is what its own link leads to.
    need("vgabios", bochs::VGABIOS, "its firmware"),
    need("isolinux", bochs::ISOLINUX, "its boot loader"),
    need("syslinux-common", bochs::LDLINUX, "its boot loader"),
    need("xorriso", "xorriso", "its boot image"),
];

/// Not a path: some rustc must have the source of its library, as abi/kbuild/Makefile.ve_apf looks for it.
const RUST_SOURCE: &str = "a rustc with rust-src";

/// Makes sure that everything needed is installed; quick when it is.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|n| !present(n)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|n| n.package).collect();
    if !is_debian() || !have("apt-get") {
        for n in &missing {
            println!("missing: {} (Debian: {}), for: {}", n.probe, n.package, n.why);
        }
        return Err(fail(
            Kind::Environment,
            "this is not Debian and some tools are missing",
            "install what is listed above, then run it again",
        ));
    }
    println!("xtask installs with apt-get, because something needed is not there:");
    for n in &missing {
        println!("  {:<20} {}", n.package, n.why);
    }
    install(&names)?;
    let still: Vec<&str> = NEEDS.iter().filter(|n| !present(n)).map(|n| n.package).collect();
    if still.is_empty() {
        Ok(())
    } else {
        Err(fail(
            Kind::Environment,
            format!("installed, but still not found: {}", still.join(", ")),
            "apt-get install --reinstall these packages",
        ))
    }
}

/// Debian's memcached, which is only unpacked.
pub(crate) fn ensure_server() -> Result<Prefix> {
    if let Some(found) = tools::server()? {
        return Ok(found);
    }
    let package = &private::SERVER;
    let cannot = |why: &str| fail(Kind::Environment, format!("{} {why}", package.what), "");
    if !is_debian() || !have("apt-get") {
        return Err(cannot("cannot be had: this is not Debian"));
    }
    let unpack = || match private::plan(package.name) {
        Some(plan) => private::unpack(package, &plan),
        None => Ok(false),
    };
    // Old package lists name versions that the mirrors no longer have.
    let _ = unpack()? || apt(&["update"])? && unpack()?;
    tools::server()?.ok_or_else(|| cannot("could not be downloaded"))
}

fn install(names: &[&str]) -> Result<()> {
    // Old package lists name versions that the mirrors no longer have, so try, update, try again.
    if names.iter().all(|n| has_candidate(n)) && try_install(names)? {
        return Ok(());
    }
    if !apt(&["update"])? {
        eprintln!("xtask: apt-get update reported errors; going on with what it got");
    }
    if try_install(names)? {
        return Ok(());
    }
    Err(fail(
        Kind::Environment,
        format!("apt-get could not install {}", names.join(" ")),
        "see its messages above: network, disk, or a missing bookworm-security entry in sources.list",
    ))
}

/// Installs all of them, but unpacks QEMU into the cache if it cannot be had beside what is installed.
fn try_install(names: &[&str]) -> Result<bool> {
    let conflict = names
        .contains(&tools::QEMU_PACKAGE)
        .then(|| private::plan(tools::QEMU_PACKAGE))
        .flatten()
        .filter(|plan| !plan.remove.is_empty());
    let Some(plan) = conflict else { return apt(&install_args(names)) };
    let others: Vec<&str> = names.iter().copied().filter(|n| *n != tools::QEMU_PACKAGE).collect();
    if !others.is_empty() && !apt(&install_args(&others))? {
        return Ok(false);
    }
    println!(
        "{} conflicts with {}, which stays: a copy of QEMU for these tests alone goes to {}",
        tools::QEMU_PACKAGE,
        plan.remove.join(" "),
        tools::private_dir()?.display()
    );
    private::unpack(&private::QEMU, &plan)
}

fn install_args<'a>(names: &[&'a str]) -> Vec<&'a str> {
    // Never at the price of removing something of the user's.
    let mut args = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    args.extend(names);
    args
}

/// Runs apt-get as root; its output goes to the user.
fn apt(args: &[&str]) -> Result<bool> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else if have("sudo") {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    } else {
        return Err(fail(
            Kind::Environment,
            "packages must be installed and there is no sudo",
            format!("as root: apt-get {}", args.join(" ")),
        ));
    };
    println!("+ apt-get {}", args.join(" "));
    let status = command
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::inherit())
        .status()
        .map_err(|e| fail(Kind::Environment, format!("cannot start apt-get: {e}"), ""))?;
    Ok(status.success())
}

fn has_candidate(package: &str) -> bool {
    proc::stdout_of(Command::new("apt-cache").args(["policy", package])).is_ok_and(|text| {
        text.lines().any(|l| l.trim().starts_with("Candidate:") && !l.contains("(none)"))
    })
}

fn present(need: &Need) -> bool {
    match need.probe {
        tools::QEMU => Qemu::find().is_ok_and(|q| q.is_some()),
        RUST_SOURCE => ["rustc", "/usr/bin/rustc"].into_iter().any(has_library_source),
        path if path.starts_with('/') => Path::new(path).exists(),
        program => have(program),
    }
}

fn has_library_source(rustc: &str) -> bool {
    proc::stdout_of(Command::new(rustc).args(["--print", "sysroot"])).is_ok_and(|root| {
        Path::new(root.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    })
}

/// Is there such a program on PATH?
pub(crate) fn have(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn is_debian() -> bool {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().any(|l| l.trim_matches('"') == "ID=debian")
}
