//! A QEMU process, and what its guest prints.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The host's CPU, less what emulated nested virtualisation gets wrong: interrupts of the TSC deadline timer come
/// seconds late, and the guest's XSETBV does not reach KVM.
pub(super) const CPU: &str = "host,-tsc-deadline,-xsave";

/// A running QEMU; killed when dropped.
pub struct Qemu {
    name: String,
    child: Child,
    lines: Receiver<String>,
}

/// How L2 is started.
pub struct Guest<'a> {
    /// MiB of memory.
    pub memory: u32,
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
    /// Starts Debian's QEMU with the machine that boots fastest, on KVM.
    pub fn start(name: &str, guest: &Guest<'_>) -> Result<Qemu> {
        let mut command = Command::new("/usr/bin/qemu-system-x86_64");
        command
            .args([
                "-M",
                "microvm,rtc=on,acpi=on",
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
            .args(["-m", &guest.memory.to_string(), "-smp", &guest.vcpus.to_string()])
            .args(["-kernel", "/bzImage", "-initrd", "/l2-initrd"])
            .args(["-append", &format!("console=ttyS0 panic=-1 reboot=t quiet {}", guest.append)])
            .args(guest.more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if let Some(procs) = guest.cgroup {
            let procs = procs.to_owned();
            // SAFETY: between fork and exec the closure only opens, writes and closes a file; this program has no
            // thread that could hold a lock then but the readers below, which hold none across calls.
            unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
        }
        let mut child = command.spawn().context("/usr/bin/qemu-system-x86_64")?;
        let stdout = child.stdout.take().context("no pipe")?;
        let (sender, lines) = channel();
        let label = name.to_owned();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                // L2's own records are this program's to judge; the console shows them as log.
                println!("[{label}] {}", line.replace("@ve-apf", "@l2"));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Qemu { name: name.to_owned(), child, lines })
    }

    /// Waits for a record of the guest whose `key` is `value`.
    pub fn wait_for(&mut self, key: &str, value: &str, timeout: Duration) -> Result<Value> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: no record with {key}={value} in {} s", self.name, timeout.as_secs())
                }
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
                return Ok(record);
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
