//! `cargo xtask bench`: every mode with the same kernel, VMM, pager, workload and latency; bench.json, report.html, and
//! docs/performance.md with its pictures.

use crate::cases::{self, Case, Suite};
use crate::error::{Kind, fail};
use crate::initrd::Programs;
use crate::lane::Lane;
use crate::runner::{self, Lab, Status};
use crate::{kernel, paths, setup};
use anyhow::{Context, Result};
use clap::Args;
use picture::Pictures;
use row::{Bench, Row};
use std::path::{Path, PathBuf};

mod agree;
mod answers;
mod chart;
mod charts;
mod docs;
mod fields;
mod no_faults;
mod page;
mod picture;
pub(crate) mod probe;
mod row;
mod sections;
mod source;
mod summary;
mod targets;

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Only this lane
    #[arg(long, value_name = "LANE")]
    lane: Option<Lane>,
    /// Only cases whose name contains this, see qemu-tests/cases/bench.toml
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// A few minutes: fewer faults, not more than one vCPU, blocking on vmx only
    #[arg(long)]
    quick: bool,
    /// Run it so often; what is exact must agree within 1 %
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=5))]
    runs: u32,
    /// Write docs/performance.md, its pictures and docs/bench.md too
    #[arg(long)]
    docs: bool,
    /// Keep the records of target/bench/bench.json that this run does not replace; it has to be of the same kernel
    #[arg(long)]
    keep: bool,
    /// Run nothing: make the report, and with --docs the documents, from this bench.json
    #[arg(long, value_name = "JSON", conflicts_with_all = ["lane", "filter", "quick", "runs", "keep", "kernel"])]
    from: Option<PathBuf>,
    /// Boot this bzImage instead of building one; it has to be patched and configured like ours
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
}

/// Runs it; true if every case did what it should, and runs agree.
pub(crate) fn run(args: &BenchArgs) -> Result<bool> {
    let dir = paths::target().join("bench");
    if let Some(from) = &args.from {
        let bench = read(from)?;
        write(&bench, &dir, args.docs)?;
        return Ok(true);
    }
    let mut suite = cases::load(&paths::root().join("qemu-tests/cases"), "bench")?;
    let server_wanted = select(&suite, args)?.iter().any(|case| case.server);
    setup::ensure()?;
    if server_wanted {
        if let Err(why) = setup::ensure_server() {
            suite.skip_server(&format!("{why:#}"));
        }
    }
    let selected = select(&suite, args)?;
    let lab = Lab {
        kernel: kernel::given_or_built(args.kernel.as_deref())?,
        debug: None,
        stock: None,
        programs: Programs::build()?,
        dir: dir.clone(),
    };
    let mut ok = true;
    let mut runs: Vec<Vec<Row>> = Vec::new();
    for _ in 0..args.runs {
        let outcomes = runner::run(&lab, &suite, &selected)?;
        // What a case that failed reported before is used.
        ok &= runner::print_failures(&outcomes);
        for outcome in outcomes.iter().filter(|o| o.status == Status::Skipped) {
            println!("skipped {}: {}", outcome.name, outcome.why.join("; "));
        }
        runs.push(row::rows(&selected, &outcomes));
    }
    let differences = agree::compare(&runs);
    let kept = if args.keep { Some(read(&dir.join("bench.json"))?) } else { None };
    let mut bench = Bench {
        schema: row::SCHEMA,
        quick: args.quick,
        runs: args.runs,
        kernel: lab.kernel.key.clone(),
        differences: differences.iter().map(ToString::to_string).collect(),
        records: runs.pop().unwrap_or_default(),
    };
    if let Some(kept) = kept {
        bench.keep(kept)?;
    }
    write(&bench, &dir, args.docs)?;
    for difference in &differences {
        println!("FAILED runs differ: {difference}");
    }
    Ok(ok && differences.is_empty())
}

fn select<'a>(suite: &'a Suite, args: &BenchArgs) -> Result<Vec<&'a Case>> {
    let selected: Vec<&Case> = suite
        .cases
        .iter()
        .filter(|case| !(args.quick && case.long))
        .filter(|case| args.lane.is_none_or(|lane| lane == case.lane))
        .filter(|case| args.filter.as_deref().is_none_or(|f| case.name.contains(f)))
        .collect();
    if selected.is_empty() {
        let names: Vec<&str> = suite
            .cases
            .iter()
            .filter(|case| !(args.quick && case.long))
            .map(|case| case.name.as_str())
            .collect();
        return Err(fail(
            Kind::Usage,
            "no case of the benchmark is like that",
            format!("there are {}", names.join(", ")),
        ));
    }
    Ok(selected)
}

