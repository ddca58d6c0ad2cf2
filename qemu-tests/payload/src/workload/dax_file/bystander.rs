//! Tasks that have nothing to do with the file: one computes, one writes, syncs and verifies another file of the same
//! file system.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::file::{DaxFile, page_content};
use crate::compute::work;
use crate::sys::PAGE;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    computed: AtomicU64,
    kept: AtomicU64,
    wrong: AtomicU64,
}

/// How far the two tasks are.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    computed: u64,
    kept: u64,
}

/// The running tasks.
pub(super) struct Bystanders {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Bystanders {
    /// Starts them; `kept` is the other file.
    pub(super) fn start(kept: DaxFile) -> Result<Bystanders> {
        let shared = Arc::new(Shared::default());
        let (a, b) = (shared.clone(), shared.clone());
        let compute = Builder::new().name("compute".to_owned()).spawn(move || compute(&a))?;
        let keep = Builder::new().name("keep".to_owned()).spawn(move || keep(&b, &kept))?;
        Ok(Bystanders { shared, tasks: vec![compute, keep] })
    }

    /// Now.
    pub(super) fn progress(&self) -> Progress {
        let Shared { computed, kept, .. } = &*self.shared;
        Progress { computed: computed.load(Relaxed), kept: kept.load(Relaxed) }
    }

    /// Rounds that each task made since then.
    pub(super) fn since(&self, then: Progress) -> Value {
        let now = self.progress();
        json!({"computed": now.computed - then.computed, "kept": now.kept - then.kept})
    }

    /// Stops them; returns what was wrong in the other file.
    pub(super) fn stop(self) -> u64 {
        self.shared.stop.store(true, Relaxed);
        for task in self.tasks {
            // A panic ends the program (panic = abort), so joining does not fail.
            let _ = task.join();
        }
        self.shared.wrong.load(Relaxed)
    }
}

fn compute(shared: &Shared) {
    while !shared.stop.load(Relaxed) {
        work(10_000);
        shared.computed.fetch_add(1, Relaxed);
    }
}

/// A round: each page is read through the mapping and written by pwrite(), which turns it into another page's content.
fn keep(shared: &Shared, kept: &DaxFile) {
    let mut round = 0;
    while !shared.stop.load(Relaxed) {
        for page in 0..kept.pages {
            let old = page_content(page + round);
            let good = (0..PAGE / 8)
                .all(|word| kept.load(page, word).to_le_bytes()[..] == old[word * 8..word * 8 + 8]);
            let new = page_content(page + round + 1);
            let written = kept.file.write_all_at(&new, (page * PAGE) as u64).is_ok();
            shared.wrong.fetch_add(u64::from(!good || !written), Relaxed);
        }
        let synced = kept.file.sync_data().is_ok();
        shared.wrong.fetch_add(u64::from(!synced), Relaxed);
        round += 1;
        shared.kept.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
}
