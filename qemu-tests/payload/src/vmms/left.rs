//! What VMs and VMMs leave behind.

use std::fs;

use anyhow::{Context, Result};

/// What is still there of a VMM.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    /// Threads that waited for its pages.
    pub(super) threads: usize,
    /// VMs.
    pub(super) vms: usize,
}

impl Remains {
    /// Of the process with this id, gone or not.
    pub(super) fn of(pid: i32) -> Result<Remains> {
        let name = format!("kvm-apf-{pid}");
        let threads = tasks()?.filter(|task| task.trim_end() == name).count();
        let prefix = format!("{pid}-");
        let dirs = fs::read_dir("/sys/kernel/debug/kvm").context("/sys/kernel/debug/kvm")?;
        let vms =
            dirs.flatten().filter(|dir| dir.file_name().to_string_lossy().starts_with(&prefix));
        Ok(Remains { threads, vms: vms.count() })
    }
}

/// Names of all tasks.
fn tasks() -> Result<impl Iterator<Item = String>> {
    let processes = fs::read_dir("/proc")?.flatten().map(|process| process.path().join("task"));
    let tasks = processes.filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    Ok(tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()))
}

/// Memory that the kernel has for itself, and tasks.
#[derive(Debug, Default)]
pub(super) struct Memory {
    kb: i64,
}

impl Memory {
    /// When what is freed late has been freed.
    pub(super) fn settled() -> Result<Memory> {
        // Nothing waits for RCU and for work queues from here.
        std::thread::sleep(std::time::Duration::from_millis(500));
        fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        let text = fs::read_to_string("/proc/meminfo")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
        };
        let names =
            ["SUnreclaim", "KernelStack", "PageTables", "VmallocUsed", "Percpu", "AnonPages"];
        Ok(Memory { kb: names.iter().filter_map(|name| field(name)).sum() })
    }

    /// KiB more than then.
    pub(super) fn grown_since(&self, before: &Memory) -> i64 {
        self.kb - before.kb
    }
}