fn read(path: &Path) -> Result<Bench> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        fail(
            Kind::Usage,
            format!("{} cannot be read ({e})", path.display()),
            "give the bench.json of a run",
        )
    })?;
    let bench: Bench = serde_json::from_str(&text).map_err(|e| {
        fail(
            Kind::Usage,
            format!("{} is no bench.json ({e})", path.display()),
            "give that of a run of `cargo xtask bench`",
        )
    })?;
    if bench.schema != row::SCHEMA {
        return Err(fail(
            Kind::Usage,
            format!("{} has schema {}, not {}", path.display(), bench.schema, row::SCHEMA),
            "run `cargo xtask bench` again",
        ));
    }
    Ok(bench)
}

fn write(bench: &Bench, dir: &Path, docs: bool) -> Result<()> {
    let json = serde_json::to_string_pretty(bench).context("writing bench.json")?;
    paths::write_atomic(&dir.join("bench.json"), json.as_bytes())?;
    paths::write_atomic(&dir.join("report.html"), page::page(bench).as_bytes())?;
    let pictures = picture::pictures(bench);
    let performance = docs::performance(bench, &pictures);
    write_performance(dir, &performance, &pictures)?;
    if docs {
        let docs = paths::root().join("docs");
        write_performance(&docs, &performance, &pictures)?;
        paths::write_atomic(&docs.join("bench.md"), docs::schema().as_bytes())?;
    }
    println!("\n{}", docs::targets(bench));
    println!("{}", dir.join("bench.json").display());
    println!("{}", dir.join("report.html").display());
    Ok(())
}

/// performance.md and its pictures; none of an earlier run is left beside it.
fn write_performance(dir: &Path, text: &str, pictures: &Pictures) -> Result<()> {
    paths::write_atomic(&dir.join("performance.md"), text.as_bytes())?;
    for lane in summary::LANES {
        let path = dir.join(picture::name(lane));
        match pictures.get(lane) {
            Some(svg) => paths::write_atomic(&path, svg.as_bytes())?,
            None if path.exists() => std::fs::remove_file(&path).context("an earlier picture")?,
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(words: &[&str]) -> Result<BenchArgs, String> {
        let words = std::iter::once("bench").chain(words.iter().copied());
        Cli::try_parse_from(words).map(|cli| cli.args).map_err(|e| e.to_string())
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (words, says) in [
            (&["--lane", "foo"][..], "invalid value 'foo' for '--lane <LANE>'"),
            (&["--fast"], "unexpected argument '--fast'"),
            (&["--runs", "0"], "0 is not in 1..=5"),
            (&["--runs", "x"], "invalid value 'x' for '--runs <N>'"),
            (&["--from", "a", "--quick"], "cannot be used with"),
            (&["quick"], "unexpected argument 'quick'"),
        ] {
            let Err(error) = parse(words) else { panic!("accepted: {words:?}") };
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_quick_run_has_no_long_cases() {
        let suite = cases::load(&paths::root().join("qemu-tests/cases"), "bench").unwrap();
        let names = |words: &[&str]| -> Result<Vec<String>> {
            let args = parse(words).unwrap();
            Ok(select(&suite, &args)?.iter().map(|case| case.name.clone()).collect())
        };
        let (quick, full) = (names(&["--quick"]).unwrap(), names(&[]).unwrap());
        assert!(quick.len() < full.len() && quick.iter().all(|name| full.contains(name)));
        let vmx = names(&["--lane", "vmx", "--quick", "--filter", "counts@"]).unwrap();
        assert_eq!(vmx, ["counts@kvm-apf", "counts@ve-apf", "counts@hardware"]);
        let error = names(&["--filter", "nothing"]).unwrap_err().to_string();
        assert!(error.contains("no case") && error.contains("quick@ve-apf"), "{error}");
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused() {
        let file = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            read(file.path()).unwrap_err().to_string()
        };
        assert!(file("x").contains("is no bench.json"));
        let other =
            r#"{"schema":0,"quick":true,"runs":1,"kernel":"","differences":[],"records":[]}"#;
        assert!(file(other).contains("schema 0"));
        let missing = read(Path::new("/nonexistent/bench.json")).unwrap_err().to_string();
        assert!(missing.contains("cannot be read"), "{missing}");
    }
}
