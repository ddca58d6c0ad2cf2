//! Every rule of the protocol that is broken on purpose must be noticed.
//!
//! `mutants/*.patch` each break one: the reason in the first line, the scenario that must notice in
//! the second. The engines and the explorer are copied to a scratch workspace, patched, built and
//! run there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const COPIED: [&str; 4] = ["abi", "guest", "host-kvm-patch", "qemu-tests/interleave"];

struct Mutant {
    name: String,
    scenario: String,
    /// Changed files, by path in the repository.
    files: BTreeMap<String, String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Applies a patch to the sources as they are.
fn read_mutant(path: &Path) -> Result<Mutant, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (head, patches) = text.split_once("--- a/").ok_or("no patch in it")?;
    let scenario = head.lines().find_map(|line| line.strip_prefix("Scenario: "));
    let scenario = scenario.ok_or("it names no scenario")?.to_owned();
    let mut files = BTreeMap::new();
    for patch in patches.split("\n--- a/") {
        let file = patch.lines().next().unwrap_or_default().to_owned();
        let patch = format!("--- a/{}\n", patch.trim_end_matches('\n'));
        let patch = diffy::Patch::from_str(&patch).map_err(|error| error.to_string())?;
        let source = fs::read_to_string(root().join(&file)).map_err(|error| error.to_string())?;
        let changed = diffy::apply(&source, &patch)
            .map_err(|error| format!("{error} to {file}: write the patch again"))?;
        files.insert(file, changed);
    }
    Ok(Mutant { name, scenario, files })
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a directory");
        for entry in fs::read_dir(from).expect("a directory").flatten() {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if from.exists() {
        replace(to, &fs::read_to_string(from).expect("a text file"));
    }
}

/// Writes only what changed, or cargo would build everything each time.
fn replace(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory");
    fs::write(path, text).expect("scratch space");
}

/// The workspace without what the explorer does not need.
fn scratch() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    for part in COPIED {
        let _ = fs::remove_dir_all(scratch.join(part).join("tests"));
        for inner in ["src", "Cargo.toml"] {
            copy(&root().join(part).join(inner), &scratch.join(part).join(inner));
        }
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let member = |line: &str| line.starts_with("    \"") && line.ends_with("\",");
    let kept = |line: &&str| {
        !member(line) || COPIED.iter().any(|part| line.contains(&format!("\"{part}\"")))
    };
    let mut manifest: String =
        manifest.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
    manifest.push_str("\n[profile.mutant]\ninherits = \"dev\"\nopt-level = 1\ndebug = false\n");
    replace(&scratch.join("Cargo.toml"), &manifest);
    copy(&root().join("Cargo.lock"), &scratch.join("Cargo.lock"));
    scratch
}

/// Builds the scratch workspace and explores one scenario; the output.
fn explore(scratch: &Path, scenario: &str) -> Result<String, String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(scratch).args(["build", "--quiet", "--offline", "--profile", "mutant"]);
    cargo.args(["--package", "ve-apf-interleave", "--bins", "--target-dir", "target"]);
    let built = cargo.env("RUSTFLAGS", "-Awarnings").output().map_err(|error| error.to_string())?;
    if !built.status.success() {
        return Err(format!("does not build:\n{}", String::from_utf8_lossy(&built.stderr)));
    }
    let program = scratch.join("target/mutant/ve-apf-interleave");
    let ran = Command::new(program).arg(scenario).output().map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

fn check(scratch: &Path, path: &Path) -> Result<String, String> {
    let started = Instant::now();
    let mutant = read_mutant(path)?;
    for (file, text) in &mutant.files {
        replace(&scratch.join(file), text);
    }
    let result = explore(scratch, &mutant.scenario);
    for file in mutant.files.keys() {
        copy(&root().join(file), &scratch.join(file));
    }
    let output = result?;
    match output.lines().last() {
        Some(line) if line.starts_with("violation: no interleaving") => {
            Err(format!("{} was not explored: {line}", mutant.scenario))
        }
        Some(line) if line.starts_with("violation: ") => {
            let Mutant { name, scenario, .. } = mutant;
            let seconds = started.elapsed().as_secs_f64();
            Ok(format!("{name:<42} {scenario:<24} {seconds:4.1} s  {line}"))
        }
        Some(line) => Err(format!("survives: {line}")),
        None => Err(format!("there is no scenario {:?}", mutant.scenario)),
    }
}

#[test]
fn every_mutant_is_killed() {
    let scratch = scratch();
    let sane = explore(&scratch, "park-twice").expect("the unpatched explorer");
    assert!(sane.contains(" states "), "without a patch: {sane}");
    let mutants = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutants");
    let mut paths: Vec<_> =
        fs::read_dir(mutants).expect("mutants").flatten().map(|entry| entry.path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no mutants");
    let mut wrong = Vec::new();
    for path in &paths {
        match check(&scratch, path) {
            Ok(line) => println!("{line}"),
            Err(why) => wrong.push(format!("{}: {why}", path.display())),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{} mutants, all killed", paths.len());
}
