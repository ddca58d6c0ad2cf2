//! Making a list of changes to a tree: all of them, or none.

use crate::error::{Kind, fail};
use crate::proc;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A file's new content, or its removal.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Relative to the tree.
    pub(crate) path: String,
    /// None removes the file.
    pub(crate) bytes: Option<Vec<u8>>,
}

const WORK: &str = ".ve-apf-tmp";

/// An earlier run that was killed while it renamed files leaves its work directory.
pub(crate) fn check_clean(dir: &Path) -> Result<()> {
    let work = dir.join(WORK);
    let old = work.join("old");
    if old.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(fail(
            Kind::Tree,
            format!(
                "an earlier run was killed in the middle; the old files are in {}",
                old.display()
            ),
            "unpack the tree afresh, or put them back and remove that directory",
        ));
    }
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    Ok(())
}

/// Makes all `changes` below `dir`. On an error the tree is as it was, modification times too.
pub(crate) fn commit(dir: &Path, changes: &[Change]) -> Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let work = dir.join(WORK);
    let staged = stage(dir, &work, changes);
    let result = match staged {
        Ok(()) => {
            let _whole = proc::critical();
            swap(dir, &work, changes)
        }
        Err(e) => Err(e),
    };
    // What remains here are the old versions, or what was staged in vain.
    let _ = std::fs::remove_dir_all(&work);
    result
}

/// Writes the new files beside the tree's; a full disk shows here, before anything was changed.
fn stage(dir: &Path, work: &Path, changes: &[Change]) -> Result<()> {
    for name in ["new", "old"] {
        let path = work.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
    }
    for (i, change) in changes.iter().enumerate() {
        let Some(bytes) = &change.bytes else { continue };
        let new = work.join("new").join(i.to_string());
        std::fs::write(&new, bytes).with_context(|| format!("writing {}", new.display()))?;
        if let Ok(meta) = std::fs::metadata(dir.join(&change.path)) {
            std::fs::set_permissions(&new, meta.permissions())
                .with_context(|| format!("writing {}", new.display()))?;
        }
    }
    Ok(())
}

fn swap(dir: &Path, work: &Path, changes: &[Change]) -> Result<()> {
    let mut made_dirs = Vec::new();
    let mut done = 0;
    let mut failed = None;
    for (i, change) in changes.iter().enumerate() {
        done = i + 1;
        if let Err(e) = swap_one(dir, work, i, change, &mut made_dirs) {
            failed = Some(e);
            break;
        }
    }
    let Some(error) = failed else {
        remove_empty_parents(dir, changes);
        return Ok(());
    };
    for (i, change) in changes.iter().enumerate().take(done).rev() {
        let path = dir.join(&change.path);
        let old = work.join("old").join(i.to_string());
        if old.exists() {
            std::fs::rename(&old, &path)
                .with_context(|| format!("restoring {}", path.display()))?;
        } else if change.bytes.is_some() && !work.join("new").join(i.to_string()).exists() {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for made in made_dirs.iter().rev() {
        let _ = std::fs::remove_dir(made);
    }
    Err(error)
}

fn swap_one(
    dir: &Path,
    work: &Path,
    i: usize,
    change: &Change,
    made: &mut Vec<PathBuf>,
) -> Result<()> {
    let path = dir.join(&change.path);
    let context = || format!("changing {}", path.display());
    if path.exists() {
        std::fs::rename(&path, work.join("old").join(i.to_string())).with_context(context)?;
    }
    if change.bytes.is_some() {
        let parent = path.parent().unwrap_or(dir);
        let missing: Vec<&Path> = parent.ancestors().take_while(|p| !p.exists()).collect();
        for new_dir in missing.into_iter().rev() {
            std::fs::create_dir(new_dir).with_context(context)?;
            made.push(new_dir.to_owned());
        }
        std::fs::rename(work.join("new").join(i.to_string()), &path).with_context(context)?;
    }
    Ok(())
}

fn remove_empty_parents(dir: &Path, changes: &[Change]) {
    for change in changes.iter().filter(|c| c.bytes.is_none()) {
        let path = dir.join(&change.path);
        for parent in path.ancestors().skip(1).take_while(|p| *p != dir) {
            if std::fs::remove_dir(parent).is_err() {
                break;
            }
        }
    }
}
