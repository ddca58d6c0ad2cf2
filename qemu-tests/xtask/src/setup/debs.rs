//! Debian's packages without installing them: downloaded by apt, which checks them, and unpacked somewhere.

use crate::proc;
use crate::ui::Stage;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};

/// Downloads `packages` (NAME or NAME=VERSION) for `what` into the directory `to`; false if that failed.
pub(crate) fn download<'a>(
    what: &str,
    packages: impl ExactSizeIterator<Item = &'a str>,
    to: &Path,
) -> Result<bool> {
    let stage = Stage::new(format!("{what}: downloading {} packages", packages.len()), None);
    let mut command = Command::new("apt-get");
    command
        .args(["download", "-q"])
        .args(packages)
        .current_dir(to)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let out = proc::output(&mut command)?;
    if out.status.success() {
        stage.done("");
        return Ok(true);
    }
    for line in String::from_utf8_lossy(&out.stderr).lines().filter(|l| l.starts_with("E:")) {
        stage.line(line);
    }
    stage.done("failed");
    Ok(false)
}

/// Unpacks all packages in `debs` below `root`.
pub(crate) fn unpack(what: &str, debs: &Path, root: &Path) -> Result<()> {
    let stage = Stage::new(format!("{what}: unpacking"), None);
    for entry in std::fs::read_dir(debs).with_context(|| format!("reading {}", debs.display()))? {
        let deb = entry.with_context(|| format!("reading {}", debs.display()))?.path();
        proc::stdout_of(Command::new("dpkg").arg("-x").arg(&deb).arg(root))?;
    }
    stage.done("");
    Ok(())
}
