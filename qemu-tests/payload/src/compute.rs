//! Tasks that compute and never wait: what they get of a vCPU is what missing pages leave.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result};

use crate::device::forbid_port;
use crate::sys;

/// Running tasks.
pub struct Computers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Share>>,
}

/// What the tasks got.
#[derive(Debug, Default, Clone, Copy)]
pub struct Share {
    /// Iterations.
    pub iterations: u64,
    /// CPU time in ns.
    pub cpu_ns: u64,
    /// Wall time in ns, of each added up.
    pub wall_ns: u64,
}

impl Share {
    /// Part of the wall time in which the tasks had a CPU, from 0 to 1.
    pub fn of_cpu(&self) -> f64 {
        if self.wall_ns == 0 { 0.0 } else { self.cpu_ns as f64 / self.wall_ns as f64 }
    }

    /// Iterations per ns of wall time.
    pub fn rate(&self) -> f64 {
        if self.wall_ns == 0 { 0.0 } else { self.iterations as f64 / self.wall_ns as f64 }
    }
}

impl Computers {
    /// Starts `count` tasks, `compute0` and so on; `cpu` pins them.
    pub fn start(count: usize, cpu: Option<usize>) -> Result<Computers> {
        let stop = Arc::new(AtomicBool::new(false));
        let tasks = (0..count)
            .map(|i| {
                let stop = stop.clone();
                let body = move || {
                    pin(cpu);
                    forbid_port();
                    compute(&stop)
                };
                Builder::new()
                    .name(format!("compute{i}"))
                    .spawn(body)
                    .context("cannot start a task")
            })
            .collect::<Result<_>>()?;
        Ok(Computers { stop, tasks })
    }

    /// Stops them.
    pub fn stop(self) -> Share {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Share::default();
        for task in self.tasks {
            // A panic ends the program (panic = abort), so joining does not fail.
            let one = task.join().unwrap_or_default();
            all.iterations += one.iterations;
            all.cpu_ns += one.cpu_ns;
            all.wall_ns += one.wall_ns;
        }
        all
    }
}

/// Pins the calling thread if asked to.
pub fn pin(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        if let Err(error) = sys::pin_to(cpu) {
            println!("l2-init: cannot pin to CPU {cpu}: {error}");
        }
    }
}

/// CPU time that a task takes for `one`, in ns: the median of a few, less what looking at the clock takes.
pub fn own_ns(mut one: impl FnMut(usize)) -> u64 {
    median(&mut one).saturating_sub(median(&mut |_| ()))
}

fn median(one: &mut impl FnMut(usize)) -> u64 {
    const SAMPLES: usize = 5;
    let mut ns = [0; SAMPLES];
    for (i, ns) in ns.iter_mut().enumerate() {
        let began = sys::thread_cpu_ns();
        one(i);
        *ns = sys::thread_cpu_ns() - began;
    }
    ns.sort_unstable();
    ns[SAMPLES / 2]
}

/// Computes for so many steps, each of which needs the one before.
#[inline]
pub fn work(steps: u64) {
    let mut x = 1u64;
    for _ in 0..steps {
        x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

fn compute(stop: &AtomicBool) -> Share {
    let (wall, cpu) = (sys::now_ns(), sys::thread_cpu_ns());
    let mut iterations = 0;
    while !stop.load(Ordering::Relaxed) {
        work(1000);
        iterations += 1000;
    }
    Share { iterations, cpu_ns: sys::thread_cpu_ns() - cpu, wall_ns: sys::now_ns() - wall }
}
