//! `cargo test` over the workspace, counted.

use crate::runner::{Outcome, Status};
use crate::ui::Stage;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What `cargo test` said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests marked as ignored.
    pub(crate) ignored: u64,
    /// Names of the failed ones.
    names: Vec<String>,
}

/// Runs every host test; one outcome for all of them, and their counts.
pub(crate) fn run(log: &Path) -> Result<(Outcome, Counts)> {
    let start = Instant::now();
    let stage = Stage::new("host tests: cargo test --workspace", None);
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .current_dir(paths::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = proc::Running::spawn(&mut command)?;
    let stdout = running.child().stdout.take().context("cargo has no stdout")?;
    let stderr = running.child().stderr.take().context("cargo has no stderr")?;
    let other = std::thread::spawn(move || {
        BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>()
    });
    std::fs::create_dir_all(log.parent().unwrap_or(Path::new(".")))
        .context("creating the log's directory")?;
    let mut file =
        std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading cargo's output")?;
        writeln!(file, "{line}").with_context(|| format!("writing {}", log.display()))?;
        if counts.take(&line) {
            stage.message(format!("{} passed", counts.passed));
        }
    }
    let success = running.wait()?.success();
    let stderr = other.join().unwrap_or_default();
    for line in &stderr {
        writeln!(file, "{line}").with_context(|| format!("writing {}", log.display()))?;
    }
    let mut why: Vec<String> = counts.names.iter().map(|n| format!("{n} failed")).collect();
    if !success && counts.failed == 0 {
        // It did not build, or a test program died.
        counts.failed = 1;
        why.extend(stderr.iter().filter(|l| l.starts_with("error")).take(10).cloned());
    }
    let status = if success { Status::Passed } else { Status::Failed };
    stage.done(&format!(
        "{} passed, {} failed, {} ignored",
        counts.passed, counts.failed, counts.ignored
    ));
    let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let outcome = Outcome {
        note: format!("{} tests", counts.passed + counts.failed),
        ms,
        log: Some(log.to_owned()),
        ..Outcome::new("host tests", status, why)
    };
    Ok((outcome, counts))
}

impl Counts {
    /// Understands one line; true if it was a result.
    fn take(&mut self, line: &str) -> bool {
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.names.push(name.to_owned());
        }
        let Some(text) = line.strip_prefix("test result: ") else { return false };
        let number = |what: &str| -> u64 {
            text.split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                .unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.ignored += number("ignored");
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut counts = Counts::default();
        assert!(!counts.take("test a::b ... FAILED"));
        assert!(counts.take("test result: FAILED. 16 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.13s"));
        assert!(counts.take("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s"));
        assert_eq!((counts.passed, counts.failed, counts.ignored), (19, 1, 2));
        assert_eq!(counts.names, ["a::b"]);
    }
}
