//! A package that cannot be installed beside what the user has, or should not be: unpacked into the cache, with what it depends on.
//! Nothing is installed, removed or downgraded, and no root is needed.

use super::{debs, have};
use crate::error::{Kind, fail};
use crate::tools::{self, Prefix, Qemu};
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::path::PathBuf;
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

/// What is unpacked.
pub(super) struct Package {
    /// Debian's name.
    pub(super) name: &'static str,
    /// For messages.
    pub(super) what: &'static str,
    /// Does what was unpacked here start?
    pub(super) runs: fn(PathBuf) -> bool,
}

/// QEMU.
pub(super) const QEMU: Package =
    Package { name: tools::QEMU_PACKAGE, what: "QEMU", runs: |root| Qemu::at(root).runs() };
/// The server: installed, it would be started.
pub(super) const SERVER: Package = Package {
    name: tools::SERVER_PACKAGE,
    what: "memcached",
    runs: |root| Prefix::at(root).server_runs(),
};

/// Downloads a package and unpacks it into the cache; false if the download failed.
pub(super) fn unpack(package: &Package, plan: &Plan) -> Result<bool> {
    let Package { name, what, runs } = package;
    if !have("dpkg") {
        return Err(fail(Kind::Environment, "dpkg is missing", format!("install {what} yourself")));
    }
    let version = plan
        .install
        .iter()
        .find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
        .with_context(|| format!("apt-get would not install {what} at all"))?;
    let dir = tools::private_dir()?;
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    paths::need_space(&dir, 1)?;
    let copy = dir.join(copy_name(name, version));
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
    if !debs::download(what, packages.into_iter(), &archives)? {
        return Ok(false);
    }
    debs::unpack(what, &archives, &root)?;
    if !runs(root.clone()) {
        return Err(fail(
            Kind::Environment,
            format!("the private copy of {what} {version} does not start"),
            format!("install {name} yourself; it conflicts with: {}", plan.remove.join(" ")),
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
fn copy_name(package: &str, version: &str) -> String {
    format!("{package}_{}", version.replace(':', "%3a"))
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
        assert_eq!(
            copy_name(tools::QEMU_PACKAGE, "1:7.2+dfsg-7"),
            "qemu-system-x86_1%3a7.2+dfsg-7"
        );
    }
}
