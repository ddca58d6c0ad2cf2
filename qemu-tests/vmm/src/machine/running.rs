//! The vCPUs' threads: started, listened to, taken out of the guest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Outcome;
use crate::report::Reporter;
use crate::snapshot::driver::Driver;
use crate::sys;
use crate::vcpu::{End, VcpuThread};

/// How a run ended.
pub(super) enum Run {
    /// For good.
    Ended(Outcome),
    /// In a reset, with no vCPU running.
    Reset(Vec<VcpuThread>),
}

/// Runs the vCPUs, each in a thread of its own, until one of them says how this ends.
pub(super) fn vcpus(
    vcpus: Vec<VcpuThread>,
    stop: &AtomicBool,
    reporter: &Reporter,
    limit: Duration,
    may_reset: bool,
    snapshots: &mut Driver,
) -> Result<Run> {
    let started = Arc::new(Barrier::new(vcpus.len()));
    let (tid_tx, tid_rx) = channel();
    let (done_tx, done_rx) = channel();
    let count = vcpus.len();
    let mut threads = Vec::new();
    for mut vcpu in vcpus {
        let (started, tids, done) = (started.clone(), tid_tx.clone(), done_tx.clone());
        let name = format!("vcpu{}", vcpu.id);
        let body = move || {
            vcpu.run(&started, &tids, &done);
            vcpu
        };
        let thread = thread::Builder::new().name(name).spawn(body);
        threads.push(thread.context("cannot start a vCPU thread")?);
    }
    let mut tids: BTreeMap<u8, i32> = tid_rx.iter().take(count).collect();
    let (outcome, record) = match wait(&done_rx, limit, snapshots, &tids)? {
        Ok((_, End::Guest(code))) => return Ok(Run::Ended(Outcome::Guest(code))),
        Ok((id, End::Reset)) if may_reset => {
            tids.remove(&id);
            let at = stop_all(&tids, stop, &done_rx);
            anyhow::ensure!(at.iter().all(|at| at["stuck"].is_null()), "reset: {at:?}");
            // A panic ends the process, so joining does not fail.
            return Ok(Run::Reset(threads.into_iter().flat_map(|thread| thread.join()).collect()));
        }
        Ok((_, End::Internal(what))) => (Outcome::InternalError, ("internal_error", what)),
        Ok((_, End::MemoryFault(what))) => (Outcome::MemoryFault, ("memory_fault", what)),
        Ok((_, End::Poison(at))) => (Outcome::Poison, ("poison", at)),
        Ok((id, End::Shutdown)) => (Outcome::Shutdown, ("shutdown", json!({"vcpu": id}))),
        Ok((id, End::Reset)) => (Outcome::Reset, ("reset", json!({"vcpu": id}))),
        Ok((_, End::Stopped(at))) => (Outcome::Timeout, ("timeout", at)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let threads = sys::threads();
            reporter.print_value("hung", json!({"threads": threads, "pager": snapshots.pager()}));
            let at = stop_all(&tids, stop, &done_rx);
            let after_s = limit.as_millis().div_ceil(1000) as u64;
            (Outcome::Timeout, ("timeout", json!({"after_s": after_s, "vcpus": at})))
        }
    };
    reporter.print_value(record.0, record.1);
    Ok(Run::Ended(outcome))
}

/// Waits for a vCPU's end, and takes snapshots meanwhile.
fn wait(
    done: &Receiver<(u8, End)>,
    limit: Duration,
    snapshots: &mut Driver,
    tids: &BTreeMap<u8, i32>,
) -> Result<Result<(u8, End), RecvTimeoutError>> {
    let end = Instant::now() + limit;
    loop {
        let until = snapshots.due().map_or(end, |next| next.min(end));
        match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => snapshots.step(tids)?,
            other => return Ok(other),
        }
    }
}

/// Takes all vCPUs out of the guest and collects where they were. One that waits for a page may not come.
fn stop_all(tids: &BTreeMap<u8, i32>, stop: &AtomicBool, done: &Receiver<(u8, End)>) -> Vec<Value> {
    stop.store(true, Ordering::Release);
    let give_up = Instant::now() + Duration::from_secs(2);
    let mut at = BTreeMap::new();
    while at.len() < tids.len() && Instant::now() < give_up {
        // Again and again: a signal just before KVM_RUN is lost.
        for tid in tids.iter().filter(|(id, _)| !at.contains_key(*id)).map(|(_, tid)| *tid) {
            sys::kick(tid);
        }
        if let Ok((id, end)) = done.recv_timeout(Duration::from_millis(20)) {
            let place = match end {
                End::Stopped(place) => place,
                other => json!({"vcpu": id, "ended": format!("{other:?}")}),
            };
            at.insert(id, place);
        }
    }
    for id in tids.keys() {
        at.entry(*id).or_insert_with(|| json!({"vcpu": id, "stuck": true}));
    }
    at.into_values().collect()
}
