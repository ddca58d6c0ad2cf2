//! Building programs of this workspace for the machines under test.

use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where they go, apart from what runs here.
pub(crate) fn target_dir() -> PathBuf {
    paths::target().join("guest-bin")
}

/// `cargo build` with these flags for rustc; more arguments can be added.
pub(crate) fn build(rustflags: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg("build")
        .arg("--target-dir")
        .arg(target_dir())
        .current_dir(paths::root())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", rustflags)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Runs it, with progress; what cargo said is shown if it fails. `what` does not build then.
pub(crate) fn run(mut command: Command, stage: &Stage, what: &str) -> Result<()> {
    let mut running = proc::Running::spawn(&mut command)?;
    let stderr = running.child().stderr.take().context("cargo has no stderr")?;
    let mut output = Vec::new();
    for line in BufReader::new(stderr).lines() {
        let line = line.context("reading cargo's output")?;
        stage.message(line.trim());
        output.push(line);
    }
    if running.wait()?.success() {
        return Ok(());
    }
    output.iter().for_each(|line| stage.line(line));
    Err(fail(Kind::Environment, format!("{what} not build"), "see cargo's messages above"))
}
