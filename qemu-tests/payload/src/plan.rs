//! L1's plan: steps to run one after the other.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One program to run.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Comes back in the record.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole process group is killed after this time.
    pub timeout: Duration,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
}

/// Reads the plan.
pub fn read(path: &str) -> Result<Vec<Step>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    parse(&text).with_context(|| path.to_owned())
}

fn parse(text: &str) -> Result<Vec<Step>> {
    let plan: Vec<Value> = serde_json::from_str(text)?;
    plan.iter().map(parse_step).collect()
}

fn parse_step(step: &Value) -> Result<Step> {
    let name = step["name"].as_str().context("a step has no name")?.to_owned();
    let argv: Vec<String> =
        serde_json::from_value(step["argv"].clone()).with_context(|| format!("{name}: argv"))?;
    anyhow::ensure!(!argv.is_empty(), "{name}: argv is empty");
    let timeout = Duration::from_secs(step["timeout_s"].as_u64().unwrap_or(60));
    let env = match &step["env"] {
        Value::Null => BTreeMap::new(),
        env => serde_json::from_value(env.clone()).with_context(|| format!("{name}: env"))?,
    };
    Ok(Step { name, argv, timeout, env })
}

/// Runs one step, its output on the console; returns its record.
pub fn run(step: &Step) -> Value {
    println!("l1-init: step {}", step.name);
    let began = Instant::now();
    let child = Command::new(&step.argv[0])
        .args(&step.argv[1..])
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/")
        .envs(&step.env)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn();
    let (mut record, ended) = match child {
        Ok(mut child) => wait(&mut child, began, step.timeout),
        Err(error) => (json!({"error": error.to_string()}), None),
    };
    record["kind"] = json!("step");
    record["name"] = json!(step.name);
    record["exit"] = json!(ended.and_then(|status| status.code()));
    record["signal"] = json!(ended.and_then(|status| status.signal()));
    record["ms"] = json!(began.elapsed().as_millis() as u64);
    record
}

fn wait(child: &mut Child, began: Instant, timeout: Duration) -> (Value, Option<ExitStatus>) {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return (json!({"timed_out": false}), Some(status)),
            Ok(None) if began.elapsed() < timeout => sleep(Duration::from_millis(10)),
            Ok(None) => break,
            Err(error) => return (json!({"timed_out": false, "error": error.to_string()}), None),
        }
    }
    // SAFETY: takes plain integers; the child leads its own group and is not reaped yet.
    unsafe { libc::kill(-child.id().cast_signed_i32(), libc::SIGKILL) };
    // A process that cannot be killed must not stop the plan.
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(10) {
        if let Ok(Some(status)) = child.try_wait() {
            return (json!({"timed_out": true}), Some(status));
        }
        sleep(Duration::from_millis(10));
    }
    (json!({"timed_out": true, "error": "does not die"}), None)
}

/// A process id as the signed number that kill() takes.
trait AsPid {
    fn cast_signed_i32(self) -> i32;
}

impl AsPid for u32 {
    fn cast_signed_i32(self) -> i32 {
        // Process ids are below 2^22.
        self as i32
    }
}

/// Prints one record on a line of its own.
pub fn print(record: &Value) {
    let mut out = std::io::stdout().lock();
    // Nobody to tell if the console is gone.
    let _ = writeln!(out, "@ve-apf {record}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_file() -> Result<()> {
        let steps = parse(
            r#"[{"name":"a","argv":["/bin/x","-y"],"timeout_s":5,"env":{"K":"V"}},{"name":"b","argv":["z"]}]"#,
        )?;
        assert_eq!(steps[0].argv, ["/bin/x", "-y"]);
        assert_eq!(steps[0].timeout, Duration::from_secs(5));
        assert_eq!(steps[0].env["K"], "V");
        assert_eq!(steps[1].timeout, Duration::from_secs(60));
        Ok(())
    }

    #[test]
    fn bad_plans() {
        for text in [
            "",
            "{}",
            r#"[{"argv":["x"]}]"#,
            r#"[{"name":"a","argv":[]}]"#,
            r#"[{"name":"a","argv":"x"}]"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn steps_end_as_they_should() {
        let step = |script: &str, seconds| Step {
            name: "s".into(),
            argv: ["/bin/sh", "-c", script].map(String::from).into(),
            timeout: Duration::from_secs(seconds),
            env: BTreeMap::new(),
        };
        let record = run(&step("exit 7", 10));
        assert_eq!((&record["exit"], &record["timed_out"]), (&json!(7), &json!(false)));
        let record = run(&step("sleep 60", 1));
        assert_eq!((&record["signal"], &record["timed_out"]), (&json!(9), &json!(true)));
        let record = run(&Step { argv: vec!["/nonexistent".into()], ..step("", 1) });
        assert!(record["error"].is_string() && record["exit"].is_null());
    }
}
