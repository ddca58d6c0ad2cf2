//! Which files of this repository go where in a kernel tree.

use crate::error::{Kind, fail};
use crate::series::{self, Patch};
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The two halves of the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// arch/x86: the #VE handler.
    Guest,
    /// KVM: the completion-injection engine.
    Host,
}

impl Side {
    /// In the order in which they are applied to one tree.
    pub(crate) const ALL: [Self; 2] = [Self::Guest, Self::Host];

    /// The file that records what was done to a tree.
    pub(crate) fn stamp(self) -> &'static str {
        match self {
            Self::Guest => ".ve-apf-guest",
            Self::Host => ".ve-apf-host",
        }
    }

    fn patches(self) -> &'static str {
        match self {
            Self::Guest => "guest/linux/patches",
            Self::Host => "host-kvm-patch/kvm/patches",
        }
    }
}

/// Where an installed file comes from.
enum From {
    /// Every .rs file below a directory of this repository.
    Sources(&'static str),
    /// The sources of a crate from the registry.
    Crate(&'static str),
    /// One file of this repository.
    File(&'static str),
}

struct Rule {
    sides: &'static [Side],
    from: From,
    to: &'static str,
}

const fn rule(sides: &'static [Side], from: From, to: &'static str) -> Rule {
    Rule { sides, from, to }
}

const GUEST: &[Side] = &[Side::Guest];
const HOST: &[Side] = &[Side::Host];
const BOTH: &[Side] = &[Side::Guest, Side::Host];

/// The mapping, repository to kernel tree.
const TABLE: &[Rule] = &[
    rule(BOTH, From::File("abi/kbuild/Makefile.ve_apf"), "scripts/Makefile.ve_apf"),
    rule(BOTH, From::File("abi/include/ve_apf_abi.h"), "include/linux/ve_apf_abi.h"),
    rule(GUEST, From::Sources("guest/linux/rust"), "arch/x86/kernel/ve_apf/rust"),
    rule(GUEST, From::Sources("abi/kbuild"), "arch/x86/kernel/ve_apf/rust"),
    rule(GUEST, From::Sources("abi/src"), "arch/x86/kernel/ve_apf/rust/abi"),
    rule(GUEST, From::Sources("guest/src"), "arch/x86/kernel/ve_apf/rust/guest"),
    rule(GUEST, From::Crate("bitflags"), "arch/x86/kernel/ve_apf/rust/bitflags"),
    rule(GUEST, From::Crate("static_assertions"), "arch/x86/kernel/ve_apf/rust/static_assertions"),
    rule(HOST, From::Sources("host-kvm-patch/kvm/rust"), "arch/x86/kvm/ve_apf/rust"),
    rule(HOST, From::Sources("abi/kbuild"), "arch/x86/kvm/ve_apf/rust"),
    rule(HOST, From::Sources("abi/src"), "arch/x86/kvm/ve_apf/rust/abi"),
    rule(HOST, From::Sources("host-kvm-patch/src"), "arch/x86/kvm/ve_apf/rust/host"),
    rule(HOST, From::Crate("bitflags"), "arch/x86/kvm/ve_apf/rust/bitflags"),
    rule(HOST, From::Crate("static_assertions"), "arch/x86/kvm/ve_apf/rust/static_assertions"),
];

/// What one side wants in a tree: patches, and files by path in the tree.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    /// Which half.
    pub(crate) side: Side,
    /// The series.
    pub(crate) patches: Vec<Patch>,
    /// Installed files.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Want {
    /// Everything of `side` as this checkout has it.
    pub(crate) fn load(side: Side) -> Result<Self> {
        let root = paths::root();
        let patches = series::read(&root.join(side.patches()))?;
        let mut files = BTreeMap::new();
        // A side without a series has nothing that would use the files.
        if !patches.is_empty() {
            let crates = registry_crates(root)?;
            for rule in TABLE.iter().filter(|r| r.sides.contains(&side)) {
                collect(root, &crates, rule, &mut files)?;
            }
        }
        Ok(Self { side, patches, files })
    }

    /// Identifies the content; a tree with this hash in its stamp is up to date.
    pub(crate) fn hash(&self) -> String {
        let mut all = Vec::new();
        for patch in &self.patches {
            all.extend(
                format!("patch {} {}\n", patch.name, paths::sha256(patch.text.as_bytes())).bytes(),
            );
        }
        for (path, bytes) in &self.files {
            all.extend(format!("file {path} {}\n", paths::sha256(bytes)).bytes());
        }
        paths::sha256(&all)
    }
}

fn collect(
    root: &Path,
    crates: &HashMap<String, PathBuf>,
    rule: &Rule,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    match rule.from {
        From::File(path) => {
            files.insert(rule.to.to_owned(), read(&root.join(path))?);
            Ok(())
        }
        From::Sources(path) => rust_files(&root.join(path), rule.to, files),
        From::Crate(name) => {
            let dir = crates.get(name).ok_or_else(|| {
                fail(
                    Kind::Environment,
                    format!("cargo does not know the crate {name}"),
                    "run `cargo fetch`",
                )
            })?;
            rust_files(&dir.join("src"), rule.to, files)?;
            // The crate's licence travels with its sources.
            let licence = dir.join("LICENSE-MIT");
            if licence.exists() {
                files.insert(format!("{}/LICENSE-MIT", rule.to), read(&licence)?);
            }
            Ok(())
        }
    }
}

/// Every .rs file below `dir`, unit tests in files of their own left out.
fn rust_files(dir: &Path, to: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let to = format!("{to}/{name}");
        if path.is_dir() {
            if name != "tests" {
                rust_files(&path, &to, files)?;
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.insert(to, read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Where cargo keeps the sources of the packages in our lock file.
fn registry_crates(root: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1"]).current_dir(root);
    let text = proc::stdout_of(&mut command)?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("reading cargo metadata")?;
    let packages = metadata.get("packages").and_then(|p| p.as_array());
    let pairs = packages.into_iter().flatten().filter_map(|package| {
        let name = package.get("name")?.as_str()?;
        let manifest = package.get("manifest_path")?.as_str()?;
        // Another crate may depend on an older major version; we use the newest.
        Some((
            name.to_owned(),
            package.get("version")?.as_str()?.to_owned(),
            Path::new(manifest).parent()?.to_owned(),
        ))
    });
    let mut newest: HashMap<String, (Vec<u64>, PathBuf)> = HashMap::new();
    for (name, version, dir) in pairs {
        let version: Vec<u64> =
            version.split(['.', '-', '+']).filter_map(|n| n.parse().ok()).collect();
        if newest.get(&name).is_none_or(|(old, _)| *old < version) {
            newest.insert(name, (version, dir));
        }
    }
    Ok(newest.into_iter().map(|(name, (_, dir))| (name, dir)).collect())
}
