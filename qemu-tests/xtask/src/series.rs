//! A patch series: the files named in `series`, and what each of them touches.

use crate::error::{Kind, fail};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// One patch as `git format-patch` writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Patch {
    /// File name in the series.
    pub(crate) name: String,
    /// The whole text.
    pub(crate) text: String,
}

impl Patch {
    /// Paths this patch reads or writes, relative to the kernel tree.
    pub(crate) fn touched(&self) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        let mut hunk_lines = (0_u64, 0_u64);
        for line in self.text.lines() {
            // Inside a hunk a line like "--- x" is content ("-" and "-- x").
            if hunk_lines != (0, 0) {
                match line.as_bytes().first() {
                    Some(b'-') => hunk_lines.0 = hunk_lines.0.saturating_sub(1),
                    Some(b'+') => hunk_lines.1 = hunk_lines.1.saturating_sub(1),
                    Some(b'\\') => {}
                    _ => {
                        hunk_lines =
                            (hunk_lines.0.saturating_sub(1), hunk_lines.1.saturating_sub(1))
                    }
                }
                continue;
            }
            if let Some(ranges) = line.strip_prefix("@@ -") {
                hunk_lines = hunk_size(ranges);
            } else if let Some(path) =
                line.strip_prefix("--- a/").or_else(|| line.strip_prefix("+++ b/"))
            {
                paths.insert(path.split('\t').next().unwrap_or(path).to_owned());
            } else if let Some(path) =
                line.strip_prefix("rename from ").or_else(|| line.strip_prefix("rename to "))
            {
                paths.insert(path.to_owned());
            }
        }
        paths
    }
}

/// "12,7 +12,9 @@ ..." as (old lines, new lines).
fn hunk_size(ranges: &str) -> (u64, u64) {
    let mut parts = ranges.split(' ');
    let mut count = |prefix: &str| {
        let range = parts.next().unwrap_or("").trim_start_matches(prefix);
        range.split_once(',').map_or(1, |(_, n)| n.parse().unwrap_or(0))
    };
    (count(""), count("+"))
}

/// Reads `dir/series` and the patches it names; a directory without a series is an empty one.
pub(crate) fn read(dir: &Path) -> Result<Vec<Patch>> {
    let list = dir.join("series");
    if !list.exists() {
        return Ok(Vec::new());
    }
    let text =
        std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let mut patches = Vec::new();
    for name in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            fail(
                Kind::Tree,
                format!("{} is in the series but cannot be read: {e}", path.display()),
                "restore the file from the repository",
            )
        })?;
        patches.push(Patch { name: name.to_owned(), text });
    }
    Ok(patches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_files_are_found_and_content_is_not_mistaken_for_them() {
        let text = "Subject: x\n---\n a | 2 +-\n\ndiff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n x\n--- a/no\n+++ b/no\n\
                    diff --git a/new b/new\n--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+y\n\
                    diff --git a/p b/q\nrename from p\nrename to q\n";
        let patch = Patch { name: "1".into(), text: text.into() };
        let touched: Vec<String> = patch.touched().into_iter().collect();
        assert_eq!(touched, ["a", "new", "p", "q"]);
    }
}
