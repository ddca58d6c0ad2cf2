//! Tasks that start together and count what they do.

use std::sync::{Arc, Barrier};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};

use crate::compute::pin;
use crate::device::forbid_port;
use crate::sys;
use crate::tally::Tally;

/// Tasks that wait for [`Team::go`].
pub(super) struct Team {
    start: Arc<Barrier>,
    tasks: Vec<JoinHandle<Tally>>,
}

impl Team {
    /// Makes `count` tasks named `prefix` and their number, which run `body` with their number.
    pub(super) fn new<F>(count: usize, prefix: &str, cpu: Option<usize>, body: F) -> Result<Team>
    where
        F: Fn(usize, &mut Tally) + Send + Sync + 'static,
    {
        let start = Arc::new(Barrier::new(count + 1));
        let body = Arc::new(body);
        let tasks = (0..count)
            .map(|i| {
                let (start, body) = (start.clone(), body.clone());
                let task = move || {
                    pin(cpu);
                    forbid_port();
                    start.wait();
                    let began = sys::thread_cpu_ns();
                    let mut tally = Tally::default();
                    body(i, &mut tally);
                    tally.cpu_ns = sys::thread_cpu_ns() - began;
                    tally
                };
                Builder::new()
                    .name(format!("{prefix}{i}"))
                    .spawn(task)
                    .context("cannot start a task")
            })
            .collect::<Result<_>>()?;
        Ok(Team { start, tasks })
    }

    /// Lets them run.
    pub(super) fn go(&self) {
        self.start.wait();
    }

    /// Waits for all of them.
    pub(super) fn join(self) -> Tally {
        let mut all = Tally::default();
        for task in self.tasks {
            // A panic ends the program (panic = abort), so joining does not fail.
            all.add(task.join().unwrap_or_default());
        }
        all
    }
}
