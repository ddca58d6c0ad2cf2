//! Debian's own kernel, of which nothing is ours: a host, or a guest, that does not know ve-apf. Its package is unpacked, not
//! installed, and of that the image and KVM's modules are kept in the cache.

use super::Kernel;
use crate::error::{Kind, fail};
use crate::setup::{self, debs};
use crate::{paths, proc, tools};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Depends on the current one.
const META: &str = "linux-image-amd64";
/// A copy's directory is called so, with the package's name behind it.
const PREFIX: &str = "stock_";
const IMAGE: &str = "vmlinuz";
/// What L1 is to load, with all it depends on.
const MODULE: &str = "kvm-amd";

/// Finds it in the cache, or downloads it.
pub(super) fn ensure() -> Result<Kernel> {
    let dir = tools::private_dir()?;
    if let Some(copy) = newest(&dir) {
        return open(copy);
    }
    if !setup::have("apt-get") || !setup::have("dpkg") {
        return Err(fail(
            Kind::Environment,
            "Debian's kernel cannot be had: this is not Debian",
            "",
        ));
    }
    let package = package()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    paths::need_space(&dir, 1)?;
    // It goes away by itself, with all that is not kept.
    let new = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(&dir)
        .with_context(|| format!("creating a directory in {}", dir.display()))?;
    let [packages, root, kept] = ["debs", "root", "kept"].map(|name| new.path().join(name));
    for d in [&packages, &root, &kept] {
        std::fs::create_dir(d).with_context(|| format!("creating {}", d.display()))?;
    }
    const WHAT: &str = "Debian's kernel";
    if !debs::download(WHAT, std::iter::once(package.as_str()), &packages)? {
        return Err(fail(
            Kind::Environment,
            format!("apt-get could not download {package}"),
            "apt-get update",
        ));
    }
    debs::unpack(WHAT, &packages, &root)?;
    keep(&root, &kept)?;
    let copy = dir.join(format!("{PREFIX}{package}"));
    std::fs::rename(&kept, &copy).with_context(|| format!("creating {}", copy.display()))?;
    open(copy)
}

fn newest(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.filter_map(|e| Some(e.ok()?.path()));
    entries
        .filter(|p| p.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX)))
        .filter(|p| p.join(IMAGE).exists())
        .max()
}

/// "  Depends: linux-image-6.1.0-56-amd64", and "(= VERSION)" perhaps.
fn package() -> Result<String> {
    let text = proc::stdout_of(Command::new("apt-cache").args(["depends", META]))?;
    let found = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let name = found.and_then(|rest| rest.split_whitespace().next());
    Ok(name.with_context(|| format!("apt does not know {META}"))?.to_owned())
}

/// The image, and modules whose names begin with their place in the order in which they are to be loaded.
fn keep(root: &Path, kept: &Path) -> Result<()> {
    let files = files_below(root)?;
    let named = |wanted: &dyn Fn(&str) -> bool| {
        let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
        files.iter().find(|path| name(path).is_some_and(|name| wanted(&name)))
    };
    let image = named(&|name| name.starts_with("vmlinuz-")).context("no vmlinuz in it")?;
    let bytes = std::fs::read(image).with_context(|| format!("reading {}", image.display()))?;
    paths::write_atomic(&kept.join(IMAGE), &bytes)?;
    let mut order: Vec<(String, Vec<u8>)> = Vec::new();
    let mut wanted = vec![MODULE.to_owned()];
    while let Some(module) = wanted.pop() {
        // Once more further to the front, if another one needs it earlier.
        order.retain(|(name, _)| *name != module);
        let file = named(&|name| name.split_once(".ko").is_some_and(|(stem, _)| stem == module))
            .with_context(|| format!("no {module}.ko in it"))?;
        let bytes = read_module(file)?;
        wanted.extend(depends(&bytes));
        order.push((module, bytes));
    }
    for (place, (module, bytes)) in order.iter().rev().enumerate() {
        paths::write_atomic(&kept.join(format!("{place}-{module}.ko")), bytes)?;
    }
    Ok(())
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// Debian has compressed them since its release 13.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "xz") {
        return Ok(proc::output(Command::new("xz").arg("-dc").arg(path))?.stdout);
    }
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Of the strings in `.modinfo`, "depends=A,B". File names may have a dash where it has an underscore.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let found = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(KEY));
    let text = String::from_utf8_lossy(found.unwrap_or_default()).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
}

fn open(copy: PathBuf) -> Result<Kernel> {
    let files = files_below(&copy)?;
    let mut modules: Vec<PathBuf> =
        files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "ko")).collect();
    modules.sort();
    let key = copy.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { bzimage: copy.join(IMAGE), key, modules })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn what_a_module_needs() {
        assert_eq!(depends(&module("kvm,ccp")), ["kvm", "ccp"]);
        assert!(depends(&module("")).is_empty() && depends(b"\x7fELF").is_empty());
    }

    #[test]
    fn modules_are_kept_in_the_order_in_which_they_are_loaded() {
        let dir = tempfile::TempDir::new().unwrap();
        let (root, kept) = (dir.path().join("root"), dir.path().join("stock_x"));
        let put = |name: &str, bytes: &[u8]| paths::write_atomic(&root.join(name), bytes).unwrap();
        put("boot/vmlinuz-1", b"image");
        put("lib/kvm-amd.ko", &module("kvm,ccp"));
        put("lib/kvm.ko", &module("irqbypass"));
        put("lib/ccp.ko", &module("kvm"));
        put("lib/irqbypass.ko", &module(""));
        put("lib/other.ko", &module(""));
        keep(&root, &kept).unwrap();
        let kernel = open(kept).unwrap();
        let names: Vec<_> =
            kernel.modules.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["0-irqbypass.ko", "1-kvm.ko", "2-ccp.ko", "3-kvm-amd.ko"]);
        assert_eq!(std::fs::read(kernel.bzimage).unwrap(), b"image");
        assert_eq!(newest(dir.path()), Some(dir.path().join("stock_x")));
    }
}
