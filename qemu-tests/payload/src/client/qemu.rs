//! A QEMU process, and what its guest prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The host's CPU, less what emulated nested virtualisation gets wrong: interrupts of the TSC deadline timer come
/// seconds late, and the guest's XSETBV does not reach KVM.
pub(super) const CPU: &str = "host,-tsc-deadline,-xsave";

/// The machine that boots fastest.
pub const MICROVM: &str = "microvm,rtc=on,acpi=on";

/// A running QEMU; killed when dropped.
pub struct Qemu {
    name: String,
    child: Child,
    lines: Receiver<String>,
    stdin: ChildStdin,
    stderr: Arc<Mutex<Vec<String>>>,
}

/// How L2 is started.
pub struct Guest<'a> {
    /// QEMU's `-M`.
    pub machine: &'a str,
    /// QEMU's `-m`.
    pub memory: &'a str,
    /// vCPUs.
    pub vcpus: u32,
    /// Kernel command line behind the console's.
    pub append: &'a str,
    /// More of QEMU's arguments.
    pub more: &'a [String],
    /// `cgroup.procs` of the cgroup to live in.
    pub cgroup: Option<&'a str>,
}

impl Qemu {
    /// Starts Debian's QEMU on KVM.
    pub fn start(name: &str, guest: &Guest<'_>) -> Result<Qemu> {
        let mut command = Command::new("/usr/bin/qemu-system-x86_64");
        command
            .args([
                "-M",
                guest.machine,
                "-accel",
                "kvm",
                "-cpu",
                CPU,
                "-nodefaults",
                "-no-user-config",
            ])
            .args([
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
                "-L",
                "/usr/share/qemu",
                "-L",
                "/usr/share/seabios",
            ])
            .args(["-m", guest.memory, "-smp", &guest.vcpus.to_string()])
            .args(["-kernel", "/bzImage", "-initrd", "/l2-initrd"])
            .args(["-append", &format!("console=ttyS0 panic=-1 reboot=t quiet {}", guest.append)])
            .args(guest.more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(procs) = guest.cgroup {
            let procs = procs.to_owned();
            // SAFETY: between fork and exec the closure only opens, writes and closes a file; this program has no
            // thread that could hold a lock then but the readers below, which hold none across calls.
            unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
        }
        let mut child = command.spawn().context("/usr/bin/qemu-system-x86_64")?;
        let stdin = child.stdin.take().context("no pipe")?;
        let (sender, lines) = channel();
        // L2's own records are this program's to judge; the console shows them as log.
        let console = format!("[{name}]");
        each_line(child.stdout.take().context("no pipe")?, move |line| {
            println!("{console} {}", line.replace("@ve-apf", "@l2"));
            sender.send(line).is_ok()
        });
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (kept, console) = (stderr.clone(), format!("[{name} stderr]"));
        each_line(child.stderr.take().context("no pipe")?, move |line| {
            println!("{console} {line}");
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            true
        });
        Ok(Qemu { name: name.to_owned(), child, lines, stdin, stderr })
    }

    /// Types a line at the guest's serial console.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}").with_context(|| format!("{}: typing {line}", self.name))
    }

    /// What QEMU itself has complained of so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what the guest has printed so far.
    pub fn forget(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// Waits for a record of the guest whose `key` is `value`.
    pub fn wait_for(&mut self, key: &str, value: &str, timeout: Duration) -> Result<Value> {
        self.poll_for(key, value, timeout)?.with_context(|| {
            format!("{}: no record with {key}={value} in {} s", self.name, timeout.as_secs())
        })
    }

    /// The same; `None` if the time is over.
    pub fn poll_for(&mut self, key: &str, value: &str, timeout: Duration) -> Result<Option<Value>> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{}: ended ({status}) without a record with {key}={value}", self.name)
                }
            };
            let Some((_, text)) = line.split_once("@ve-apf ") else { continue };
            let Ok(record) = serde_json::from_str::<Value>(text) else { continue };
            if record["kind"] == "error" {
                bail!("{}: {}", self.name, record["error"]);
            }
            if record[key] == value {
                return Ok(Some(record));
            }
        }
    }

    /// How it ended; `None` if it runs on.
    pub fn ended(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + timeout;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() > end {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls `sink` with each line from a thread of its own, until there are no more or it wants no more.
fn each_line(
    from: impl Read + Send + 'static,
    mut sink: impl FnMut(String) -> bool + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if !sink(String::from_utf8_lossy(&line).trim_end().to_owned()) {
                return;
            }
        }
    });
}
