//! `cargo xtask demo`: the same workload in every mode, a table, and a picture of who ran when.

use crate::cases::{self, Case};
use crate::error::{Kind, fail};
use crate::initrd::Programs;
use crate::lane::Lane;
use crate::report::{figures, html, svg, timeline};
use crate::runner::{self, Lab, Status};
use crate::{kernel, paths, setup};
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

/// The case whose traces make the picture.
const PICTURE: &str = "picture";
/// The picture shows at most this much.
const LONGEST_NS: u64 = 400_000_000;

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// On which machine
    #[arg(long, value_name = "LANE", default_value = "svm")]
    lane: Lane,
    /// Boot this bzImage instead of building one; it has to be patched and configured like ours
    #[arg(long, value_name = "BZIMAGE")]
    kernel: Option<PathBuf>,
}

/// Runs it; true if every case did what it should.
pub(crate) fn run(args: &DemoArgs) -> Result<bool> {
    setup::ensure()?;
    let suite = cases::load(&paths::root().join("qemu-tests/cases"), "demo")?;
    let dir = paths::target().join("demo");
    let all: Vec<&Case> = suite.cases.iter().filter(|c| c.lane == args.lane).collect();
    let Some(first) = all.first() else {
        return Err(fail(
            Kind::Usage,
            format!("the demo has no case on the lane {}", args.lane.name()),
            "see qemu-tests/cases/demo.toml",
        ));
    };
    let cpus = suite.boots.get(&first.boot).map_or(1, cases::BootEntry::cpus);
    let lab = Lab {
        kernel: kernel::given_or_built(args.kernel.as_deref())?,
        debug: None,
        stock: None,
        programs: Programs::build()?,
        dir: dir.clone(),
    };
    let outcomes = runner::run(&lab, &suite, &all)?;
    let find =
        |case: &Case| outcomes.iter().find(|o| o.name == case.name && o.status != Status::Skipped);

    let drawn = |case: &&&Case| case.name.split('@').next() == Some(PICTURE);
    let mut rows: Vec<figures::Row> = all
        .iter()
        .filter(|case| !drawn(case))
        .filter_map(|case| Some(figures::Row::of(case, &find(case)?.records)))
        .flatten()
        .collect();
    figures::group(&mut rows);
    let pictures: Vec<timeline::Timeline> = all
        .iter()
        .filter(drawn)
        .filter_map(|case| timeline::build(case.mode.name(), &find(case)?.records))
        .collect();
    let picture = draw(&pictures);

    let json = serde_json::to_string_pretty(&rows).context("writing demo.json")?;
    paths::write_atomic(&dir.join("demo.json"), json.as_bytes())?;
    if let Some(svg) = &picture {
        paths::write_atomic(&dir.join("timeline.svg"), svg.as_bytes())?;
    }
    let facts = [
        ("machine", args.lane.about(&[cpus], &[])),
        ("kernel", format!("{} (PREEMPT), configuration qemu-tests/kernel", lab.kernel.key)),
        ("times", "emulated: counts and shares mean something, absolute times do not".to_owned()),
        ("cases", "qemu-tests/cases/demo.toml".to_owned()),
    ];
    let page = html::page(&rows, picture.as_deref(), &facts);
    paths::write_atomic(&dir.join("report.html"), page.as_bytes())?;

    println!("\n{}", figures::table(&rows));
    println!("{}", dir.join("report.html").display());
    println!("{}", dir.join("demo.json").display());
    if picture.is_none() {
        println!("no picture: no case reported a trace");
    }
    Ok(runner::print_failures(&outcomes))
}

fn draw(pictures: &[timeline::Timeline]) -> Option<String> {
    let length = pictures.iter().map(|t| t.length).max()?.min(LONGEST_NS);
    let blocks: Vec<svg::Block<'_>> = pictures
        .iter()
        .map(|t| svg::Block { title: &t.mode, note: note(&t.mode).to_owned(), timeline: t })
        .collect();
    Some(svg::draw(&blocks, length))
}

fn note(mode: &str) -> &'static str {
    match mode {
        "blocking" => "a missing page stops the vCPU, and every task with it",
        "kvm-apf" => {
            "user-mode faults park the task; a fault in kernel mode, or a second task on the same page, halts the vCPU"
        }
        "hardware" => "the same, and the CPU itself tells the guest: a missing page is no VM exit",
        _ => "the task parks, in user mode and in the kernel; the vCPU goes on with the others",
    }
}
