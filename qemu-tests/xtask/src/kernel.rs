//! The test kernel: one bzImage for host and guest, kept in a cache outside the checkout.

use crate::error::{Kind, fail};
use crate::install::{Side, Want};
use crate::ui::Stage;
use crate::{paths, proc, tree};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

mod build;
pub(crate) mod source;
mod stock;
pub(crate) mod symbols;

/// Change this when the way of building changes, so that old entries are not found.
const FORMAT: &str = "2";
/// Entries that survive.
const KEEP: usize = 4;
/// Applied first; other fragments follow by name.
const FIRST_FRAGMENT: &str = "kernel.config";

/// A kernel in the cache.
pub(crate) struct Kernel {
    /// The image.
    pub(crate) bzimage: PathBuf,
    /// Names its inputs.
    pub(crate) key: String,
    /// What L1 has to load to have KVM, in this order.
    pub(crate) modules: Vec<PathBuf>,
}

/// Which kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Flavour {
    /// As fast as it can be.
    #[default]
    Plain,
    /// With KASAN, lockdep and kmemleak: `kernel/debug` on top of `kernel`.
    Debug,
    /// Debian's own, not built here.
    Stock,
}

impl Flavour {
    fn build_dir(self) -> &'static str {
        match self {
            Self::Plain => "build-lab",
            Self::Debug => "build-lab-debug",
            Self::Stock => "",
        }
    }

    fn fragments(self) -> Result<Vec<Fragment>> {
        let dir = paths::root().join("qemu-tests/kernel");
        let mut all = fragments(&dir)?;
        if self == Self::Debug {
            all.extend(fragments(&dir.join("debug"))?);
        }
        Ok(all)
    }
}

/// A configuration fragment by name.
struct Fragment {
    name: String,
    text: String,
}

/// The image the user gives, or the one for this checkout.
pub(crate) fn given_or_built(image: Option<&Path>) -> Result<Kernel> {
    let Some(image) = image else { return ensure(Flavour::Plain) };
    let bytes = std::fs::read(image).map_err(|e| {
        fail(Kind::Usage, format!("{} cannot be read ({e})", image.display()), "give a bzImage")
    })?;
    let mut key = paths::sha256(&bytes);
    key.truncate(24);
    Ok(Kernel { bzimage: image.to_owned(), key, modules: Vec::new() })
}

/// Finds the kernel for this checkout in the cache, or builds it.
pub(crate) fn ensure(flavour: Flavour) -> Result<Kernel> {
    if flavour == Flavour::Stock {
        return stock::ensure();
    }
    let wants = Side::ALL.into_iter().map(Want::load).collect::<Result<Vec<_>>>()?;
    let fragments = flavour.fragments()?;
    let version = source::version()?;
    let key = key(&version, &wants, &fragments)?;
    let cache = paths::cache()?;
    let entry = cache.join("images").join(&key);
    let kernel = Kernel { bzimage: entry.join("bzImage"), key, modules: Vec::new() };
    if use_entry(&entry) {
        return Ok(kernel);
    }
    let _lock = lock(&cache)?;
    // Somebody else may have built it while we waited.
    if use_entry(&entry) {
        return Ok(kernel);
    }
    let source = source::unpack(&cache, &version)?;
    let changes = tree::plan(&source, &wants, tree::Edited::Replace)?;
    tree::commit(&source, &changes)?;
    let config = fragments.iter().map(|f| f.text.as_str()).collect::<Vec<_>>().join("\n");
    let build_dir = cache.join(flavour.build_dir());
    let image = build::bzimage(&source, &build_dir, &config, &cache.join("logs"))?;
    for (from, to) in [
        (build_dir.join(".config"), "config"),
        (build_dir.join("System.map"), "System.map"),
        (image, "bzImage"),
    ] {
        // The image comes last: an entry with one is complete.
        let bytes = std::fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        paths::write_atomic(&entry.join(to), &bytes)?;
    }
    prune(&cache.join("images"))?;
    Ok(kernel)
}

/// True if the entry is complete; notes that it was used.
fn use_entry(entry: &Path) -> bool {
    let image = entry.join("bzImage");
    if !image.exists() {
        return false;
    }
    // Only the order of pruning depends on this.
    let _ = std::fs::File::open(&image).and_then(|f| f.set_modified(SystemTime::now()));
    true
}

fn fragments(dir: &Path) -> Result<Vec<Fragment>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        if path.extension().is_some_and(|e| e == "config") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("reading {}", path.display()))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push(Fragment { name, text });
        }
    }
    all.sort_by_key(|f| (f.name != FIRST_FRAGMENT, f.name.clone()));
    Ok(all)
}

fn key(version: &str, wants: &[Want], fragments: &[Fragment]) -> Result<String> {
    let mut text = format!("format {FORMAT}\nsource {version}\n");
    for want in wants {
        text.push_str(&format!("{:?} {}\n", want.side, want.hash()));
    }
    for fragment in fragments {
        text.push_str(&format!(
            "config {} {}\n",
            fragment.name,
            paths::sha256(fragment.text.as_bytes())
        ));
    }
    for tool in [
        &["gcc", "--version"][..],
        &["ld", "--version"],
        &["rustc", "-vV"],
        &["/usr/bin/rustc", "-vV"],
    ] {
        // A compiler that is not there is part of the key like any other.
        let version = proc::stdout_of(Command::new(tool[0]).args(&tool[1..])).unwrap_or_default();
        text.push_str(&format!("tool {} {version}\n", tool[0]));
    }
    let mut key = paths::sha256(text.as_bytes());
    key.truncate(24);
    Ok(key)
}

/// One build at a time in a cache.
fn lock(cache: &Path) -> Result<std::fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let path = cache.join("lock");
    let file =
        std::fs::File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let stage = Stage::new("kernel: waiting for another build in this cache", None);
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("locking {}", path.display()))?;
        stage.done("");
    }
    Ok(file)
}

fn prune(images: &Path) -> Result<()> {
    let mut entries: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(images)
        .with_context(|| format!("reading {}", images.display()))?
        .filter_map(|e| {
            let path = e.ok()?.path();
            let used = std::fs::metadata(path.join("bzImage"))
                .and_then(|m| m.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH);
            Some((used, path))
        })
        .collect();
    entries.sort();
    let excess = entries.len().saturating_sub(KEEP);
    for (_, path) in entries.into_iter().take(excess) {
        std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_fragment_comes_first() {
        let dir = tempfile::TempDir::new().unwrap();
        for name in ["a.config", "kernel.config", "z.config", "README"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let names: Vec<String> =
            fragments(dir.path()).unwrap().into_iter().map(|f| f.name).collect();
        assert_eq!(names, ["kernel.config", "a.config", "z.config"]);
    }

    #[test]
    fn the_newest_four_survive() {
        let dir = tempfile::TempDir::new().unwrap();
        for i in 0..6_u64 {
            let entry = dir.path().join(format!("e{i}"));
            paths::write_atomic(&entry.join("bzImage"), b"").unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 - i);
            std::fs::File::open(entry.join("bzImage")).unwrap().set_modified(time).unwrap();
        }
        prune(dir.path()).unwrap();
        assert!(dir.path().join("e0").exists() && dir.path().join("e3").exists());
        assert!(!dir.path().join("e4").exists() && !dir.path().join("e5").exists());
    }
}
