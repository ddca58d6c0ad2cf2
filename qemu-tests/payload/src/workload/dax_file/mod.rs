//! A file on persistent memory (`ext4 -o dax`), mapped and used while the host takes the memory behind it away, and
//! gives it back. Commands come from the serial console, one a line, and each is answered by a record `dax_file`:
//!
//! * `touch PAGE`, `store PAGE`: a task reads or writes a word of the mapping;
//! * `read PAGE`, `write PAGE`, `sync PAGE`: a task calls pread(), pwrite() or fdatasync();
//! * `join`: waits for a task that was not done when its command was answered;
//! * `verify`: every word of the file, through the program's own mapping and by pread();
//! * `end`.
//!
//! All the while two tasks go on, see [`bystander`]. Keys: `pmem` (/dev/pmem0), `pages` (64) of each file, `patience_ms`
//! (2000) until a command is answered whether its task is done or not.

mod bystander;
mod file;
mod task;

use std::io::BufRead;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, plan, system};
use bystander::Bystanders;
use file::DaxFile;
use task::{Action, Task};

const DIR: &str = "/mnt";

/// `dax_file`.
pub(super) fn run(options: &Options) -> Result<()> {
    let device = options.text("pmem", "/dev/pmem0");
    let patience = Duration::from_millis(options.number("patience_ms", 2000)?);
    std::fs::create_dir_all(DIR)?;
    system::mount_device(device, DIR, "ext4", "dax").with_context(|| {
        let log = ["nfit", "pmem", "nd_", "EXT4"].map(dmesg::lines_with).concat();
        format!("mount {device}; kernel log: {log:?}")
    })?;
    let pages = options.count("pages", 64)?;
    let (a, b) = (
        DaxFile::create(&format!("{DIR}/a"), pages)?,
        DaxFile::create(&format!("{DIR}/b"), pages)?,
    );
    // The file is the one whose memory can be cut off without the other's.
    let (kept, file) = if a.first_byte()? < b.first_byte()? { (a, b) } else { (b, a) };
    let cut = file.first_byte()?;
    ensure!(kept.end_byte()? <= cut, "the two files are in each other's way on {device}");
    count_sigbus();
    let mut session = Session { bystanders: Bystanders::start(kept)?, file, patience, task: None };
    plan::print(&json!({"kind": "dax_file", "step": "ready", "cut": cut}));
    for line in std::io::stdin().lock().lines() {
        let line = line.context("console")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            ["end"] => return session.end(),
            [step, arguments @ ..] => session.answer(step, arguments)?,
        }
    }
    bail!("the console was closed")
}

struct Session {
    file: DaxFile,
    bystanders: Bystanders,
    patience: Duration,
    /// One that was not done yet.
    task: Option<Task>,
}

impl Session {
    /// Carries a command out and prints what came of it, and what else happened meanwhile.
    fn answer(&mut self, step: &str, arguments: &[&str]) -> Result<()> {
        let before = GuestCounters::read();
        let progress = self.bystanders.progress();
        let mut record = match (step, arguments) {
            ("join", []) => {
                let task = self.task.take().context("join: nothing to wait for")?;
                self.wait_for(task)?
            }
            ("verify", []) => self.file.verify(),
            (step, [page]) => {
                let action = Action::named(step).with_context(|| format!("{step}: unknown"))?;
                let page = page.parse().with_context(|| format!("{step} {page}"))?;
                let task = Task::start(action, &self.file, page)?;
                self.wait_for(task)?
            }
            _ => bail!("{step} {arguments:?}: no such command"),
        };
        // Long enough for a bystander to show that it runs.
        std::thread::sleep(Duration::from_millis(300));
        for fields in [json!(GuestCounters::read().since(&before)), self.bystanders.since(progress)]
        {
            for (name, value) in fields.as_object().into_iter().flatten() {
                record[name] = value.clone();
            }
        }
        record["kind"] = json!("dax_file");
        record["step"] = json!(step);
        plan::print(&record);
        Ok(())
    }

    fn wait_for(&mut self, mut task: Task) -> Result<Value> {
        let outcome = task.wait(self.patience)?;
        if outcome["state"] == "pending" {
            self.task = Some(task);
        }
        Ok(outcome)
    }

    fn end(self) -> Result<()> {
        let wrong = self.bystanders.stop();
        let bad = dmesg::bad_lines();
        plan::print(&json!({
            "kind": "dax_file",
            "step": "end",
            "kept_wrong": wrong,
            "sigbus_elsewhere": SIGBUS.load(Relaxed),
            "bad": bad.len(),
            "bad_lines": bad,
            "ve_apf_log": dmesg::lines_with("ve-apf"),
            "poison_log": dmesg::lines_with("Memory failure"),
        }));
        Ok(())
    }
}

/// Signals that reached this process, which touches nothing that is missing.
static SIGBUS: AtomicU32 = AtomicU32::new(0);

fn count_sigbus() {
    task::on_sigbus(counted);
}

extern "C" fn counted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // The instruction runs again, and may fail again: not for ever.
    if SIGBUS.fetch_add(1, Relaxed) > 100 {
        // SAFETY: safe in a signal handler, and ends the process.
        unsafe { libc::_exit(70) }
    }
}
