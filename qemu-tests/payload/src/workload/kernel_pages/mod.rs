//! All memory that the guest did not declare is taken away, again and again, while the guest runs: kernel text, stacks,
//! IDT, GDT, TSS, per-CPU areas, page tables, the fault ring and the VE info page. None of it may raise #VE by hardware,
//! and nothing may go wrong.
//!
//! For one vCPU: what a page holds is saved while no vCPU runs. Options: `rounds` (3), `work` (20: how often each worker
//! goes round before pages are taken again), `pages` (64: declared pages that are missing too in every second round),
//! `nmi_us` (500; 0: no NMIs), `all` (1: all memory is declared, which is wrong, and must show). Results: for each of `rounds`, pages `evicted` and `delivered`, #VEs by who raised them:
//! `injected`, `hardware` for declared pages, and `outside`, hardware for any other, which must be 0; `kinds` of the first 500
//! pages that were asked for.

mod kinds;
mod workers;

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use ve_apf_testdev::{Nmi, PAGE_WORDS};

use crate::arena::Arena;
use crate::device::Device;
use crate::fault_trace::{self, Fault};
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::selftest::{self, NmiList};
use crate::sys::Pages;
use crate::{dmesg, sys};
use kinds::Kinds;
use workers::Workers;

/// `kernel_pages`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let rounds = options.number("rounds", 3)?;
    let (work, nmi_us) = (options.number("work", 20)?, options.number("nmi_us", 500)?);
    let declared = selftest::ranges()?;
    anyhow::ensure!(!declared.is_empty(), "no memory is declared: hardware mode, movablecore=");
    let frames = undeclared(&declared, device.frame())?;
    let arena = Arena::anonymous(device, options.count("pages", 64)?)?;
    let counter = Pages::anonymous(1)?;
    counter.write(0, 0, 0);
    device.declare(&frames)?;
    device.set_policy(&[], options.policy()?)?;

    let mut nmis = NmiList::new(counter.page(0), std::ptr::null(), 0)?;
    if nmi_us > 0 {
        device.nmi(Nmi::Storm, nmi_us, 0)?;
    }
    if options.flag("all") {
        selftest::declare(&(0..1 << 40), false)?;
    }
    let kinds = Kinds::new()?;
    let workers = Workers::start()?;
    let before = GuestCounters::read();
    let mut done = Vec::new();
    let mut wrong_bytes = 0;
    let mut outside = 0;
    for round in 0..rounds {
        let missing = round % 2 == 1;
        let mut one = take_all(device, &frames, missing.then_some(&arena), round, || {
            workers.go_round(work, Duration::from_secs(60))
        })?;
        let faults = fault_trace::stop()?;
        let is_declared = |fault: &&Fault| declared.iter().any(|all| all.contains(&fault.gfn));
        let (inside, others): (Vec<&Fault>, Vec<&Fault>) =
            faults.iter().filter(|fault| fault.hardware).partition(is_declared);
        one["hardware"] = json!(inside.len());
        one["injected"] = json!(faults.iter().filter(|fault| !fault.hardware).count());
        one["outside"] = json!(others.len());
        one["kinds"] = kinds.count(&device.fault_log()?)?;
        outside += others.len();
        wrong_bytes += one["wrong_bytes"].as_u64().unwrap_or(0);
        done.push(one);
    }
    let sent = if nmi_us > 0 { device.nmi(Nmi::Stop, 0, 0)? } else { 0 };
    let state = nmis.state()?;
    let work = workers.stop();
    device.restore_all()?;
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "result", "workload": name, "frames": frames.len(), "rounds": done, "outside": outside,
        "nmis_sent": sent, "nmis": state.begun, "nmis_ended": state.ended, "nmis_deepest": state.deepest,
        "work": work.rounds, "wrong_sums": work.wrong, "wrong_bytes": wrong_bytes + 8 * work.wrong,
        "bad": bad.len(), "bad_lines": bad,
    });
    if let Value::Object(record) = &mut record {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

/// One round: takes everything away and lets the workers run.
fn take_all(
    device: &Device,
    frames: &[u64],
    arena: Option<&Arena>,
    round: u64,
    work: impl FnOnce() -> Result<()>,
) -> Result<Value> {
    fault_trace::start()?;
    let began = Instant::now();
    if let Some(arena) = arena {
        device.evict(&arena.frames, round)?;
    }
    device.stats_begin("round")?;
    device.fault_log()?;
    device.evict_keep(frames)?;
    let evicted = Instant::now();
    let mut wrong = 0;
    if let Some(arena) = arena {
        let slice = arena.slices(1).remove(0);
        wrong = (0..slice.count).map(|page| slice.wrong_bytes(page, round, 0..PAGE_WORDS)).sum();
    }
    work()?;
    let stats = device.stats_end("round")?;
    let count = |group: &str, name: &str| stats[group][name].as_u64().unwrap_or(0);
    Ok(json!({
        "evicted": count("pager", "evicted"), "delivered": count("pager", "delivered"),
        "pf_taken": count("kvm_vcpu", "pf_taken"), "info_reloads": count("kvm_vcpu", "ve_apf_info_reloads"),
        "waited": count("kvm_vcpu", "apf_waited"), "nmi_injections": count("kvm_vcpu", "nmi_injections"),
        "wrong_bytes": wrong,
        "evict_ms": (evicted - began).as_millis() as u64, "ms": evicted.elapsed().as_millis() as u64,
    }))
}

/// Frames of the guest's memory that are not declared, but for the one that the test device needs.
fn undeclared(declared: &[Range<u64>], device: u64) -> Result<Vec<u64>> {
    let text = std::fs::read_to_string("/proc/iomem")?;
    let ram: Vec<Range<u64>> =
        text.lines().filter(|line| line.ends_with(": System RAM")).filter_map(parse_ram).collect();
    if ram.iter().all(|range| range.is_empty()) {
        bail!("/proc/iomem has no addresses");
    }
    let taken =
        |frame: &u64| *frame != device && !declared.iter().any(|declared| declared.contains(frame));
    Ok(ram.into_iter().flatten().filter(taken).collect())
}

/// The whole frames of `START-LAST : NAME`; what is inside of another entry starts with a blank.
fn parse_ram(line: &str) -> Option<Range<u64>> {
    let (start, rest) = line.split_once('-')?;
    let last = rest.split_whitespace().next()?;
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let page = sys::PAGE as u64;
    Some(address(start)?.div_ceil(page)..(address(last)? + 1) / page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram() {
        assert_eq!(parse_ram("00001000-0009fbff : System RAM"), Some(1..0x9f));
        assert_eq!(parse_ram("00100000-0fffffff : System RAM"), Some(0x100..0x10000));
        assert_eq!(parse_ram("  01000000-01ffffff : Kernel code"), None);
    }
}
