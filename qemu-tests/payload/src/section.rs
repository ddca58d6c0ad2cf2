//! The measured section of a workload: what is counted between its begin and its end, inside and outside.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::compute::{Computers, Share};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::tally::Tally;
use crate::{dmesg, sys, trace};

/// An open section.
pub struct Section<'a> {
    device: &'a Device,
    label: String,
    trace_lines: usize,
    before: GuestCounters,
    began_ns: u64,
    quiet: Quiet,
    computers: Computers,
    compute: usize,
    magic: bool,
}

/// What the machine does on its own: computing tasks alone, no missing pages.
#[derive(Debug, Default)]
struct Quiet {
    exits: u64,
    ns: u64,
    share: Share,
}

/// A closed section, all but the counts of the tasks.
pub struct Measured {
    /// Length in ns.
    pub wall_ns: u64,
    record: Value,
    label: String,
    share: Share,
    quiet_rate: f64,
    compute: usize,
}

/// Stops Bochs, if its debugger waits for that; else it does nothing.
fn magic_break() {
    // SAFETY: exchanges a register with itself.
    unsafe { std::arch::asm!("xchg bx, bx", options(nomem, nostack, preserves_flags)) };
}

impl<'a> Section<'a> {
    /// Runs the computing tasks alone for a moment, then opens the section with them running. Options: `compute`
    /// (number of tasks), `cpu` (pins them), `trace`, `trace_lines`, `quiet_ms`, `magic` (see [`magic_break`]).
    pub fn begin(device: &'a Device, options: &Options, label: &str) -> Result<Section<'a>> {
        let compute = options.count("compute", 1)?;
        let cpu = pinned(options)?;
        let quiet = measure_quiet(device, compute, cpu, options.number("quiet_ms", 300)?)?;
        let trace_lines =
            if options.flag("trace") { options.count("trace_lines", 4000)? } else { 0 };
        device.sync_clock()?;
        if trace_lines > 0 {
            trace::start().context("tracefs")?;
            device.trace(label, true)?;
        }
        let computers = Computers::start(compute, cpu)?;
        let before = GuestCounters::read();
        device.stats_begin(label)?;
        let began_ns = sys::now_ns();
        let (label, magic) = (label.to_owned(), options.flag("magic"));
        if magic {
            // The debugger writes to the console too, which may still be sending the clock.
            std::thread::sleep(std::time::Duration::from_millis(200));
            magic_break();
        }
        Ok(Section {
            device,
            label,
            trace_lines,
            before,
            began_ns,
            quiet,
            computers,
            compute,
            magic,
        })
    }

    /// Closes it.
    pub fn end(self) -> Result<Measured> {
        if self.magic {
            magic_break();
        }
        let wall_ns = sys::now_ns() - self.began_ns;
        self.device.stats_end(&self.label)?;
        let share = self.computers.stop();
        let mut record = json!(GuestCounters::read().since(&self.before));
        if self.trace_lines > 0 {
            let lines = trace::stop(self.trace_lines).context("tracefs")?;
            self.device.trace(&self.label, false)?;
            let trace =
                json!({"kind": "trace", "where": "l2", "label": self.label, "lines": lines});
            self.device.report("", &trace);
        }
        let bad = dmesg::bad_lines();
        record["bad"] = json!(bad.len());
        record["bad_lines"] = json!(bad);
        record["wall_us"] = json!(wall_ns / 1000);
        record["quiet_exits"] = json!(self.quiet.exits);
        record["magic"] = json!(self.magic);
        record["quiet_ns"] = json!(self.quiet.ns);
        let quiet_rate = self.quiet.share.rate();
        Ok(Measured {
            wall_ns,
            record,
            label: self.label,
            share,
            quiet_rate,
            compute: self.compute,
        })
    }
}

impl Measured {
    /// Reports the result: the tasks' counts, the shares, and what the workload adds.
    pub fn report(
        mut self,
        device: &Device,
        workload: &str,
        tasks: usize,
        latency_us: u32,
        tally: &Tally,
        more: Value,
    ) {
        for fields in [tally.fields(), more] {
            for (name, value) in fields.as_object().into_iter().flatten() {
                self.record[name] = value.clone();
            }
        }
        prefer_kernel_counts(&mut self.record);
        let cpus = sys::cpu_count();
        let cpu_share = self.share.of_cpu() * self.compute as f64 / self.compute.min(cpus) as f64;
        let of_all = |ns: u64| ns as f64 / (self.wall_ns as f64 * cpus as f64);
        // With no computing task, the useful work is the touching tasks' own.
        let (useful, bound) = if self.compute > 0 {
            (cpu_share + of_all(tally.own_ns), 1.0)
        } else {
            (of_all(tally.cpu_ns), bound(tasks, tally, latency_us, cpus))
        };
        // The same in work done, of what is done alone on this VM: contains what the emulator's noise adds.
        let work_share = if self.quiet_rate > 0.0 {
            json!(round(self.share.rate() / self.quiet_rate))
        } else {
            Value::Null
        };
        let head = json!({
            "kind": "result",
            "workload": workload,
            "label": self.label,
            "tasks": tasks,
            "compute": self.compute,
            "latency_us": latency_us,
            "useful_share": round(useful),
            "work_share": work_share,
            "bound": round(bound),
        });
        for (name, value) in head.as_object().into_iter().flatten() {
            self.record[name] = value.clone();
        }
        device.report(&self.label, &self.record);
    }
}

/// The scheduler's counts become `slept` and `kernel_slept`. With ve-apf the guest kernel counts itself which faults
/// parked their task: a task that is woken while it is on its way to sleep parked, but did not sleep.
fn prefer_kernel_counts(record: &mut Value) {
    for (name, slept, of, kernel) in [
        ("parked", "slept", "faults", "parked_user"),
        ("kernel_parked", "kernel_slept", "kernel_faults", "parked_kernel"),
    ] {
        record[slept] = record[name].clone();
        let in_use = record["ve_apf"]["faults"].as_u64().unwrap_or(0) > 0;
        if let (true, Some(parked), Some(of)) =
            (in_use, record["ve_apf"][kernel].as_u64(), record[of].as_u64())
        {
            record[name] = json!(parked.min(of));
        }
    }
}

/// `min(N * C / (C + L), 1)`: N tasks on a vCPU that compute C and then wait L.
fn bound(tasks: usize, tally: &Tally, latency_us: u32, cpus: usize) -> f64 {
    let faults = (tally.faults + tally.kernel_faults).max(1) as f64;
    let c = tally.cpu_ns as f64 / 1000.0 / faults;
    let n = tasks as f64 / cpus as f64;
    (n * c / (c + f64::from(latency_us))).min(1.0)
}

fn round(x: f64) -> f64 {
    (x * 10_000.0).round() / 10_000.0
}

/// The CPU all tasks of a workload share, if the options name one.
pub fn pinned(options: &Options) -> Result<Option<usize>> {
    Ok(match options.text("cpu", "") {
        "" => None,
        text => Some(text.parse().with_context(|| format!("veapf.cpu={text}"))?),
    })
}

fn measure_quiet(device: &Device, compute: usize, cpu: Option<usize>, ms: u64) -> Result<Quiet> {
    if ms == 0 {
        return Ok(Quiet::default());
    }
    let computers = Computers::start(compute, cpu)?;
    device.stats_begin("quiet")?;
    let began = sys::now_ns();
    std::thread::sleep(std::time::Duration::from_millis(ms));
    let ns = sys::now_ns() - began;
    let stats = device.stats_end("quiet")?;
    Ok(Quiet { exits: stats["exits"].as_u64().unwrap_or(0), ns, share: computers.stop() })
}
