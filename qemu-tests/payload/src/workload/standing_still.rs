//! A vCPU stands still for a page: does it answer IPIs, and do others run there, where the code that faulted allowed that?
//!
//! Options: `latency`, of a page. CPU 1 touches a missing page in a context; once the page is on its way CPU 0 sends it an
//! IPI (membarrier(2)) and waits for the answer, and a thread computes on CPU 1. Reports under `contexts`, by name:
//! `touch_us`, `answer_us`, and how long the thread ran (`ran_us`) before the page came; `before_the_page`: the answer did.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use crate::arena::Arena;
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, selftest, sys};

/// The kernel may not sleep in any of them, and be interrupted in all.
const CONTEXTS: [&str; 5] = ["preempt_off", "bh_off", "softirq", "rcu", "state"];

/// Where the touch happens.
const CPU: usize = 1;

/// `standing_still`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    ensure!(sys::cpus_online() > CPU, "needs two CPUs");
    let arena = Arena::anonymous(device, 1)?;
    device.set_policy(&[], options.policy()?)?;
    sys::pin_to(0)?;
    sys::register_membarrier()?;
    let before = GuestCounters::read();
    let mut contexts = Map::new();
    for context in CONTEXTS {
        contexts.insert(context.to_owned(), one(device, &arena, context)?);
    }
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "result", "workload": name, "contexts": contexts, "bad": bad.len(), "bad_lines": bad,
    });
    if let Some(record) = record.as_object_mut() {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

fn one(device: &Device, arena: &Arena, context: &str) -> Result<Value> {
    let (over, ran_ns) = (AtomicBool::new(false), AtomicU64::new(0));
    let compute = || {
        sys::pin_to(CPU)?;
        while !over.load(Ordering::Acquire) {
            ran_ns.store(sys::thread_cpu_ns(), Ordering::Release);
        }
        anyhow::Ok(())
    };
    let touch = || {
        sys::pin_to(CPU)?;
        let begun = Instant::now();
        let byte = selftest::touch(context, arena.pages.page(0))?;
        anyhow::Ok((byte, begun.elapsed()))
    };
    let (frame, round) = (arena.frames[0], 0);
    device.evict(&[frame], round)?;
    thread::scope(|scope| {
        let computing = scope.spawn(compute);
        let touching = scope.spawn(touch);
        let waited = Instant::now();
        let pending = || device.pager_state().map_or(1, |state| state.pending);
        while pending() == 0 && waited.elapsed() < Duration::from_secs(5) {
            thread::yield_now();
        }
        let (sent, ran_before) = (Instant::now(), ran_ns.load(Ordering::Acquire));
        let answered = sys::membarrier().map(|()| sent.elapsed());
        let (mut still, mut ran) = (false, 0);
        let pending = loop {
            let before = ran_ns.load(Ordering::Acquire);
            match device.pager_state() {
                Ok(state) if state.pending > 0 => (still, ran) = (true, before),
                other => break other,
            }
            thread::sleep(Duration::from_millis(1));
        };
        let touched = touching.join();
        over.store(true, Ordering::Release);
        computing.join().map_err(|_| anyhow!("the thread that computes panicked"))??;
        pending?;
        let (byte, took) = touched.map_err(|_| anyhow!("the thread that touches panicked"))??;
        let expected = arena.first_byte(0, round);
        ensure!(byte == expected, "{context}: read {byte:#x}, not {expected:#x}");
        Ok(json!({
            "touch_us": took.as_micros(), "answer_us": answered?.as_micros(), "ran_us": ran.saturating_sub(ran_before) / 1000,
            "before_the_page": u8::from(still),
        }))
    })
}
