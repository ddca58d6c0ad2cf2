//! Child processes: each in a process group of its own that ends with us.

use crate::error::{Kind, fail};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Groups that are alive, for the signal handler.
static GROUPS: Mutex<Vec<i32>> = Mutex::new(Vec::new());
/// Held while a kernel tree is being changed: a signal waits until it is whole again.
static CRITICAL: Mutex<()> = Mutex::new(());

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps signals from ending us in the middle of something.
pub(crate) fn critical() -> MutexGuard<'static, ()> {
    lock(&CRITICAL)
}

/// On SIGINT, SIGTERM and SIGHUP: the children end first, then we do.
pub(crate) fn install_signal_handler() -> Result<()> {
    ctrlc::set_handler(|| {
        let _whole = critical();
        for &group in lock(&GROUPS).iter() {
            kill_group(group);
        }
        eprintln!("xtask: interrupted");
        std::process::exit(130);
    })
    .context("installing the signal handler")
}

fn kill_group(group: i32) {
    if let Some(pid) = Pid::from_raw(group) {
        // It may be gone already; nothing to do then.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// A running child whose whole group is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    group: i32,
    name: String,
}

impl Running {
    /// Starts `command`; an unknown program is an environment failure.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.process_group(0);
        // The lock is held across spawn so that the handler sees every group.
        let mut groups = lock(&GROUPS);
        let child = command.spawn().map_err(|e| no_program(&name, &e))?;
        let group = i32::try_from(child.id()).context("a process id that is no pid_t")?;
        groups.push(group);
        Ok(Self { child, group, name })
    }

    /// The child, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        self.child.wait().with_context(|| format!("waiting for {}", self.name))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_group(self.group);
        let _ = self.child.wait();
        lock(&GROUPS).retain(|&g| g != self.group);
    }
}

fn no_program(name: &str, error: &std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        fail(Kind::Environment, format!("{name} is not installed"), "run `cargo xtask setup`")
    } else {
        fail(Kind::Environment, format!("cannot start {name}: {error}"), "")
    }
}

/// Runs to the end, output captured.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    output_with_stdin(command.stdin(std::process::Stdio::null()))
}

/// The same for a command that has something to read.
pub(crate) fn output_with_stdin(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.output().map_err(|e| no_program(&name, &e))
}

/// Standard output of a command that must succeed.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let out = output(command)?;
    if !out.status.success() {
        let name = command.get_program().to_string_lossy().into_owned();
        let stderr = String::from_utf8_lossy(&out.stderr);
        let last =
            stderr.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message").to_owned();
        return Err(fail(Kind::Environment, format!("{name} failed ({}): {last}", out.status), ""));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
