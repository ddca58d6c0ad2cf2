//! Booting L1 in QEMU (TCG) and collecting what it reports on the serial console.

use crate::error::{Kind, fail};
use crate::proc;
use crate::record::{self, Line, Record};
use crate::ui::Stage;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How L1's init announces a step.
const STEP: &str = "l1-init: step ";

/// One boot of L1.
pub(crate) struct Boot<'a> {
    /// For messages.
    pub(crate) name: &'a str,
    /// The kernel of L1.
    pub(crate) kernel: &'a Path,
    /// L1's initramfs, with its plan.
    pub(crate) initrd: &'a Path,
    /// Memory of L1.
    pub(crate) mem_mib: u32,
    /// More kernel parameters.
    pub(crate) cmdline: &'a str,
    /// An empty disk of this size, /dev/vda in L1; 0 for none.
    pub(crate) disk_mib: u32,
    /// The console goes here, with times.
    pub(crate) log: PathBuf,
    /// For the whole boot.
    pub(crate) timeout: Duration,
    /// Steps in the plan, for the bar.
    pub(crate) steps: usize,
}

/// How a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// L1 said that its plan is done and powered off.
    Complete,
    /// L1 went away before that.
    Died,
    /// It had to be killed.
    TimedOut,
}

/// What came between the ends of two steps.
#[derive(Default)]
pub(crate) struct Section {
    /// In the order in which they came; the last one is the step's own, if it ended.
    pub(crate) records: Vec<Record>,
    /// Lines that began like a record and were none.
    pub(crate) broken: Vec<String>,
    /// Everything, with times.
    pub(crate) lines: Vec<String>,
}

/// What a boot said.
pub(crate) struct Console {
    /// One for each step that ended.
    pub(crate) steps: Vec<Section>,
    /// After the last step that ended.
    pub(crate) tail: Section,
    /// How it ended.
    pub(crate) end: End,
}

impl Boot<'_> {
    /// Boots, waits for the end of the plan, and returns everything that was reported.
    pub(crate) fn run(&self) -> Result<Console> {
        let mut log = create(&self.log)?;
        let stage = Stage::new(format!("boot: {}", self.name), Some(self.steps.max(1) as u64));
        let disk = self.disk()?;
        let mut command = self.command();
        if let Some(disk) = &disk {
            command.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id=disk,cache=unsafe",
                disk.path().display()
            ));
            command.args(["-device", "virtio-blk-pci,drive=disk"]);
        }
        writeln!(log, "# {command:?}")
            .with_context(|| format!("writing {}", self.log.display()))?;
        let mut qemu = proc::Running::spawn(&mut command)?;
        let start = Instant::now();
        let (sender, lines) = mpsc::channel();
        let stdout = qemu.child().stdout.take().context("QEMU has no stdout")?;
        let stderr = qemu.child().stderr.take().context("QEMU has no stderr")?;
        for (prefix, pipe) in
            [("", Box::new(stdout) as Box<dyn std::io::Read + Send>), ("qemu: ", Box::new(stderr))]
        {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
                    let text = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                    if sender.send(format!("{prefix}{text}")).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);

        let mut console = Console { steps: Vec::new(), tail: Section::default(), end: End::Died };
        loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    let timed = format!("[{:9.3}] {line}", start.elapsed().as_secs_f64());
                    writeln!(log, "{timed}")
                        .with_context(|| format!("writing {}", self.log.display()))?;
                    take(&mut console, &line, timed, &stage);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    console.end = End::TimedOut;
                    writeln!(log, "# killed after {} s", self.timeout.as_secs())
                        .with_context(|| format!("writing {}", self.log.display()))?;
                    break;
                }
            }
        }
        if console.end != End::TimedOut {
            let status = qemu.wait()?;
            writeln!(log, "# QEMU: {status}")
                .with_context(|| format!("writing {}", self.log.display()))?;
            if !status.success() && console.tail.lines.iter().all(|l| l.contains("] qemu: ")) {
                return Err(fail(
                    Kind::Environment,
                    format!("QEMU ended with {status} before anything ran"),
                    format!("see {}", self.log.display()),
                ));
            }
        }
        stage.done(match console.end {
            End::Complete => "",
            End::Died => "L1 died",
            End::TimedOut => "timed out",
        });
        Ok(console)
    }

    /// A sparse file that is gone when this boot is over.
    fn disk(&self) -> Result<Option<tempfile::NamedTempFile>> {
        if self.disk_mib == 0 {
            return Ok(None);
        }
        let dir = self.log.parent().unwrap_or(Path::new("."));
        let file =
            tempfile::Builder::new().prefix("disk-").tempfile_in(dir).context("creating a disk")?;
        file.as_file().set_len(u64::from(self.disk_mib) << 20).context("creating a disk")?;
        Ok(Some(file))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                &self.mem_mib.to_string(),
            ])
            .args([
                "-nodefaults",
                "-display",
                "none",
                "-monitor",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .args(["-append", &format!("console=ttyS0 panic=-1 quiet {}", self.cmdline)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

fn take(console: &mut Console, line: &str, timed: String, stage: &Stage) {
    console.tail.lines.push(timed);
    if let Some((_, name)) = line.split_once(STEP) {
        stage.message(name);
    }
    match record::parse(line) {
        Line::Other => {}
        Line::Broken(text) => console.tail.broken.push(text),
        Line::Records(records) => {
            for record in records {
                let kind = record.kind().to_owned();
                console.tail.records.push(record);
                match kind.as_str() {
                    "end" => console.end = End::Complete,
                    "step" => {
                        stage.inc();
                        console.steps.push(std::mem::take(&mut console.tail));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn create(path: &Path) -> Result<std::fs::File> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))
}
