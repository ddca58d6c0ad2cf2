//! The patch command on small trees.

use super::*;
use crate::error::describe;
use std::collections::BTreeMap;
use std::time::SystemTime;
use tempfile::TempDir;

const MAKEFILE: &str = "# SPDX\nVERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 1\n";

fn tree() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("arch/x86")).unwrap();
    std::fs::write(dir.path().join("Makefile"), MAKEFILE).unwrap();
    let text: String = (1..=20).map(|i| format!("line {i}\n")).collect();
    std::fs::write(dir.path().join("arch/x86/traps.c"), text).unwrap();
    dir
}

/// Replaces line `n` by `new`, with three lines of context.
fn patch(name: &str, n: usize, old: &str, new: &str) -> Patch {
    let context = |r: std::ops::Range<usize>| r.map(|i| format!(" line {i}\n")).collect::<String>();
    let text = format!(
        "Subject: [PATCH] {name}\n---\n\ndiff --git a/arch/x86/traps.c b/arch/x86/traps.c\n--- a/arch/x86/traps.c\n\
         +++ b/arch/x86/traps.c\n@@ -{s},7 +{s},7 @@\n{before}-{old}\n+{new}\n{after}",
        s = n - 3,
        before = context(n - 3..n),
        after = context(n + 1..n + 4),
    );
    Patch { name: name.into(), text }
}

fn new_file(path: &str) -> Patch {
    let text = format!(
        "Subject: new\n---\n\ndiff --git a/{path} b/{path}\nnew file mode 100644\nindex 0000000..1\n--- /dev/null\n\
         +++ b/{path}\n@@ -0,0 +1,2 @@\n+a\n+b\n"
    );
    Patch { name: "new".into(), text }
}

fn want(side: Side, patches: Vec<Patch>, files: &[(&str, &str)]) -> Want {
    let files = files.iter().map(|(p, b)| ((*p).to_owned(), b.as_bytes().to_vec())).collect();
    Want { side, patches, files }
}

fn run(dir: &Path, wants: &[Want]) -> Result<usize> {
    let changes = plan(dir, wants, Edited::Refuse)?;
    commit(dir, &changes)?;
    Ok(changes.len())
}

type Snapshot = BTreeMap<String, (Vec<u8>, SystemTime)>;

fn snapshot(dir: &Path) -> Snapshot {
    fn walk(top: &Path, dir: &Path, all: &mut Snapshot) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(top, &path, all);
            } else {
                let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
                let time = std::fs::metadata(&path).unwrap().modified().unwrap();
                all.insert(name, (std::fs::read(&path).unwrap(), time));
            }
        }
    }
    let mut all = Snapshot::new();
    walk(dir, dir, &mut all);
    all
}

fn contents(snapshot: &Snapshot) -> BTreeMap<&str, &[u8]> {
    snapshot.iter().map(|(k, v)| (k.as_str(), v.0.as_slice())).collect()
}

fn read(dir: &TempDir, path: &str) -> String {
    std::fs::read_to_string(dir.path().join(path)).unwrap()
}

