//! Where QEMU is: installed, or, where the system's packages do not let it be installed, a private copy in the cache
//! (see setup/private.rs), which needs to be told where its libraries and its firmware are.

use crate::{paths, proc, setup};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Debian's name of the package; a private copy's directory begins with it.
pub(crate) const QEMU_PACKAGE: &str = "qemu-system-x86";

/// Where Debian's packages have libraries, below a prefix.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// Where Debian's QEMU looks for firmware. A private copy may use the system's: seabios is a package of its own.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU that can be started.
#[derive(Debug)]
pub(crate) struct Qemu {
    /// The private copy; None is the installed one.
    prefix: Option<PathBuf>,
}

impl Qemu {
    /// The installed one, or else a private copy, or else none.
    pub(crate) fn find() -> Result<Option<Self>> {
        if setup::have(QEMU) {
            return Ok(Some(Self { prefix: None }));
        }
        let Ok(entries) = std::fs::read_dir(private_dir()?) else { return Ok(None) };
        let mut copies: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| is_copy(p.file_name().unwrap_or_default().to_string_lossy().as_ref()))
            .collect();
        copies.sort();
        // A copy uses libraries of the system that may be gone since.
        Ok(copies.into_iter().rev().map(Self::at).find(Self::runs))
    }

    /// The one unpacked below `prefix`.
    pub(crate) fn at(prefix: PathBuf) -> Self {
        Self { prefix: Some(prefix) }
    }

    /// Does it start?
    pub(crate) fn runs(&self) -> bool {
        proc::stdout_of(self.command().arg("--version")).is_ok()
    }

    /// The program, with what it needs to find its parts.
    pub(crate) fn command(&self) -> Command {
        let Some(prefix) = &self.prefix else { return Command::new(QEMU) };
        let mut command = Command::new(prefix.join("usr/bin").join(QEMU));
        self.set_libraries(&mut command);
        for root in [prefix.as_path(), Path::new("/")] {
            for dir in FIRMWARE.map(|f| root.join(f)).iter().filter(|d| d.is_dir()) {
                command.arg("-L").arg(dir);
            }
        }
        command
    }

    /// Makes the dynamic linker look into the private copy first.
    pub(crate) fn set_libraries(&self, command: &mut Command) {
        let Some(prefix) = &self.prefix else { return };
        let mut path = std::ffi::OsString::new();
        for dir in LIBRARIES.map(|l| prefix.join(l)) {
            path.push(dir);
            path.push(":");
        }
        path.push(std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
        command.env("LD_LIBRARY_PATH", path.to_string_lossy().trim_end_matches(':'));
    }

    /// Where the file is that an installed QEMU has at `standard`.
    pub(crate) fn locate(&self, standard: &str) -> PathBuf {
        self.prefix
            .iter()
            .map(|prefix| prefix.join(standard.trim_start_matches('/')))
            .find(|path| path.exists())
            .unwrap_or_else(|| standard.into())
    }

    /// The name that the file at `path` would have if it were installed.
    pub(crate) fn standard_name(&self, path: &Path) -> PathBuf {
        match self.prefix.as_ref().and_then(|prefix| path.strip_prefix(prefix).ok()) {
            Some(inside) => Path::new("/").join(inside),
            None => path.to_owned(),
        }
    }
}

/// Private copies are here.
pub(crate) fn private_dir() -> Result<PathBuf> {
    Ok(paths::cache()?.join("tools"))
}

/// A private copy's directory is called PACKAGE_VERSION; while it is being made it begins with a dot.
fn is_copy(name: &str) -> bool {
    name.strip_prefix(QEMU_PACKAGE).is_some_and(|rest| rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_copy_has_the_standard_names_below_its_prefix() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("usr/share/qemu/pvh.bin");
        paths::write_atomic(&file, b"x").unwrap();
        let qemu = Qemu::at(dir.path().to_owned());
        assert_eq!(qemu.locate("/usr/share/qemu/pvh.bin"), file);
        assert_eq!(qemu.standard_name(&file), Path::new("/usr/share/qemu/pvh.bin"));
        // What the copy lacks is the system's.
        assert_eq!(qemu.locate("/etc/os-release"), Path::new("/etc/os-release"));
        assert_eq!(qemu.standard_name(Path::new("/lib/x.so")), Path::new("/lib/x.so"));
        let command = format!("{:?}", qemu.command());
        assert!(command.contains("LD_LIBRARY_PATH") && command.contains("usr/share/qemu"));
    }

    #[test]
    fn an_installed_one_is_called_by_its_name() {
        let qemu = Qemu { prefix: None };
        assert_eq!(format!("{:?}", qemu.command()), format!("{QEMU:?}"));
        assert_eq!(qemu.locate("/usr/x"), Path::new("/usr/x"));
    }

    #[test]
    fn half_made_copies_are_not_found() {
        assert!(is_copy("qemu-system-x86_1%3a7.2+dfsg-7"));
        assert!(!is_copy(".new-x") && !is_copy("qemu-system-x86-xen_1"));
    }
}
