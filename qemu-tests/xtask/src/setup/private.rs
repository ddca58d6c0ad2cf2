//! A package that cannot be installed beside what the user has: unpacked into the cache, with what it depends on.
//! Nothing is installed, removed or downgraded, and no root is needed.

use super::{debs, have};
use crate::error::{Kind, fail};
use crate::tools::{self, QEMU_PACKAGE, Qemu};
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::process::Command;

/// What apt would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// NAME=VERSION of what would be installed.
    install: Vec<String>,
    /// Packages that would have to go.
    pub(super) remove: Vec<String>,
}

/// What installing `package` would take; None if apt sees no way.
pub(super) fn plan(package: &str) -> Option<Plan> {
    let args = ["--simulate", "install", "-y", "--no-install-recommends", package];
    let text = proc::stdout_of(Command::new("apt-get").args(args).env("LC_ALL", "C")).ok()?;
    Some(parse(&text))
}

/// "Inst NAME [OLD] (VERSION ORIGIN [ARCH])" and "Remv NAME [OLD]".
fn parse(text: &str) -> Plan {
    let mut plan = Plan::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (what, Some(name)) = (words.next(), words.next()) else { continue };
        match what {
            Some("Inst") => {
                let version = line.split_once('(').and_then(|(_, rest)| rest.split(' ').next());
                plan.install.extend(version.map(|v| format!("{name}={v}")));
            }
            Some("Remv") => plan.remove.push(name.to_owned()),
            _ => {}
        }
    }
    plan
}

/// Downloads QEMU and unpacks it into the cache; false if the download failed.
pub(super) fn qemu(plan: &Plan) -> Result<bool> {
    if !have("dpkg") {
        return Err(fail(Kind::Environment, "dpkg is missing", "install QEMU yourself"));
    }
    let version = plan
        .install
        .iter()
        .find_map(|p| p.strip_prefix(QEMU_PACKAGE)?.strip_prefix('='))
        .context("apt-get would not install QEMU at all")?;
    let dir = tools::private_dir()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    paths::need_space(&dir, 1)?;
    let copy = dir.join(copy_name(version));
    // It goes away by itself if anything fails.
    let new = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(&dir)
        .with_context(|| format!("creating a directory in {}", dir.display()))?;
    let archives = new.path().join("debs");
    let root = new.path().join("root");
    for d in [&archives, &root] {
        std::fs::create_dir(d).with_context(|| format!("creating {}", d.display()))?;
    }
    // The dynamic linker is the system's, so the C library has to be, too.
    let packages = plan.install.iter().filter(|p| !p.starts_with("libc6="));
    let packages: Vec<&str> = packages.map(String::as_str).collect();
    if !debs::download("QEMU", packages.into_iter(), &archives)? {
        return Ok(false);
    }
    debs::unpack("QEMU", &archives, &root)?;
    if !Qemu::at(root.clone()).runs() {
        return Err(fail(
            Kind::Environment,
            format!("the private copy of QEMU {version} does not start"),
            format!("install {QEMU_PACKAGE} yourself; it conflicts with {}", plan.remove.join(" ")),
        ));
    }
    if copy.exists() {
        // It is not one that starts, or we would not be here.
        std::fs::remove_dir_all(&copy).with_context(|| format!("removing {}", copy.display()))?;
    }
    std::fs::rename(&root, &copy).with_context(|| format!("creating {}", copy.display()))?;
    Ok(true)
}

/// A colon would divide LD_LIBRARY_PATH; apt writes it like this in file names, too.
fn copy_name(version: &str) -> String {
    format!("{QEMU_PACKAGE}_{}", version.replace(':', "%3a"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_do() {
        let text = "Reading package lists...\nRemv qemu-utils [1:10.0.2+ds-2]\n\
                    Inst libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])\n\
                    Inst libnl-3-200 [3.6] (3.7.0-0.2+b1 Debian:12.15/oldstable [amd64]) []\n\
                    Conf libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])\n";
        let plan = parse(text);
        assert_eq!(plan.install, ["libfdt1=1.6.1-4+b1", "libnl-3-200=3.7.0-0.2+b1"]);
        assert_eq!(plan.remove, ["qemu-utils"]);
    }

    #[test]
    fn a_copy_can_be_in_a_search_path() {
        assert_eq!(copy_name("1:7.2+dfsg-7"), "qemu-system-x86_1%3a7.2+dfsg-7");
    }
}
