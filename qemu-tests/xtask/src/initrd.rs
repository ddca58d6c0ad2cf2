//! The programs that run in L1 and L2, and the initramfs of each.

use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::ui::Stage;
use crate::{cargo, closure, metal};
use anyhow::{Context, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) mod vmlinux;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where L1 finds L2's kernel and initramfs.
pub(crate) const L2_KERNEL: &str = "/bzImage";
/// The same kernel, unpacked.
pub(crate) const L2_VMLINUX: &str = "/vmlinux";
/// Debian's, for an L2 that does not know ve-apf.
pub(crate) const L2_STOCK: &str = "/stock-bzImage";
/// What L1 loads first, by name.
const MODULES: &str = "/modules";
/// See [`L2_KERNEL`].
pub(crate) const L2_INITRD: &str = "/l2-initrd";
/// The same, with the kernel in it, unpacked, as /kernel: for a guest that starts another one.
pub(crate) const L2_INITRD_KERNEL: &str = "/l2-initrd-kernel";
/// The same, with Debian's memcached.
pub(crate) const L2_INITRD_SERVER: &str = "/l2-initrd-server";
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

/// The kernels of a boot.
pub(crate) struct Kernels<'a> {
    /// That of L1.
    pub(crate) l1: &'a Kernel,
    /// That of L2.
    pub(crate) l2: &'a Kernel,
    /// Debian's, if there is a case for it.
    pub(crate) stock: Option<&'a Kernel>,
}

/// The guest programs, built.
pub(crate) struct Programs {
    by_name: BTreeMap<String, Vec<u8>>,
    /// The bare-metal test kernel, once a plan has named it.
    metal: OnceLock<Vec<u8>>,
}

impl Programs {
    /// Builds the VMM and the payloads as static programs.
    pub(crate) fn build() -> Result<Self> {
        let stage = Stage::new("guest programs: building", None);
        let mut command = cargo::build("-C target-feature=+crt-static");
        command
            .args(["--release", "--bins", "--target", TARGET])
            .args(["-p", "ve-apf-vmm", "-p", "ve-apf-payload"])
            // Smaller images are loaded faster.
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
        cargo::run(command, &stage, "the guest programs do")?;
        let by_name = read_programs(&cargo::target_dir().join(TARGET).join("release"))?;
        stage.done(&by_name.keys().map(String::as_str).collect::<Vec<_>>().join(" "));
        Ok(Self { by_name, metal: OnceLock::new() })
    }

    fn metal(&self) -> Result<Vec<u8>> {
        if let Some(bytes) = self.metal.get() {
            return Ok(bytes.clone());
        }
        let bytes = metal::build()?;
        Ok(self.metal.get_or_init(|| bytes).clone())
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.by_name
            .get(name)
            .cloned()
            .with_context(|| format!("the guest program {name} was not built"))
    }

    /// L2's initramfs; with a kernel in it if there is one.
    pub(crate) fn l2(&self, kernel: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, self.get("l2-init")?);
        if let Some(kernel) = kernel {
            archive.file("kernel", 0o644, kernel);
        }
        Ok(archive.bytes())
    }

    /// L2's initramfs, with Debian's memcached.
    fn l2_server(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, self.get("l2-init")?);
        closure::add_server(&mut archive)?;
        Ok(archive.bytes())
    }

    /// L1's initramfs, with what the plan names; `client` adds Debian's QEMU and mke2fs.
    pub(crate) fn l1(&self, kernels: &Kernels<'_>, plan: &[Step], client: bool) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("init", 0o755, self.get("l1-init")?);
        let named = |path: &str| plan.iter().any(|s| s.argv.iter().any(|a| a == path));
        for (name, bytes) in &self.by_name {
            let path = format!("/bin/{name}");
            if named(&path) {
                archive.file(&path, 0o755, bytes.clone());
            }
        }
        for module in &kernels.l1.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("{MODULES}/{name}"), 0o644, read(module)?);
        }
        let image = read(&kernels.l2.bzimage)?;
        if named(L2_STOCK) {
            let stock = kernels.stock.context("no kernel of Debian's")?;
            archive.file(L2_STOCK, 0o644, read(&stock.bzimage)?);
        }
        if named(METAL) {
            archive.file(METAL, 0o644, self.metal()?);
        }
        if named(L2_VMLINUX) {
            archive.file(L2_VMLINUX, 0o644, vmlinux::unpack(image.clone())?);
        }
        if named(L2_INITRD_KERNEL) {
            let kernel = vmlinux::unpack(image.clone())?;
            archive.file(L2_INITRD_KERNEL, 0o644, self.l2(Some(kernel))?);
        }
        if named(L2_INITRD_SERVER) {
            archive.file(L2_INITRD_SERVER, 0o644, self.l2_server()?);
        }
        if client || named(L2_KERNEL) {
            archive.file(L2_KERNEL, 0o644, image);
        }
        archive.file(L2_INITRD, 0o644, self.l2(None)?);
        let plan = serde_json::to_vec_pretty(plan).context("writing the plan")?;
        archive.file("plan.json", 0o644, plan);
        if client {
            closure::add_client(&mut archive)?;
        }
        Ok(archive.bytes())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Every program in cargo's output directory.
fn read_programs(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut programs = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path: PathBuf = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let mode = std::fs::metadata(&path).map_or(0, |m| m.permissions().mode());
        if path.is_file() && mode & 0o111 != 0 && !name.contains('.') {
            programs.insert(name.to_owned(), read(&path)?);
        }
    }
    Ok(programs)
}
