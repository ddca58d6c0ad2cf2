//! The project's commands. `cargo xtask help` lists them.
//!
//! Exit codes: 0 all went well, 1 a test case failed, 2 wrong usage, 3 a tool, the disk or the network is
//! missing, 4 a kernel tree is of another version or a patch does not apply or does not build.

mod bench;
mod boot;
mod cargo;
mod cases;
mod closure;
mod cpio;
mod demo;
mod error;
mod expect;
mod host_tests;
mod initrd;
mod install;
mod kernel;
mod lane;
mod metal;
mod one_cpu;
mod paths;
mod proc;
mod record;
mod report;
mod runner;
mod series;
mod setup;
mod test;
mod tools;
mod tree;
mod ui;

use clap::{Args, Parser, Subcommand};
use error::{Kind, fail};
use install::{Side, Want};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Asynchronous page faults as #VE: build, test, show",
    after_help = "\
Exit codes: 0 ok, 1 a test case failed, 2 usage, 3 environment (tool, disk, network), 4 kernel tree or patch"
)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Install what the other commands need (Debian), or list it (elsewhere)
    Setup,
    /// Prepare your own Linux 6.12 tree; then an ordinary `make` works
    Patch(PatchArgs),
    /// Build the test kernel, or find it in the cache, and print its path
    Kernel,
    /// Run every test: on the host, and in booted kernels
    Test(test::TestArgs),
    /// Measure it: every mode, workload and latency; JSON, charts, docs/performance.md
    Bench(bench::BenchArgs),
    /// Show it: the modes side by side, a table and a picture
    Demo(demo::DemoArgs),
}

#[derive(Args)]
struct PatchArgs {
    /// A tree that gets the guest side (arch/x86)
    #[arg(long, value_name = "DIR")]
    guest: Option<PathBuf>,
    /// A tree that gets the host side (KVM); may be the same
    #[arg(long, value_name = "DIR")]
    host: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(e) => {
            let (line, code) = error::describe(&e);
            eprintln!("xtask: {line}");
            ExitCode::from(code)
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            e.print()?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(e) => {
            let text = e.to_string();
            return Err(fail(Kind::Usage, usage_error(&text), "see `cargo xtask help`"));
        }
    };
    proc::install_signal_handler()?;
    match cli.command {
        Cmd::Setup => {
            setup::ensure()?;
            println!("everything needed is installed");
        }
        Cmd::Patch(args) => patch(&args)?,
        Cmd::Kernel => {
            setup::ensure()?;
            let kernel = kernel::ensure(kernel::Flavour::Plain)?;
            println!("{}", kernel.bzimage.display());
        }
        Cmd::Test(args) => return Ok(verdict(test::run(&args)?)),
        Cmd::Bench(args) => return Ok(verdict(bench::run(&args)?)),
        Cmd::Demo(args) => return Ok(verdict(demo::run(&args)?)),
    }
    Ok(ExitCode::SUCCESS)
}

/// What clap says, on one line: what is wrong, and which values there are.
fn usage_error(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let values = lines.map(str::trim).find(|line| line.starts_with("[possible values"));
    values.map_or_else(|| first.to_owned(), |values| format!("{first} {values}"))
}

fn verdict(ok: bool) -> ExitCode {
    if ok { ExitCode::SUCCESS } else { ExitCode::from(Kind::Case as u8) }
}

fn patch(args: &PatchArgs) -> anyhow::Result<()> {
    let mut by_dir: Vec<(PathBuf, Vec<Want>)> = Vec::new();
    for (side, dir) in [(Side::Guest, &args.guest), (Side::Host, &args.host)] {
        let Some(dir) = dir else { continue };
        let real = dir.canonicalize().map_err(|e| {
            fail(
                Kind::Tree,
                format!("{} cannot be used ({e})", dir.display()),
                "give the top of a Linux 6.12 tree",
            )
        })?;
        let want = Want::load(side)?;
        match by_dir.iter_mut().find(|(d, _)| *d == real) {
            Some((_, wants)) => wants.push(want),
            None => by_dir.push((real, vec![want])),
        }
    }
    if by_dir.is_empty() {
        return Err(fail(
            Kind::Usage,
            "no tree given",
            "cargo xtask patch --guest DIR, --host DIR, or both",
        ));
    }
    if !setup::have("patch") {
        return Err(fail(Kind::Environment, "patch(1) is not installed", "apt-get install patch"));
    }
    // All is worked out for every tree before one of them is changed.
    let plans = by_dir
        .iter()
        .map(|(dir, wants)| Ok((dir, wants, tree::plan(dir, wants, tree::Edited::Refuse)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (dir, wants, changes) in plans {
        tree::commit(dir, &changes)?;
        let patches: usize = wants.iter().map(|w| w.patches.len()).sum();
        if changes.is_empty() {
            println!("{}: up to date, nothing changed", dir.display());
        } else {
            println!("{}: {patches} patches, {} files changed", dir.display(), changes.len());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_one_line_with_what_would_be_right() {
        let error = |words: &[&str]| match Cli::try_parse_from(words) {
            Ok(_) => panic!("accepted: {words:?}"),
            Err(e) => usage_error(&e.to_string()),
        };
        let lane = error(&["xtask", "bench", "--lane", "foo"]);
        assert_eq!(lane, "invalid value 'foo' for '--lane <LANE>' [possible values: svm, vmx]");
        assert_eq!(error(&["xtask", "bench", "--fast"]), "unexpected argument '--fast' found");
    }
}
