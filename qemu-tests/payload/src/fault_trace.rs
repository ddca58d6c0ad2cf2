//! Which frames #VE came for, and who raised it: the guest kernel's tracepoint, in a buffer of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const INSTANCE: &str = "/sys/kernel/tracing/instances/ve-apf-faults";

/// One #VE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The frame that was missing.
    pub gfn: u64,
    /// By the CPU; else by the host.
    pub hardware: bool,
}

/// Starts with an empty buffer.
pub fn start() -> Result<()> {
    let dir = Path::new(INSTANCE);
    if !dir.exists() {
        fs::create_dir(dir).context(INSTANCE)?;
        fs::write(dir.join("buffer_size_kb"), "4096")?;
        fs::write(dir.join("events/ve_apf/ve_apf_fault/enable"), "1").context("ve_apf_fault")?;
    }
    fs::write(dir.join("trace"), "")?;
    fs::write(dir.join("tracing_on"), "1")?;
    Ok(())
}

/// Stops; returns what there was since, in order.
pub fn stop() -> Result<Vec<Fault>> {
    let dir = Path::new(INSTANCE);
    fs::write(dir.join("tracing_on"), "0")?;
    let text = fs::read_to_string(dir.join("trace"))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Fault> {
    let (_, event) = line.split_once("ve_apf_fault:")?;
    let (_, gpa) = event.split_once("gpa=0x")?;
    let gpa = u64::from_str_radix(gpa.split_whitespace().next()?, 16).ok()?;
    Some(Fault { gfn: gpa >> 12, hardware: event.ends_with(" hardware") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line =
            " touch0-52 [000] d.... 12.5: ve_apf_fault: slot=0 gpa=0xf123000 ip=0x40 mode=user";
        assert_eq!(parse(line), Some(Fault { gfn: 0xf123, hardware: false }));
        let line = format!("{line} hardware");
        assert_eq!(parse(&line), Some(Fault { gfn: 0xf123, hardware: true }));
        assert_eq!(parse("# tracer: nop"), None);
    }
}
