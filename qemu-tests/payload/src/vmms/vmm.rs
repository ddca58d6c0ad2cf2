//! A VMM process, and what it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Plan;

/// Killed when dropped.
pub(super) struct Vmm {
    child: Child,
    records: Receiver<Value>,
}

impl Vmm {
    /// Starts one with one vCPU, and the bare-metal test kernel as its guest.
    pub(super) fn start(plan: &Plan, options: &[&str], cmdline: &str) -> Result<Vmm> {
        let cmdline = format!("ve-apf=injected {cmdline}");
        let mut child = Command::new(&plan.vmm)
            .args([
                "--bare",
                "--kernel",
                &plan.kernel,
                "--mem-mib",
                "64",
                "--pin",
                "--cmdline",
                &cmdline,
            ])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| plan.vmm.clone())?;
        let stdout = child.stdout.take().context("no pipe")?;
        let (sender, records) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                let Some((_, text)) = line.split_once("@ve-apf ") else { continue };
                let Ok(record) = serde_json::from_str(text) else { continue };
                if sender.send(record).is_err() {
                    return;
                }
            }
        });
        Ok(Vmm { child, records })
    }

    /// Waits for a record whose `key` is `value`.
    pub(super) fn wait_for(&mut self, key: &str, value: &str, limit: Duration) -> Result<Value> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let record = self.records.recv_timeout(left);
            let record = record.with_context(|| format!("no record with {key}={value}"))?;
            if record["kind"] == "error" {
                bail!("the guest: {record}");
            }
            if record[key] == value {
                return Ok(record);
            }
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> i32 {
        // Process ids are below 2^22.
        self.child.id() as i32
    }

    /// Waits for its end.
    pub(super) fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > limit {
                bail!("the VMM has not ended after {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
