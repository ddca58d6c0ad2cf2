//! QEMU's monitor protocol, as much of it as the clients take.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to a QEMU's monitor.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects, waiting for QEMU to come up, and leaves negotiation mode.
    pub fn connect(path: &str) -> Result<Qmp> {
        let end = Instant::now() + Duration::from_secs(30);
        let writer = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => return Err(error).context(path.to_owned()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        writer.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Qmp { reader: BufReader::new(writer.try_clone()?), writer };
        qmp.read()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; returns what it returned.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.writer, "{request}")?;
        loop {
            let answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QMP {command}: {}", error["desc"]);
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Runs a command that starts a job, and waits for the job's end.
    pub fn job(&mut self, command: &str, mut arguments: Value) -> Result<()> {
        const ID: &str = "job";
        arguments["job-id"] = json!(ID);
        self.run(command, arguments)?;
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let jobs = self.run("query-jobs", json!({}))?;
            let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == ID));
            let job = job.with_context(|| format!("QMP {command}: no job: {jobs}"))?;
            if let Some(error) = job["error"].as_str() {
                bail!("QMP {command}: {error}");
            }
            if job["status"] == "concluded" {
                self.run("job-dismiss", json!({"id": ID}))?;
                return Ok(());
            }
            if Instant::now() > end {
                bail!("QMP {command}: {job} after 120 s");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Polls the migration until its status is one of `wanted`.
    pub fn migration_until(&mut self, wanted: &[&str], timeout: Duration) -> Result<Value> {
        let over = |status: &str| wanted.contains(&status) || is_lost(status);
        let (status, info) = self.poll_migration(over, timeout)?;
        if wanted.contains(&status.as_str()) {
            return Ok(info);
        }
        bail!("migration: {info} while waiting for {wanted:?}")
    }

    fn poll_migration(
        &mut self,
        over: impl Fn(&str) -> bool,
        timeout: Duration,
    ) -> Result<(String, Value)> {
        let end = Instant::now() + timeout;
        loop {
            let info = self.run("query-migrate", json!({}))?;
            let status = info["status"].as_str().unwrap_or("none");
            if over(status) {
                return Ok((status.to_owned(), info));
            }
            if Instant::now() > end {
                bail!("migration: {info} after {} s", timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Prints where the guest is, for whoever reads the log of a run that failed.
    pub fn explain(&mut self, name: &str) {
        for what in ["info status", "info migrate", "info registers", "info lapic"] {
            match self.run("human-monitor-command", json!({"command-line": what})) {
                Ok(said) => println!("{name}: {what}: {}", said.as_str().unwrap_or_default()),
                Err(error) => println!("{name}: {what}: {error:#}"),
            }
        }
    }

    /// Polls the migration until it has ended, well or not; its status.
    pub fn migration_ended(&mut self, timeout: Duration) -> Result<String> {
        let over = |status: &str| status == "completed" || is_lost(status);
        Ok(self.poll_migration(over, timeout)?.0)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QMP: QEMU closed the connection");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Will a migration in this state never complete?
fn is_lost(status: &str) -> bool {
    matches!(status, "failed" | "cancelled")
}
