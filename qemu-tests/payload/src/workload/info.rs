//! What the guest says about itself; `said` counts what its kernel says of ve-apf.

use anyhow::Result;
use serde_json::json;

use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::{dmesg, plan, sys};

/// `info`.
pub(super) fn run(device: Option<&Device>) -> Result<()> {
    let counters = GuestCounters::read();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut apf = dmesg::lines_with("ve-apf: ");
    let said = apf.len();
    apf.extend(dmesg::lines_with("async PF"));
    let bad = dmesg::bad_lines();
    let record = json!({
        "kind": "result",
        "workload": "info",
        "release": release.trim(),
        "cmdline": cmdline.trim(),
        "cpus_online": sys::cpu_count(),
        "ve_apf": counters.ve_apf,
        "interrupts": counters.interrupts,
        "ve_apf_log": apf,
        "said": said,
        "bad": bad.len(),
        "bad_lines": bad,
    });
    match device {
        Some(device) => device.report("", &record),
        None => plan::print(&record),
    }
    Ok(())
}
