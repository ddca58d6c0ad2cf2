//! The workloads, by name. All take `latency`, `order`, `burst`, `hold` (the pager's policy, see
//! [`crate::options::Options::policy`]), `compute`, `cpu`, `quiet_ms`, `trace` and `trace_lines` (see
//! [`crate::section::Section::begin`]).

mod bad_input;
mod break_ring;
mod bystander;
mod contexts;
mod dax_file;
mod execve;
mod futex_wait;
mod hypercall;
mod info;
mod kernel_io;
mod kernel_pages;
mod kill_parked;
mod lost_in_context;
mod lost_page;
mod memory_hotplug;
mod mmu_ops;
mod msr;
mod nmi;
mod no_faults;
mod offline;
mod page_cache;
mod parked;
mod rate;
mod reboot;
mod restore;
mod same_page;
mod standing_still;
mod stress;
mod team;
mod user_touch;
mod walk;

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::device::Device;
use crate::options::Options;

type Run = fn(&str, &Options, &Device) -> Result<()>;
type RunAlone = fn(&Options) -> Result<()>;

/// Workloads that need the test device.
const WITH_DEVICE: [(&str, Run); 31] = [
    ("offline", offline::run),
    ("break_ring", break_ring::run),
    ("contexts", contexts::run),
    ("standing_still", standing_still::run),
    ("hypercall", hypercall::run),
    ("user_touch", user_touch::run),
    ("work_touch", user_touch::run),
    ("burst", user_touch::run_burst),
    ("one_at_a_time", user_touch::run_one_at_a_time),
    ("kernel_read", kernel_io::run_read),
    ("kernel_write", kernel_io::run_write),
    ("page_cache", page_cache::run),
    ("same_page", same_page::run),
    ("stress", stress::run),
    ("kill_parked", kill_parked::run),
    ("lost_page", lost_page::run),
    ("lost_in_context", lost_in_context::run),
    ("memory_hotplug", memory_hotplug::run),
    ("mmu_ops", mmu_ops::run),
    ("mmu_huge", mmu_ops::run_huge),
    ("kernel_pages", kernel_pages::run),
    ("nmi", nmi::run),
    ("bad_input", bad_input::run),
    ("idle", user_touch::run_idle),
    ("no_faults", no_faults::run),
    ("bystander", bystander::run),
    ("futex_wait", futex_wait::run),
    ("execve", execve::run),
    ("reboot", reboot::run),
    ("restore", restore::run),
    ("rate", rate::run),
];

/// Workloads for VMMs that know nothing of the test.
const WITHOUT_DEVICE: [(&str, RunAlone); 1] = [("dax_file", dax_file::run)];

/// May this workload use the test device? Looking for it writes to a port that other VMMs use for something else.
pub fn may_use_device(name: &str) -> bool {
    WITHOUT_DEVICE.iter().all(|(known, _)| *known != name)
}

/// Runs one workload.
pub fn run(name: &str, options: &Options, device: Option<&Device>) -> Result<()> {
    match name {
        "info" => return info::run(device),
        "walk" => return walk::run(options, device),
        "msr" => return msr::run(options, device),
        _ => {}
    }
    if let Some(event) = name.strip_prefix("parked_") {
        return parked::run(event, options, device.context("needs the VMM's test device")?);
    }
    if let Some((_, run)) = WITHOUT_DEVICE.iter().find(|(known, _)| *known == name) {
        return run(options);
    }
    let Some((_, run)) = WITH_DEVICE.iter().find(|(known, _)| *known == name) else {
        bail!("veapf.run={name}: unknown workload");
    };
    run(name, options, device.context("needs the VMM's test device")?)
}

/// Of a thread that panicked, too: its workload says so itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
