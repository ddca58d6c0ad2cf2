//! Keeping a program on one CPU of this machine.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::{Mutex, PoisonError};

/// How many hold which CPU.
static HELD: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// One of this machine's CPUs, the one that the fewest hold; until it is dropped.
pub(crate) struct OneCpu(usize);

impl OneCpu {
    /// Of those that we may run on.
    pub(crate) fn take() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("which CPUs there are")?;
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let cpu = (0..CpuSet::MAX_CPU)
            .filter(|&cpu| allowed.is_set(cpu))
            .min_by_key(|cpu| held.iter().filter(|other| *other == cpu).count())
            .context("no CPU that we may run on")?;
        held.push(cpu);
        Ok(Self(cpu))
    }

    /// What `start` starts runs there, with all its threads.
    pub(crate) fn run<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = sched_getaffinity(None).context("which CPUs there are")?;
        let mut one = CpuSet::new();
        one.set(self.0);
        // Inherited by children of this thread, and by nothing else that runs meanwhile.
        sched_setaffinity(None, &one).with_context(|| format!("running on CPU {}", self.0))?;
        let started = start();
        sched_setaffinity(None, &before).context("running on all CPUs again")?;
        started
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|&cpu| cpu == self.0) {
            held.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc;
    use std::process::Command;

    #[test]
    fn a_child_has_one_cpu_and_we_have_ours_again() {
        let nproc = || Ok(proc::stdout_of(&mut Command::new("nproc"))?.trim().to_owned());
        let all = nproc().unwrap();
        let one = OneCpu::take().unwrap();
        assert_eq!(one.run(nproc).unwrap(), "1");
        assert_eq!(nproc().unwrap(), all);
    }

    #[test]
    fn those_that_run_beside_each_other_get_different_ones() {
        // The other test may hold one of them.
        let cpus = std::thread::available_parallelism().unwrap().get();
        let taken: Vec<OneCpu> = (0..cpus).map(|_| OneCpu::take().unwrap()).collect();
        let mut numbers: Vec<usize> = taken.iter().map(|cpu| cpu.0).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert!(numbers.len() + 1 >= cpus, "{numbers:?} of {cpus}");
        drop(taken);
    }
}
