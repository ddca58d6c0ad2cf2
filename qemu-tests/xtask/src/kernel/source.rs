//! The kernel source: Debian's package, unpacked once per version.

use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian's linux-source-6.12 installs this.
pub(crate) const TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";
const STAMP: &str = ".ve-apf-source";

/// Identifies the source: the package's version, or the size and date of the file.
pub(crate) fn version() -> Result<String> {
    let meta = std::fs::metadata(TARBALL).map_err(|_| {
        fail(
            Kind::Environment,
            format!("{TARBALL} is missing"),
            "run `cargo xtask setup` (package linux-source-6.12)",
        )
    })?;
    let package = proc::stdout_of(Command::new("dpkg-query").args([
        "-W",
        "-f",
        "${Version}",
        "linux-source-6.12",
    ]));
    match package {
        Ok(version) if !version.is_empty() => Ok(version),
        _ => {
            let time =
                meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            Ok(format!("{}-{}", meta.len(), time.unwrap_or_default().as_secs()))
        }
    }
}

/// The tree in the cache, unpacked if it is not there in this version.
pub(crate) fn unpack(cache: &Path, version: &str) -> Result<PathBuf> {
    let tree = cache.join("linux");
    if std::fs::read_to_string(tree.join(STAMP)).is_ok_and(|v| v == version) {
        return Ok(tree);
    }
    remove(&tree)?;
    let new = cache.join("linux.new");
    remove(&new)?;
    paths::need_space(cache, 4)?;
    std::fs::create_dir_all(&new).with_context(|| format!("creating {}", new.display()))?;
    let stage = Stage::new(format!("kernel: unpacking {TARBALL}"), None);
    let mut command = Command::new("tar");
    command
        .args(["-x", "-I", "xz -T0", "--strip-components=1", "-f", TARBALL, "-C"])
        .arg(&new)
        .stdin(Stdio::null());
    let status = proc::Running::spawn(&mut command)?.wait()?;
    if !status.success() {
        remove(&new)?;
        return Err(fail(
            Kind::Environment,
            format!("tar could not unpack {TARBALL} to {}", cache.display()),
            "free some disk space, or reinstall linux-source-6.12",
        ));
    }
    std::fs::write(new.join(STAMP), version)
        .with_context(|| format!("writing {}", new.join(STAMP).display()))?;
    std::fs::rename(&new, &tree).with_context(|| format!("renaming {}", new.display()))?;
    stage.done("");
    Ok(tree)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}
