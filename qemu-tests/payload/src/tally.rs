//! What a task counts about its faults.

use serde_json::{Value, json};

use crate::sys;

/// Counts of one task, or of several added up.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    /// First touches of missing pages from user mode.
    pub faults: u64,
    /// Of these, with the task asleep meanwhile.
    pub parked: u64,
    /// First touches inside a system call.
    pub kernel_faults: u64,
    /// Of these, with the task asleep meanwhile.
    pub kernel_parked: u64,
    /// Bytes that were not what the pager delivered.
    pub wrong_bytes: u64,
    /// CPU time of the task.
    pub cpu_ns: u64,
    /// What of it is the tasks' own work: as much as they would need if no page had been missing.
    pub own_ns: u64,
    latencies_us: Vec<u32>,
}

/// Where a page is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// By the program.
    User,
    /// By the kernel for the program.
    Kernel,
}

impl Tally {
    /// Times one first touch. Whether the task parked is the scheduler's count, so it is the same in every mode.
    pub fn touch<T>(&mut self, from: From, touch: impl FnOnce() -> T) -> T {
        let switches = sys::voluntary_switches();
        let began = sys::now_ns();
        let result = touch();
        let us = (sys::now_ns() - began) / 1000;
        self.count(from, us, sys::voluntary_switches() > switches);
        result
    }

    /// Counts one first touch that took `us`, and whether the task slept in it.
    pub fn count(&mut self, from: From, us: u64, slept: bool) {
        let (faults, parked) = match from {
            From::User => (&mut self.faults, &mut self.parked),
            From::Kernel => (&mut self.kernel_faults, &mut self.kernel_parked),
        };
        *faults += 1;
        *parked += u64::from(slept);
        self.latencies_us.push(u32::try_from(us).unwrap_or(u32::MAX));
    }

    /// Times first touches from user mode by a loop that sleeps for nothing else: what the scheduler counted over the
    /// whole loop is what slept. Costs less than [`Tally::touch`] for each.
    pub fn touch_each(&mut self, pages: impl Iterator<Item = usize>, mut touch: impl FnMut(usize)) {
        let switches = sys::voluntary_switches();
        let mut count = 0;
        for page in pages {
            let began = sys::now_ns();
            touch(page);
            let us = (sys::now_ns() - began) / 1000;
            self.latencies_us.push(u32::try_from(us).unwrap_or(u32::MAX));
            count += 1;
        }
        self.faults += count;
        self.parked += (sys::voluntary_switches() - switches).min(count);
    }

    /// Adds another task's.
    pub fn add(&mut self, other: Tally) {
        self.faults += other.faults;
        self.parked += other.parked;
        self.kernel_faults += other.kernel_faults;
        self.kernel_parked += other.kernel_parked;
        self.wrong_bytes += other.wrong_bytes;
        self.cpu_ns += other.cpu_ns;
        self.own_ns += other.own_ns;
        self.latencies_us.extend(other.latencies_us);
    }

    /// Touches that took at least `us`.
    pub fn slower_than(&self, us: u32) -> usize {
        self.latencies_us.iter().filter(|one| **one >= us).count()
    }

    /// Fields of a result.
    pub fn fields(&self) -> Value {
        json!({
            "faults": self.faults,
            "parked": self.parked,
            "kernel_faults": self.kernel_faults,
            "kernel_parked": self.kernel_parked,
            "wrong_bytes": self.wrong_bytes,
            "touch_cpu_us": self.cpu_ns / 1000,
            "own_us": self.own_ns / 1000,
            "fault_us": distribution(&self.latencies_us),
        })
    }
}

/// What is reported of many times.
pub fn distribution(us: &[u32]) -> Value {
    let mut sorted = us.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| {
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
    };
    let sum: u64 = sorted.iter().map(|us| u64::from(*us)).sum();
    json!({
        "min": sorted.first(),
        "median": at(50),
        "p99": at(99),
        "max": sorted.last(),
        "mean": sum.checked_div(sorted.len() as u64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeping_counts_as_parked() {
        let mut tally = Tally::default();
        tally.touch(From::User, || std::thread::sleep(std::time::Duration::from_millis(5)));
        tally.touch(From::Kernel, || ());
        assert_eq!(
            (tally.faults, tally.parked, tally.kernel_faults, tally.kernel_parked),
            (1, 1, 1, 0)
        );
        assert_eq!(tally.slower_than(4000), 1);
        let fields = tally.fields();
        assert!(fields["fault_us"]["max"].as_u64() >= Some(5000));
        assert!(Tally::default().fields()["fault_us"]["mean"].is_null());
    }
}
