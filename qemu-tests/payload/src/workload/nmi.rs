//! The kernel touches missing pages in interrupts, in NMIs and in the idle task; and NMIs touch them while tasks fault.
//!
//! First one touch at a time, `rounds` (2) in each of the contexts; reported under `contexts`, as by the workload of that
//! name. Then twice a stream of `nmis` (300), each of which reads the next of `pages` (16) that are taken away over and
//! over, while `tasks` (3) fault on pages of their own: `paced`, where each NMI is only sent when the one before was seen
//! and none may be lost, and `storm`, one about every `nmi_us` (300) whatever becomes of them. `deepest` is how many were
//! in their handler at once; `exits` counts faults that KVM waited for because interrupts were off: as in an NMI
//! between a #VE and the moment at which the VE info page is free again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use ve_apf_testdev::{Nmi, PAGE_WORDS, pattern_base, pattern_word};

use super::contexts::one_context;
use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::device::Device;
use crate::dmesg;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::selftest::NmiList;
use crate::sys::Pages;
use crate::tally::From;

const CONTEXTS: [&str; 4] = ["hardirq", "nmi", "idle", "played_idle"];
/// Of each task.
const PAGES: usize = 16;

/// `nmi`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let rounds = options.number("rounds", 2)?;
    let list = Arena::anonymous(device, options.count("pages", 16)?)?;
    device.set_policy(&[], options.policy()?)?;
    let before = GuestCounters::read();
    let mut contexts = Map::new();
    let mut wrong_bytes = 0;
    for context in CONTEXTS {
        let result = one_context(device, &list, context, rounds)?;
        wrong_bytes += result["wrong_bytes"].as_u64().unwrap_or(0);
        contexts.insert(context.to_owned(), result);
    }
    let mut record = json!({"kind": "result", "workload": name, "contexts": contexts});
    for (phase, how) in [("paced", Nmi::Paced), ("storm", Nmi::Storm)] {
        let result = stream(options, device, &list, how)?;
        wrong_bytes += result["wrong_bytes"].as_u64().unwrap_or(0);
        record[phase] = result;
    }
    let bad = dmesg::bad_lines();
    record["wrong_bytes"] = json!(wrong_bytes);
    record["bad"] = json!(bad.len());
    record["bad_lines"] = json!(bad);
    if let Value::Object(record) = &mut record {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

fn stream(options: &Options, device: &Device, list: &Arena, how: Nmi) -> Result<Value> {
    let (tasks, target) = (options.count("tasks", 3)?, options.number("nmis", 300)?);
    let counter = Pages::anonymous(1)?;
    counter.write(0, 0, 0);
    let mut nmis = NmiList::new(counter.page(0), list.pages.page(0), list.frames.len())?;
    let arena = Arena::anonymous(device, tasks * PAGES)?;
    let (slices, evictor) = (arena.slices(tasks), device.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let team = Team::new(tasks, "touch", None, move |i, tally| {
        for round in 0.. {
            if stopped.load(Relaxed) {
                break;
            }
            if let Err(error) = evictor.evict(slices[i].frames(), round) {
                println!("l2-init: evict: {error:#}");
                break;
            }
            for page in shuffled(PAGES, round) {
                tally.touch(From::User, || slices[i].read(page, 0));
                tally.wrong_bytes += slices[i].wrong_bytes(page, round, 0..PAGE_WORDS);
            }
        }
    })?;
    let before = GuestCounters::read();
    device.stats_begin("nmi")?;
    team.go();
    device.nmi(how, options.number("nmi_us", 300)?, counter.frames()?[0] << 12)?;

    let slice = list.slices(1).remove(0);
    let (mut wrong, mut checks) = (0, 0);
    for round in 0.. {
        device.evict(slice.frames(), round)?;
        // Each page of the list was read again when so many more have ended.
        let enough = nmis.state()?.begun + list.frames.len() as u64;
        wait_for(&mut nmis, enough)?;
        wrong += wrong_words(&slice, round, &nmis.state()?.words);
        checks += 1;
        if enough >= target {
            break;
        }
    }
    stop.store(true, Relaxed);
    let tally = team.join();
    let sent = device.nmi(Nmi::Stop, 0, 0)?;
    if how == Nmi::Paced {
        wait_for(&mut nmis, sent)?;
    }
    // Not only sent ones would show.
    sleep(Duration::from_millis(20));
    let state = nmis.state()?;
    let stats = device.stats_end("nmi")?;
    let kvm = |name: &str| stats["kvm_vcpu"][name].as_u64().unwrap_or(0);
    let counters = GuestCounters::read().since(&before);
    let guest = |name: &str| counters.get("ve_apf").map_or(Value::Null, |all| all[name].clone());
    Ok(json!({
        "sent": sent, "begun": state.begun, "ended": state.ended, "deepest": state.deepest, "checks": checks,
        "faults": tally.faults, "wrong_bytes": tally.wrong_bytes + 8 * wrong,
        "delivered": guest("delivered"), "parked": guest("parked"), "suspended_nmi": guest("suspended_nmi"),
        "spurious_ve": guest("spurious_ve"),
        "exits": kvm("ve_apf_sync_irqs_off"), "injections": kvm("nmi_injections"), "windows": kvm("nmi_window_exits"),
    }))
}

fn wait_for(nmis: &mut NmiList, ended: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let state = nmis.state()?;
        if state.ended >= ended {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(10), "NMIs: {state:?} instead of {ended}");
        sleep(Duration::from_millis(1));
    }
}

/// What NMIs read must be what the pager delivers.
fn wrong_words(slice: &Slice, round: u64, words: &[u64]) -> u64 {
    let right = |(gfn, word): (&u64, &u64)| *word == pattern_word(pattern_base(*gfn, round), 0);
    (slice.frames().iter().zip(words)).filter(|pair| !right(*pair)).count() as u64
}
