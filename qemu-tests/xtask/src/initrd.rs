//! The programs that run in L1 and L2, and the initramfs of each.

use crate::cpio::Archive;
use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{closure, metal, paths, proc};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod vmlinux;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where L1 finds L2's kernel and initramfs.
pub(crate) const L2_KERNEL: &str = "/bzImage";
/// The same kernel, unpacked.
pub(crate) const L2_VMLINUX: &str = "/vmlinux";
/// See [`L2_KERNEL`].
pub(crate) const L2_INITRD: &str = "/l2-initrd";
/// The bare-metal test kernel.
pub(crate) const METAL: &str = "/metal";
/// Where L1 finds the VMM.
pub(crate) const VMM: &str = "/bin/ve-apf-vmm";

/// One entry of L1's /plan.json.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// Comes back in the step's record.
    pub(crate) name: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// L1's init kills the step after this.
    pub(crate) timeout_s: u64,
    /// Environment.
    pub(crate) env: BTreeMap<String, String>,
}

/// The guest programs, built.
pub(crate) struct Programs {
    by_name: BTreeMap<String, Vec<u8>>,
    metal: Vec<u8>,
}

impl Programs {
    /// Builds the VMM and the payloads as static programs.
    pub(crate) fn build() -> Result<Self> {
        let target_dir = paths::target().join("guest-bin");
        let stage = Stage::new("guest programs: building", None);
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args([
                "build",
                "--release",
                "--bins",
                "--target",
                TARGET,
                "-p",
                "ve-apf-vmm",
                "-p",
                "ve-apf-payload",
            ])
            .arg("--target-dir")
            .arg(&target_dir)
            .current_dir(paths::root())
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            // Smaller images are loaded faster.
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut running = proc::Running::spawn(&mut command)?;
        let stderr = running.child().stderr.take().context("cargo has no stderr")?;
        let mut output = Vec::new();
        for line in BufReader::new(stderr).lines() {
            let line = line.context("reading cargo's output")?;
            stage.message(line.trim());
            output.push(line);
        }
        if !running.wait()?.success() {
            for line in &output {
                stage.line(line);
            }
            return Err(fail(
                Kind::Environment,
                "the guest programs do not build",
                "see cargo's messages above",
            ));
        }
        let by_name = read_programs(&target_dir.join(TARGET).join("release"))?;
        stage.done(&by_name.keys().map(String::as_str).collect::<Vec<_>>().join(" "));
        Ok(Self { by_name, metal: metal::build()? })
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.by_name
            .get(name)
            .cloned()
            .with_context(|| format!("the guest program {name} was not built"))
    }

    /// L2's initramfs.
    pub(crate) fn l2(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, self.get("l2-init")?);
        Ok(archive.bytes())
    }

    /// L1's initramfs, with what the plan names; `client` adds Debian's QEMU.
    pub(crate) fn l1(&self, kernel: &Path, plan: &[Step], client: bool) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, self.get("l1-init")?);
        let named = |path: &str| plan.iter().any(|s| s.argv.iter().any(|a| a == path));
        for (name, bytes) in &self.by_name {
            let path = format!("/bin/{name}");
            if named(&path) {
                archive.file(&path, 0o755, bytes.clone());
            }
        }
        let image =
            std::fs::read(kernel).with_context(|| format!("reading {}", kernel.display()))?;
        if named(METAL) {
            archive.file(METAL, 0o644, self.metal.clone());
        }
        if named(L2_VMLINUX) {
            archive.file(L2_VMLINUX, 0o644, vmlinux::unpack(image.clone())?);
        }
        if client || named(L2_KERNEL) {
            archive.file(L2_KERNEL, 0o644, image);
        }
        archive.file(L2_INITRD, 0o644, self.l2()?);
        let plan = serde_json::to_vec_pretty(plan).context("writing the plan")?;
        archive.file("plan.json", 0o644, plan);
        if client {
            closure::add_qemu(&mut archive)?;
        }
        Ok(archive.bytes())
    }
}

/// Every program in cargo's output directory.
fn read_programs(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut programs = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path: PathBuf = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let mode = std::fs::metadata(&path).map_or(0, |m| m.permissions().mode());
        if path.is_file() && mode & 0o111 != 0 && !name.contains('.') {
            let bytes =
                std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            programs.insert(name.to_owned(), bytes);
        }
    }
    Ok(programs)
}
