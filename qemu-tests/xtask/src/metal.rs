//! The bare-metal test kernel: an ELF program for x86_64-unknown-none.
//!
//! A toolchain that has the target compiles it as any program. Where there is none, one that has the source of its library
//! compiles that too, as the kernel objects do; cargo then fetches what the library's own lock file names, once.

use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const PACKAGE: &str = "ve-apf-metal-kernel";
const TARGET: &str = "x86_64-unknown-none";
/// The profile in the workspace's Cargo.toml.
const PROFILE: &str = "metal";
/// At a fixed address, and every return address in the frame chain. The linker is named because rustc-web has none of its own.
const FLAGS: &str = "-C relocation-model=static -C code-model=small -C force-frame-pointers=yes \
                     -C linker=ld -C linker-flavor=ld";

/// Who can compile it.
enum Compiler {
    /// It has the target.
    Ready,
    /// It has the source of its library.
    WithSource(OsString),
}

/// Builds it; the program's bytes.
pub(crate) fn build() -> Result<Vec<u8>> {
    let stage = Stage::new("test kernel: building", None);
    let target_dir = paths::target().join("guest-bin");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--profile", PROFILE, "--target", TARGET, "-p", PACKAGE])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(paths::root())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    if let Compiler::WithSource(rustc) = compiler()? {
        command.arg("-Zbuild-std=core").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    }
    let mut running = proc::Running::spawn(&mut command)?;
    let stderr = running.child().stderr.take().context("cargo has no stderr")?;
    let mut output = Vec::new();
    for line in BufReader::new(stderr).lines() {
        let line = line.context("reading cargo's output")?;
        stage.message(line.trim());
        output.push(line);
    }
    if !running.wait()?.success() {
        output.iter().for_each(|line| stage.line(line));
        return Err(fail(
            Kind::Environment,
            "the bare-metal test kernel does not build",
            "see cargo's messages above",
        ));
    }
    let path = target_dir.join(TARGET).join(PROFILE).join(PACKAGE);
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    stage.done(&format!("{} KiB", bytes.len() / 1024));
    Ok(bytes)
}

fn compiler() -> Result<Compiler> {
    let has = |rustc: &OsString, below: &str| {
        let sysroot = proc::stdout_of(Command::new(rustc).args(["--print", "sysroot"]));
        sysroot.is_ok_and(|root| Path::new(root.trim()).join("lib/rustlib").join(below).exists())
    };
    let ours = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    if has(&ours, &format!("{TARGET}/lib")) {
        return Ok(Compiler::Ready);
    }
    let named = std::env::var_os("VE_APF_RUSTC");
    let all = named.into_iter().chain([ours, "/usr/bin/rustc".into()]);
    let found = all.into_iter().find(|rustc| has(rustc, "src/rust/library/core/src/lib.rs"));
    found.map(Compiler::WithSource).ok_or_else(|| {
        fail(
            Kind::Environment,
            format!("no rustc has the target {TARGET}, or the source of its library"),
            format!(
                "`rustup target add {TARGET}`, or on Debian: apt-get install rustc-web rust-web-src"
            ),
        )
    })
}
