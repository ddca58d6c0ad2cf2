//! Records when the vCPU threads run, through tracefs of the system this VMM runs on.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use crate::counters::lock;

const INSTANCE: &str = "/sys/kernel/tracing/instances/ve-apf-vmm";
const MAX_LINES: usize = 20_000;

/// The recorder; without tracefs it records nothing.
#[derive(Debug, Default)]
pub struct Recorder {
    tids: Mutex<Vec<i32>>,
}

impl Recorder {
    /// A vCPU thread's id.
    pub fn add_thread(&self, tid: i32) {
        lock(&self.tids).push(tid);
    }

    /// Starts with an empty buffer.
    pub fn start(&self) -> io::Result<()> {
        let dir = Path::new(INSTANCE);
        if !dir.exists() {
            fs::create_dir(dir)?;
        }
        fs::write(dir.join("tracing_on"), "0")?;
        fs::write(dir.join("trace_clock"), "mono")?;
        fs::write(dir.join("buffer_size_kb"), "1024")?;
        let filter: Vec<String> = lock(&self.tids)
            .iter()
            .map(|tid| format!("prev_pid == {tid} || next_pid == {tid}"))
            .collect();
        fs::write(dir.join("events/sched/sched_switch/filter"), filter.join(" || "))?;
        fs::write(dir.join("events/sched/sched_switch/enable"), "1")?;
        fs::write(dir.join("trace"), "")?;
        fs::write(dir.join("tracing_on"), "1")
    }

    /// Stops, and returns the text lines without comments.
    pub fn stop(&self) -> io::Result<Vec<String>> {
        let dir = Path::new(INSTANCE);
        fs::write(dir.join("tracing_on"), "0")?;
        fs::write(dir.join("events/sched/sched_switch/enable"), "0")?;
        let text = fs::read_to_string(dir.join("trace"))?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .take(MAX_LINES)
            .map(|l| l.trim().to_owned())
            .collect())
    }
}
