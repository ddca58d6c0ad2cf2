//! A server whose VM is restored: all memory is missing, and comes page by page as it is touched. How long until it answers,
//! and how long do answers take meanwhile?
//!
//! The clients are tasks of the same guest, whose connections live through the snapshot, and ask for a key each after the
//! other; no key is asked for twice, but once before the snapshot, for comparison. The VMM must be told to take one snapshot, and `latency` is
//! what it is told of its pages. Options: `tasks` (clients), `keys` (of each), `threads` (of the server).

mod memcached;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::lock;
use super::team::Team;
use crate::arena::{Arena, shuffled};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys;
use crate::tally::{Tally, distribution};
use memcached::{Client, Server};

/// How often to look whether the machine was restored.
const POLL: Duration = Duration::from_millis(1);

/// What the clients saw.
#[derive(Default)]
struct Seen {
    answered: AtomicBool,
    /// The first right answer: time since the restore, and pages that had come.
    first: Mutex<Option<(Duration, u64)>>,
    times_us: Mutex<Vec<u32>>,
}

/// `restore`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (clients, keys) = (options.count("tasks", 8)?, options.count("keys", 64)?);
    let latency_us = options.policy()?.max_us;
    ensure!(device.snapshots()? == (0, 1), "{name} needs a VMM that takes one snapshot");
    let mut server = Server::start(options.count("threads", 4)?, 64)?;
    server.connect()?.store(0..(clients * keys) as u64)?;
    let mut connected = (0..clients).map(|_| server.connect()).collect::<Result<Vec<Client>>>()?;

    let quiet = Arc::new(Seen::default());
    connected = ask_all(connected, keys, device, &quiet)?.1;
    // Its being taken away is what the VMM waits for.
    let trigger = Arena::anonymous(device, 1)?;
    let seen = Arc::new(Seen::default());
    let section = Section::begin(device, options, name)?;
    device.evict_keep(&trigger.frames)?;
    while device.snapshots()?.1 > 0 {
        sleep(POLL);
    }
    let (tally, _) = ask_all(connected, keys, device, &seen)?;
    let (took, _) = device.since_restore()?;
    let measured = section.end()?;
    server.stop()?;

    let first = *lock(&seen.first);
    let (times, quiet) = (lock(&seen.times_us), lock(&quiet.times_us));
    let more = json!({
        "answers": times.len(),
        "answer_us": distribution(&times), "answer_quiet_us": distribution(&quiet),
        "first_us": first.map(|(time, _)| time.as_micros() as u64),
        "first_pages": first.map(|(_, pages)| pages),
        "all_us": took.as_micros() as u64,
    });
    measured.report(device, name, clients, latency_us, &tally, more);
    Ok(())
}

/// Every client asks for its keys, all clients at once.
fn ask_all(
    clients: Vec<Client>,
    keys: usize,
    device: &Device,
    seen: &Arc<Seen>,
) -> Result<(Tally, Vec<Client>)> {
    let count = clients.len();
    let clients: Arc<Vec<Mutex<Client>>> = Arc::new(clients.into_iter().map(Mutex::new).collect());
    let (own, device, result) = (clients.clone(), device.clone(), seen.clone());
    let team = Team::new(count, "client", None, move |i, tally| {
        let mut client = lock(&own[i]);
        let mut times = Vec::with_capacity(keys);
        for key in shuffled(keys, i as u64) {
            let began = sys::now_ns();
            match client.ask((i * keys + key) as u64) {
                Ok(wrong) => tally.wrong_bytes += wrong,
                Err(error) => {
                    tally.wrong_bytes += sys::PAGE as u64;
                    println!("l2-init: client {i}: {error}");
                    break;
                }
            }
            let us = (sys::now_ns() - began) / 1000;
            times.push(u32::try_from(us).unwrap_or(u32::MAX));
            if tally.wrong_bytes == 0 && !result.answered.swap(true, Ordering::Relaxed) {
                *lock(&result.first) = device.since_restore().ok();
            }
        }
        lock(&result.times_us).extend(times);
    })?;
    team.go();
    let tally = team.join();
    let clients = Arc::into_inner(clients).context("a client is left")?;
    let clients =
        clients.into_iter().map(|c| c.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok((tally, clients.collect()))
}
