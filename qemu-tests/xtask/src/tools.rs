//! Where Debian's programs are: installed, or, where the system's packages do not let QEMU be installed, or for what would
//! start a service, a private copy in the cache (see setup/private.rs), which needs to be told where its libraries and its
//! firmware are.

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

/// The server that is restored from a snapshot.
pub(crate) const SERVER: &str = "/usr/bin/memcached";
/// Debian's name of its package.
pub(crate) const SERVER_PACKAGE: &str = "memcached";

/// Where a program was installed to, or unpacked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix(Option<PathBuf>);

impl Prefix {
    /// Unpacked below `dir`.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self(Some(dir))
    }

    /// Makes the dynamic linker look into the private copy first.
    pub(crate) fn set_libraries(&self, command: &mut Command) {
        let Some(prefix) = &self.0 else { return };
        let mut path = std::ffi::OsString::new();
        for dir in LIBRARIES.map(|l| prefix.join(l)) {
            path.push(dir);
            path.push(":");
        }
        path.push(std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default());
        command.env("LD_LIBRARY_PATH", path.to_string_lossy().trim_end_matches(':'));
    }

    /// Where the file is that an installed program has at `standard`.
    pub(crate) fn locate(&self, standard: &str) -> PathBuf {
        self.0
            .iter()
            .map(|prefix| prefix.join(standard.trim_start_matches('/')))
            .find(|path| path.exists())
            .unwrap_or_else(|| standard.into())
    }

    /// The name that the file at `path` would have if it were installed.
    pub(crate) fn standard_name(&self, path: &Path) -> PathBuf {
        match self.0.as_ref().and_then(|prefix| path.strip_prefix(prefix).ok()) {
            Some(inside) => Path::new("/").join(inside),
            None => path.to_owned(),
        }
    }

    /// Does the server start from here?
    pub(crate) fn server_runs(&self) -> bool {
        let mut command = Command::new(self.locate(SERVER));
        self.set_libraries(&mut command);
        proc::stdout_of(command.arg("-V")).is_ok()
    }
}

/// A QEMU that can be started.
#[derive(Debug)]
pub(crate) struct Qemu {
    /// Of its files.
    pub(crate) prefix: Prefix,
}

impl Qemu {
    /// The installed one, or else a private copy, or else none.
    pub(crate) fn find() -> Result<Option<Self>> {
        if setup::have(QEMU) {
            return Ok(Some(Self { prefix: Prefix::default() }));
        }
        // A copy uses libraries of the system that may be gone since.
        Ok(copies(QEMU_PACKAGE)?.map(Self::at).find(Self::runs))
    }

    /// The one unpacked below `prefix`.
    pub(crate) fn at(prefix: PathBuf) -> Self {
        Self { prefix: Prefix::at(prefix) }
    }

    /// Does it start?
    pub(crate) fn runs(&self) -> bool {
        proc::stdout_of(self.command().arg("--version")).is_ok()
    }

    /// The program, with what it needs to find its parts.
    pub(crate) fn command(&self) -> Command {
        let Some(prefix) = &self.prefix.0 else { return Command::new(QEMU) };
        let mut command = Command::new(prefix.join("usr/bin").join(QEMU));
        self.prefix.set_libraries(&mut command);
        for root in [prefix.as_path(), Path::new("/")] {
            for dir in FIRMWARE.map(|f| root.join(f)).iter().filter(|d| d.is_dir()) {
                command.arg("-L").arg(dir);
            }
        }
        command
    }
}

/// The server, if it is installed or was unpacked.
pub(crate) fn server() -> Result<Option<Prefix>> {
    let installed = std::iter::once(Prefix::default()).filter(|_| Path::new(SERVER).exists());
    Ok(installed.chain(copies(SERVER_PACKAGE)?.map(Prefix::at)).find(Prefix::server_runs))
}

/// Private copies of a package, the newest first.
fn copies(package: &'static str) -> Result<impl Iterator<Item = PathBuf>> {
    let entries = std::fs::read_dir(private_dir()?).ok();
    let paths = entries.into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let mut copies: Vec<PathBuf> = paths
        .filter(|p| is_copy(package, p.file_name().unwrap_or_default().to_string_lossy().as_ref()))
        .collect();
    copies.sort();
    Ok(copies.into_iter().rev())
}

/// Private copies are here.
pub(crate) fn private_dir() -> Result<PathBuf> {
    Ok(paths::cache()?.join("tools"))
}

/// A private copy's directory is called PACKAGE_VERSION; while it is being made it begins with a dot.
fn is_copy(package: &str, name: &str) -> bool {
    name.strip_prefix(package).is_some_and(|rest| rest.starts_with('_'))
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
        let prefix = &qemu.prefix;
        assert_eq!(prefix.locate("/usr/share/qemu/pvh.bin"), file);
        assert_eq!(prefix.standard_name(&file), Path::new("/usr/share/qemu/pvh.bin"));
        // What the copy lacks is the system's.
        assert_eq!(prefix.locate("/etc/os-release"), Path::new("/etc/os-release"));
        assert_eq!(prefix.standard_name(Path::new("/lib/x.so")), Path::new("/lib/x.so"));
        let command = format!("{:?}", qemu.command());
        assert!(command.contains("LD_LIBRARY_PATH") && command.contains("usr/share/qemu"));
    }

    #[test]
    fn an_installed_one_is_called_by_its_name() {
        let qemu = Qemu { prefix: Prefix::default() };
        assert_eq!(format!("{:?}", qemu.command()), format!("{QEMU:?}"));
        assert_eq!(qemu.prefix.locate("/usr/x"), Path::new("/usr/x"));
    }

    #[test]
    fn half_made_copies_are_not_found() {
        assert!(is_copy(QEMU_PACKAGE, "qemu-system-x86_1%3a7.2+dfsg-7"));
        assert!(
            !is_copy(QEMU_PACKAGE, ".new-x") && !is_copy(QEMU_PACKAGE, "qemu-system-x86-xen_1")
        );
    }
}
