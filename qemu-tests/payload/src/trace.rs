//! Records scheduling in the guest, for a timeline.

use std::fs;
use std::io;
use std::path::Path;

const TRACEFS: &str = "/sys/kernel/tracing";
const INSTANCE: &str = "/sys/kernel/tracing/instances/ve-apf";
const EVENTS: [&str; 3] = ["sched/sched_switch", "sched/sched_waking", "ve_apf"];

/// Starts with an empty buffer; events that the kernel lacks are left out.
pub fn start() -> io::Result<()> {
    let dir = Path::new(INSTANCE);
    if !dir.exists() {
        fs::create_dir(dir)?;
    }
    fs::write(dir.join("trace_clock"), "mono")?;
    fs::write(dir.join("buffer_size_kb"), "1024")?;
    for event in
        EVENTS.iter().filter(|event| Path::new(TRACEFS).join("events").join(event).exists())
    {
        fs::write(dir.join("events").join(event).join("enable"), "1")?;
    }
    fs::write(dir.join("trace"), "")?;
    fs::write(dir.join("tracing_on"), "1")
}

/// Stops; returns at most `max` text lines without comments.
pub fn stop(max: usize) -> io::Result<Vec<String>> {
    let dir = Path::new(INSTANCE);
    fs::write(dir.join("tracing_on"), "0")?;
    let text = fs::read_to_string(dir.join("trace"))?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .take(max)
        .map(|line| line.trim().to_owned())
        .collect())
}
