//! Changing a kernel tree: work out every change first, then make all of them or none.

use crate::error::{Kind, fail};
use crate::install::{Side, Want};
use crate::series::Patch;
use crate::{paths, proc};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

mod commit;
#[cfg(test)]
mod tests;

pub(crate) use commit::{Change, commit};

/// The kernel version that the series are made for.
pub(crate) const VERSION: (u32, u32) = (6, 12);

/// What a stamp file records: enough to undo.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    note: String,
    hash: String,
    /// Installed files and their sha256.
    files: BTreeMap<String, String>,
    /// The series as it was applied.
    patches: Vec<Patch>,
}

/// What to do about files that somebody changed after they were installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edited {
    /// Say which, change nothing.
    Refuse,
    /// It is our own tree in the cache: replace them.
    Replace,
}

/// Every change that makes `dir` hold what `wants` asks for; empty when it does already.
pub(crate) fn plan(dir: &Path, wants: &[Want], edited: Edited) -> Result<Vec<Change>> {
    check_version(dir)?;
    commit::check_clean(dir)?;
    let mut stamps = BTreeMap::new();
    for side in Side::ALL {
        if let Some(stamp) = read_stamp(dir, side)? {
            stamps.insert(side, stamp);
        }
    }
    if wants.iter().all(|want| is_done(dir, want, stamps.get(&want.side))) {
        return Ok(Vec::new());
    }
    if edited == Edited::Refuse {
        check_not_edited(dir, wants, &stamps)?;
    }
    let mut changes = patched_files(dir, wants, &stamps)?;
    changes.extend(installed_files(dir, wants, &stamps)?);
    for want in wants {
        let stamp = Stamp {
            note: "Written by `cargo xtask patch`, which needs it to update or undo.".into(),
            hash: want.hash(),
            files: want.files.iter().map(|(p, b)| (p.clone(), paths::sha256(b))).collect(),
            patches: want.patches.clone(),
        };
        let text = serde_json::to_vec_pretty(&stamp).context("writing a stamp")?;
        push_if_different(dir, &mut changes, want.side.stamp(), Some(text))?;
    }
    Ok(changes)
}

fn check_version(dir: &Path) -> Result<()> {
    let makefile = dir.join("Makefile");
    let text = std::fs::read_to_string(&makefile).map_err(|e| {
        fail(
            Kind::Tree,
            format!("{} is no kernel tree ({e})", dir.display()),
            "give the top of a Linux 6.12 tree",
        )
    })?;
    let field = |name: &str| -> Option<u32> {
        let value =
            text.lines().find_map(|l| l.strip_prefix(name)?.trim_start().strip_prefix('='))?;
        value.trim().parse().ok()
    };
    let found = field("VERSION").zip(field("PATCHLEVEL"));
    if found == Some(VERSION) {
        return Ok(());
    }
    let (major, minor) = VERSION;
    let what = match found {
        Some((a, b)) => format!("{} is Linux {a}.{b}, not {major}.{minor}", dir.display()),
        None => format!("{} is no kernel tree: its Makefile names no version", dir.display()),
    };
    Err(fail(Kind::Tree, what, format!("give a Linux {major}.{minor} tree")))
}

fn read_stamp(dir: &Path, side: Side) -> Result<Option<Stamp>> {
    let path = dir.join(side.stamp());
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| {
        fail(
            Kind::Tree,
            format!("{} cannot be understood", path.display()),
            "start from a pristine tree, or restore that file",
        )
    })
}

fn is_done(dir: &Path, want: &Want, stamp: Option<&Stamp>) -> bool {
    stamp.is_some_and(|s| s.hash == want.hash())
        && want
            .files
            .iter()
            .all(|(path, bytes)| std::fs::read(dir.join(path)).is_ok_and(|b| b == *bytes))
}

/// A file at one of our places must be what we put there, or what we are about to put there.
fn check_not_edited(dir: &Path, wants: &[Want], stamps: &BTreeMap<Side, Stamp>) -> Result<()> {
    for want in wants {
        let old = stamps.get(&want.side).into_iter().flat_map(|s| s.files.keys());
        let all: BTreeSet<&String> = want.files.keys().chain(old).collect();
        for path in all {
            let Ok(now) = std::fs::read(dir.join(path)) else { continue };
            let sha = paths::sha256(&now);
            let ours = stamps.values().any(|s| s.files.get(path) == Some(&sha));
            if !ours && want.files.get(path) != Some(&now) {
                return Err(fail(
                    Kind::Tree,
                    format!(
                        "{} was not put there by xtask, or was changed since",
                        dir.join(path).display()
                    ),
                    "move your version away and run it again",
                ));
            }
        }
    }
    Ok(())
}