#[test]
fn applies_installs_and_the_second_run_changes_nothing() {
    let dir = tree();
    let wants = [want(
        Side::Guest,
        vec![patch("1", 5, "line 5", "five"), new_file("arch/x86/a/b.c")],
        &[("rust/lib.rs", "x")],
    )];
    assert_eq!(run(dir.path(), &wants).unwrap(), 4);
    assert!(read(&dir, "arch/x86/traps.c").contains("five\n"));
    assert_eq!(read(&dir, "arch/x86/a/b.c"), "a\nb\n");
    assert_eq!(read(&dir, "rust/lib.rs"), "x");
    let before = snapshot(dir.path());
    assert_eq!(run(dir.path(), &wants).unwrap(), 0);
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn both_sides_in_one_tree_end_the_same_in_any_order() {
    let guest = || {
        want(Side::Guest, vec![patch("g", 5, "line 5", "guest")], &[("shared", "s"), ("g.rs", "g")])
    };
    let host = || {
        want(Side::Host, vec![patch("h", 15, "line 15", "host")], &[("shared", "s"), ("h.rs", "h")])
    };
    let (one, two, both) = (tree(), tree(), tree());
    run(one.path(), &[guest()]).unwrap();
    run(one.path(), &[host()]).unwrap();
    run(two.path(), &[host()]).unwrap();
    run(two.path(), &[guest()]).unwrap();
    run(both.path(), &[guest(), host()]).unwrap();
    let (a, b, c) = (snapshot(one.path()), snapshot(two.path()), snapshot(both.path()));
    assert_eq!(contents(&a), contents(&b));
    assert_eq!(contents(&a), contents(&c));
}

#[test]
fn changed_sources_replace_the_old_ones_and_touch_nothing_else() {
    let dir = tree();
    let first = want(
        Side::Guest,
        vec![patch("1", 5, "line 5", "five"), new_file("x/gone.c")],
        &[("r/a.rs", "1"), ("r/b.rs", "1")],
    );
    run(dir.path(), &[first]).unwrap();
    let before = snapshot(dir.path());
    let second = want(Side::Guest, vec![patch("1", 5, "line 5", "five")], &[("r/a.rs", "2")]);
    run(dir.path(), &[second]).unwrap();
    let after = snapshot(dir.path());
    assert_eq!(read(&dir, "r/a.rs"), "2");
    assert!(!dir.path().join("r/b.rs").exists());
    assert!(!dir.path().join("x").exists(), "an emptied directory stays");
    assert_eq!(before["arch/x86/traps.c"], after["arch/x86/traps.c"]);
}

#[test]
fn a_shared_file_updated_by_one_side_does_not_stop_the_other() {
    let dir = tree();
    run(
        dir.path(),
        &[want(Side::Guest, vec![], &[("s", "1")]), want(Side::Host, vec![], &[("s", "1")])],
    )
    .unwrap();
    run(dir.path(), &[want(Side::Guest, vec![], &[("s", "2")])]).unwrap();
    run(dir.path(), &[want(Side::Host, vec![], &[("s", "2")])]).unwrap();
    assert_eq!(read(&dir, "s"), "2");
}

#[test]
fn another_version_is_named_and_refused() {
    let dir = tree();
    std::fs::write(dir.path().join("Makefile"), MAKEFILE.replace("12", "6")).unwrap();
    let before = snapshot(dir.path());
    let (text, code) =
        describe(&run(dir.path(), &[want(Side::Guest, vec![], &[("a", "b")])]).unwrap_err());
    assert!(text.contains("Linux 6.6, not 6.12"), "{text}");
    assert_eq!(code, 4);
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn a_series_that_does_not_apply_leaves_nothing_behind() {
    let dir = tree();
    let before = snapshot(dir.path());
    let bad = want(
        Side::Guest,
        vec![patch("1", 5, "line 5", "five"), patch("2", 9, "line nine", "9")],
        &[("r", "1")],
    );
    let (text, code) = describe(&run(dir.path(), &[bad]).unwrap_err());
    assert!(text.contains("2 does not apply") && text.contains("arch/x86/traps.c"), "{text}");
    assert_eq!(code, 4);
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn a_patch_for_a_missing_file_is_reported() {
    let dir = tree();
    std::fs::remove_file(dir.path().join("arch/x86/traps.c")).unwrap();
    let error = run(dir.path(), &[want(Side::Host, vec![patch("1", 5, "line 5", "five")], &[])])
        .unwrap_err();
    assert!(describe(&error).0.contains("does not apply"));
}

#[test]
fn a_file_of_the_user_at_our_place_is_kept() {
    let dir = tree();
    std::fs::write(dir.path().join("r"), "mine").unwrap();
    let error = run(dir.path(), &[want(Side::Guest, vec![], &[("r", "1")])]).unwrap_err();
    assert!(describe(&error).0.contains("was not put there by xtask"));
    assert_eq!(read(&dir, "r"), "mine");
}

#[test]
fn a_failing_rename_rolls_back_contents_and_times() {
    let dir = tree();
    let before = snapshot(dir.path());
    // "Makefile/x" cannot be created because Makefile is a file.
    let changes = [
        Change { path: "arch/x86/traps.c".into(), bytes: Some(b"new".to_vec()) },
        Change { path: "fresh/file".into(), bytes: Some(b"new".to_vec()) },
        Change { path: "Makefile/x".into(), bytes: Some(b"new".to_vec()) },
    ];
    assert!(commit(dir.path(), &changes).is_err());
    assert_eq!(snapshot(dir.path()), before);
    assert!(!dir.path().join("fresh").exists());
}

#[test]
fn a_path_that_leads_out_is_refused() {
    let dir = tree();
    assert!(run(dir.path(), &[want(Side::Guest, vec![], &[("../x", "1")])]).is_err());
}
