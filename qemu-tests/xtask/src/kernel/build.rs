//! Running the kernel's make, with progress and a log.

use crate::error::{Kind, fail};
use crate::ui::Stage;
use crate::{paths, proc};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Lines that make prints for a whole build of this configuration, until we have counted them.
const ESTIMATE: u64 = 2800;

/// Configures (tinyconfig, then `config`) and builds; the image's path.
pub(crate) fn bzimage(source: &Path, build: &Path, config: &str, logs: &Path) -> Result<PathBuf> {
    paths::need_space(build.parent().unwrap_or(build), 2)?;
    for dir in [build, logs] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let log = logs.join("kernel.log");
    let mut file =
        std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    configure(source, build, config, &mut file, &log)?;

    let counted = build.join(".ve-apf-lines");
    let last: Option<u64> =
        std::fs::read_to_string(&counted).ok().and_then(|t| t.trim().parse().ok());
    let whole = !build.join("vmlinux.o").exists();
    // Of an incremental build nobody knows the length.
    let len = whole.then(|| last.unwrap_or(ESTIMATE));
    let name = if whole { "kernel: building" } else { "kernel: rebuilding what changed" };
    let stage = Stage::new(format!("{name} (log: {})", log.display()), len);
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let lines = make(source, build, &[&format!("-j{jobs}"), "bzImage"], &mut file, &log, &stage)?;
    if whole {
        std::fs::write(&counted, lines.to_string())
            .with_context(|| format!("writing {}", counted.display()))?;
    }
    stage.done(&format!("{lines} steps"));
    Ok(build.join("arch/x86/boot/bzImage"))
}

fn configure(
    source: &Path,
    build: &Path,
    config: &str,
    file: &mut std::fs::File,
    log: &Path,
) -> Result<()> {
    let stage = Stage::new("kernel: configuring", None);
    make(source, build, &["tinyconfig"], file, log, &stage)?;
    let path = build.join(".config");
    let mut dot =
        std::fs::OpenOptions::new().append(true).open(&path).context("opening .config")?;
    writeln!(dot, "{config}").context("writing .config")?;
    make(source, build, &["olddefconfig"], file, log, &stage)?;
    let result = std::fs::read_to_string(&path).context("reading .config")?;
    let lost = lost_options(config, &result);
    if !lost.is_empty() {
        stage.line(&format!("kernel: asked for, but not in the configuration: {}", lost.join(" ")));
    }
    stage.done("");
    Ok(())
}

/// Options that a fragment sets and the final configuration does not have.
fn lost_options(config: &str, result: &str) -> Vec<String> {
    let mut wanted = std::collections::BTreeMap::new();
    for (name, value) in config.lines().filter_map(|l| l.trim().split_once('=')) {
        wanted.insert(name, value);
    }
    let has = |name: &str, value: &str| {
        if value == "n" {
            !result.lines().any(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with('=')))
        } else {
            result.lines().any(|l| l.split_once('=') == Some((name, value)))
        }
    };
    wanted
        .iter()
        .filter(|(n, v)| n.starts_with("CONFIG_") && !has(n, v))
        .map(|(n, v)| format!("{n}={v}"))
        .collect()
}

/// Runs make; how many steps it printed.
fn make(
    source: &Path,
    build: &Path,
    args: &[&str],
    file: &mut std::fs::File,
    log: &Path,
    stage: &Stage,
) -> Result<u64> {
    let stderr = file.try_clone().context("opening the log twice")?;
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(source)
        .arg(format!("O={}", build.display()))
        .args(args)
        // The same inputs give the same image.
        .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
        .env("KBUILD_BUILD_USER", "xtask")
        .env("KBUILD_BUILD_HOST", "localhost")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr);
    // We run under cargo; its variables are not for the kernel's own use of rustc.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "MAKEFLAGS"
            || text == "MFLAGS"
            || (text.starts_with("CARGO") && text != "CARGO_HOME")
            || text == "RUSTFLAGS"
        {
            command.env_remove(&name);
        }
    }
    let mut running = proc::Running::spawn(&mut command)?;
    let stdout = running.child().stdout.take().context("make has no stdout")?;
    let mut steps = 0;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading make's output")?).into_owned();
        writeln!(file, "{line}").with_context(|| format!("writing {}", log.display()))?;
        if line.starts_with("  ") {
            steps += 1;
            stage.inc();
            stage.message(line.trim());
        }
    }
    let status = running.wait()?;
    if status.success() {
        return Ok(steps);
    }
    for line in telling_lines(log) {
        stage.line(&line);
    }
    Err(fail(
        Kind::Tree,
        format!("make {} failed", args.join(" ")),
        format!("see the lines above, the whole log is {}", log.display()),
    ))
}

/// The last 30 lines of a log that speak of errors.
fn telling_lines(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let telling = |l: &&str| {
        [
            "error",
            "Error",
            "undefined reference",
            "warning: objtool",
            "No space",
            "multiple definition",
        ]
        .iter()
        .any(|m| l.contains(m))
    };
    let mut lines: Vec<String> = text.lines().filter(telling).map(str::to_owned).collect();
    if lines.is_empty() {
        lines = text.lines().map(str::to_owned).collect();
    }
    lines.split_off(lines.len().saturating_sub(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_did_not_survive_are_named() {
        let config =
            "CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=4\nCONFIG_C=8\nCONFIG_D=y\n# CONFIG_E is not set\n";
        let result = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=8\n";
        assert_eq!(lost_options(config, result), ["CONFIG_D=y"]);
    }
}