/// Undoes the recorded series and applies the wanted ones in a copy of the touched files.
fn patched_files(
    dir: &Path,
    wants: &[Want],
    stamps: &BTreeMap<Side, Stamp>,
) -> Result<Vec<Change>> {
    let old = |side| stamps.get(&side).map(|s| s.patches.as_slice()).unwrap_or_default();
    // A side that is there already and was not asked for is put back as it was.
    let new = |side| {
        wants.iter().find(|w| w.side == side).map_or_else(|| old(side), |w| w.patches.as_slice())
    };

    let touched: BTreeSet<String> = Side::ALL
        .iter()
        .flat_map(|&s| old(s).iter().chain(new(s)))
        .flat_map(Patch::touched)
        .collect();
    let work = tempfile::Builder::new()
        .prefix("ve-apf-")
        .tempdir()
        .context("making a temporary directory")?;
    for path in &touched {
        check_relative(path)?;
        let from = dir.join(path);
        if from.is_file() {
            let to = work.path().join(path);
            std::fs::create_dir_all(to.parent().unwrap_or(work.path()))
                .context("copying files to try the patches")?;
            std::fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
        }
    }
    for side in Side::ALL.into_iter().rev() {
        for patch in old(side).iter().rev() {
            run_patch(work.path(), patch, true).map_err(|line| {
                fail(
                    Kind::Tree,
                    format!(
                        "{}: {} of an earlier run cannot be undone ({line})",
                        dir.display(),
                        patch.name
                    ),
                    "undo your own changes to that file, or start from a pristine tree",
                )
            })?;
        }
    }
    for side in Side::ALL {
        for patch in new(side) {
            run_patch(work.path(), patch, false).map_err(|line| {
                fail(
                    Kind::Tree,
                    format!("{}: {} does not apply ({line})", dir.display(), patch.name),
                    "nothing was changed; use a pristine 6.12 tree, see the BASE file beside the patch",
                )
            })?;
        }
    }
    let mut changes = Vec::new();
    for path in &touched {
        let result = work.path().join(path);
        let bytes = if result.is_file() {
            Some(std::fs::read(&result).with_context(|| format!("reading {}", result.display()))?)
        } else {
            None
        };
        push_if_different(dir, &mut changes, path, bytes)?;
    }
    Ok(changes)
}

/// Runs patch(1); on failure its most telling line.
fn run_patch(dir: &Path, patch: &Patch, reverse: bool) -> std::result::Result<(), String> {
    let file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    std::fs::write(file.path(), &patch.text).map_err(|e| e.to_string())?;
    let mut command = Command::new("patch");
    command
        .args(["-p1", "--fuzz=0", "--no-backup-if-mismatch", "--batch", "--reject-file=-"])
        .arg(if reverse { "--reverse" } else { "--forward" })
        .arg("-i")
        .arg(file.path())
        .current_dir(dir)
        .env("LC_ALL", "C");
    let out = proc::output(&mut command).map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(());
    }
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    let mut file = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("patching file ") {
            file = name;
        } else if ["FAILED", "can't find file", "Reversed", "already exists", "No such file"]
            .iter()
            .any(|mark| line.contains(mark))
        {
            return Err(format!("{file}: {}", line.trim()).trim_start_matches(": ").to_owned());
        }
    }
    Err(text.lines().last().unwrap_or("no message").to_owned())
}

fn installed_files(
    dir: &Path,
    wants: &[Want],
    stamps: &BTreeMap<Side, Stamp>,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut seen = BTreeSet::new();
    for want in wants {
        for (path, bytes) in &want.files {
            if seen.insert(path) {
                push_if_different(dir, &mut changes, path, Some(bytes.clone()))?;
            }
        }
    }
    for want in wants {
        let gone = stamps.get(&want.side).into_iter().flat_map(|s| s.files.keys());
        for path in gone {
            let other = stamps.iter().any(|(side, s)| {
                wants.iter().all(|w| w.side != *side) && s.files.contains_key(path)
            });
            if !other && seen.insert(path) {
                push_if_different(dir, &mut changes, path, None)?;
            }
        }
    }
    Ok(changes)
}

fn push_if_different(
    dir: &Path,
    changes: &mut Vec<Change>,
    path: &str,
    new: Option<Vec<u8>>,
) -> Result<()> {
    check_relative(path)?;
    let old = match std::fs::read(dir.join(path)) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("reading {}", dir.join(path).display())),
    };
    if old != new {
        changes.push(Change { path: path.to_owned(), bytes: new });
    }
    Ok(())
}

/// A patch or a stamp must not lead out of the tree.
fn check_relative(path: &str) -> Result<()> {
    let ok = Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if ok {
        Ok(())
    } else {
        Err(fail(Kind::Tree, format!("a patch names the path {path}"), "check the series"))
    }
}
