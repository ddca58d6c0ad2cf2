//! The bare-metal test kernel: an ELF program for x86_64-unknown-none.
//!
//! A toolchain that has the target compiles it as any program. Where there is none, one that has the source of its library
//! compiles that too, as the kernel objects do; cargo then fetches what the library's own lock file names, once.

use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{cargo, proc};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

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
    let mut command = cargo::build(FLAGS);
    command.args(["--profile", PROFILE, "--target", TARGET, "-p", PACKAGE]);
    if let Compiler::WithSource(rustc) = compiler()? {
        command.arg("-Zbuild-std=core").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
    }
    cargo::run(command, &stage, "the bare-metal test kernel does")?;
    let path = cargo::target_dir().join(TARGET).join(PROFILE).join(PACKAGE);
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
