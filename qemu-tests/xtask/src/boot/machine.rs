//! What both emulators have in common: a process with L1's console on its standard output.

use super::monitor::{Hang, Monitor};
use super::{bochs, qemu};
use crate::lane::Lane;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// A machine, ready to be started.
pub(super) struct Machine {
    /// Which emulator.
    pub(super) lane: Lane,
    /// Console on standard output, the emulator's own words on standard error.
    pub(super) command: Command,
    /// An empty disk that is gone when the boot is over.
    pub(super) _disk: Option<tempfile::NamedTempFile>,
    /// The emulator's own log.
    pub(super) log: Option<PathBuf>,
    /// If it can be asked.
    pub(super) monitor: Option<Monitor>,
}

impl Machine {
    /// Makes what `boot` asks for.
    pub(super) fn new(boot: &super::Boot<'_>) -> Result<Self> {
        match boot.lane {
            Lane::Svm => qemu::machine(boot),
            Lane::Vmx => bochs::machine(boot),
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> &'static str {
        match self.lane {
            Lane::Svm => "QEMU",
            Lane::Vmx => "Bochs",
        }
    }

    /// Before every line of its standard error.
    pub(super) fn prefix(&self) -> &'static str {
        match self.lane {
            Lane::Svm => "qemu: ",
            Lane::Vmx => bochs::STDERR,
        }
    }

    /// Did the guest come to say anything? Of console and standard error.
    pub(super) fn guest_ran(&self, lines: &[String]) -> bool {
        match self.lane {
            Lane::Svm => lines.iter().any(|l| !l.contains("] qemu: ")),
            Lane::Vmx => lines.iter().any(|l| l.contains(bochs::FIRST_WORDS)),
        }
    }

    /// Where its CPUs are, if it can be asked.
    pub(super) fn look(&self) -> Hang {
        let look = self.monitor.as_ref().map(Monitor::look).unwrap_or_else(|| Ok(Hang::default()));
        look.unwrap_or_else(|error| Hang { cpus: vec![format!("{error:#}")], ..Hang::default() })
    }

    /// What the emulator itself gave up on, after its end.
    pub(super) fn complaint(&self, lines: &[String]) -> Option<String> {
        let log = self.log.as_ref()?;
        // A log with strange bytes is still a log.
        let bytes = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all = text.lines().chain(lines.iter().map(String::as_str));
        bochs::panic(all).map(|why| format!("bochs: {why} (its log: {})", log.display()))
    }
}
