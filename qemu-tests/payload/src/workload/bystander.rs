//! A task that does a little every now and then, beside tasks that wait for missing pages and one that computes: how late
//! is it?
//!
//! Twice the same: first the tasks sleep for the latency instead of touching a missing page. What the bystander is late by
//! is the time from when its sleep was to end to the end of its work. Options: `tasks`, `pages` (of each task), `touch`
//! (`user`, or `kernel`: pread() into the page), `period` (us that the bystander sleeps), `compute`.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use ve_apf_testdev::PAGE_WORDS;

use super::kernel_io::{read_into, source_file};
use super::team::Team;
use crate::arena::{Arena, Slice};
use crate::compute::{Computers, pin, work};
use crate::device::{Device, forbid_port};
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::sys;
use crate::tally::{From, Tally, distribution};

/// Steps of the bystander's work.
const WORK: u64 = 2000;

#[derive(Clone)]
enum Wait {
    Sleep(Duration),
    User,
    Kernel(Arc<File>),
}

/// `bystander`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 4)?, options.count("pages", 32)?);
    let (policy, cpu) = (options.policy()?, pinned(options)?);
    let period = Duration::from_micros(options.number("period", 1000)?);
    let wait = match options.text("touch", "user") {
        "user" => Wait::User,
        "kernel" => Wait::Kernel(Arc::new(source_file("/tmp/bystander", pages)?)),
        other => bail!("veapf.touch={other}: must be user or kernel"),
    };
    let arena = Arena::anonymous(device, tasks * pages)?;
    let slices = arena.slices(tasks);
    device.set_policy(&[], policy)?;

    let computers = Computers::start(options.count("compute", 1)?, cpu)?;
    let asleep = Wait::Sleep(Duration::from_micros(policy.max_us.into()));
    let team = team(&slices, asleep, cpu)?;
    let late = Bystander::start(period, cpu)?;
    team.go();
    team.join();
    let quiet = late.stop();
    computers.stop();

    device.evict(&arena.frames, 0)?;
    let team = self::team(&slices, wait, cpu)?;
    let section = Section::begin(device, options, name)?;
    let late = Bystander::start(period, cpu)?;
    team.go();
    let mut tally = team.join();
    let faulting = late.stop();
    let measured = section.end()?;
    if options.text("touch", "user") == "user" {
        for slice in &slices {
            for index in 0..slice.count {
                tally.wrong_bytes += slice.wrong_bytes(index, 0, 0..PAGE_WORDS);
            }
        }
    }
    let more = json!({
        "pages": pages, "touch": options.text("touch", "user"), "samples": faulting.len(),
        "bystander_us": distribution(&faulting), "bystander_quiet_us": distribution(&quiet),
    });
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}

fn team(slices: &[Slice], wait: Wait, cpu: Option<usize>) -> Result<Team> {
    let slices = slices.to_vec();
    Team::new(slices.len(), "wait", cpu, move |i, tally| {
        let slice = &slices[i];
        for index in 0..slice.count {
            if let Err(error) = one(slice, index, &wait, tally) {
                tally.wrong_bytes += sys::PAGE as u64;
                println!("l2-init: task {i}, page {index}: {error}");
            }
        }
    })
}

fn one(slice: &Slice, index: usize, wait: &Wait, tally: &mut Tally) -> io::Result<()> {
    match wait {
        Wait::Sleep(latency) => sleep(*latency),
        Wait::User => drop(tally.touch(From::User, || slice.read(index, 0))),
        Wait::Kernel(file) => {
            read_into(file, slice, index, 0, tally)?;
        }
    }
    Ok(())
}

/// The bystander, running.
struct Bystander {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<u32>>,
}

impl Bystander {
    fn start(period: Duration, cpu: Option<usize>) -> Result<Bystander> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let body = move || {
            pin(cpu);
            forbid_port();
            let mut late = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = sys::now_ns();
                sleep(period);
                work(WORK);
                let took = Duration::from_nanos(sys::now_ns() - began);
                let us = took.saturating_sub(period).as_micros();
                late.push(u32::try_from(us).unwrap_or(u32::MAX));
            }
            late
        };
        let task = Builder::new()
            .name("bystander".to_owned())
            .spawn(body)
            .context("cannot start a task")?;
        Ok(Bystander { stop, task })
    }

    /// How late it was each time, in us.
    fn stop(self) -> Vec<u32> {
        self.stop.store(true, Ordering::Relaxed);
        // A panic ends the program (panic = abort), so joining does not fail.
        self.task.join().unwrap_or_default()
    }
}
