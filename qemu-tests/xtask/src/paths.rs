//! Where things are: the checkout, its target directory, the cache outside it.

use crate::error::{Kind, fail};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The top of the checkout.
pub(crate) fn root() -> &'static Path {
    // The manifest directory is <root>/qemu-tests/xtask; both parents exist by construction.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// Where reports, logs and guest binaries go.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// The cache for kernels: $VE_APF_CACHE, $XDG_CACHE_HOME/ve-apf or ~/.cache/ve-apf.
pub(crate) fn cache() -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = if let Some(dir) = var("VE_APF_CACHE") {
        dir
    } else if let Some(dir) = var("XDG_CACHE_HOME") {
        dir.join("ve-apf")
    } else if let Some(home) = var("HOME") {
        home.join(".cache/ve-apf")
    } else {
        return Err(fail(Kind::Environment, "no cache directory", "set VE_APF_CACHE or HOME"));
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// Writes `bytes` so that a reader sees the old content or the new one, never half of it.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let file = tempfile::Builder::new()
        .prefix(".xtask-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .with_context(|| format!("writing {}", path.display()))?;
    std::io::Write::write_all(&mut file.as_file(), bytes)
        .with_context(|| format!("writing {}", path.display()))?;
    file.persist(path)
        .map_err(|e| e.error)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// Refuses early when fewer than `gib` GiB are free at `dir`.
pub(crate) fn need_space(dir: &Path, gib: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)
        .with_context(|| format!("asking for free space at {}", dir.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize) >> 30;
    if free < gib {
        return Err(fail(
            Kind::Environment,
            format!("{} has {free} GiB free, {gib} GiB are needed", dir.display()),
            "free some, or set VE_APF_CACHE to a directory on another disk",
        ));
    }
    Ok(())
}

/// Hex sha256 of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
