//! Booting L1 and collecting what it reports on the serial console.

use crate::error::{Kind, fail};
use crate::lane::Lane;
use crate::one_cpu::OneCpu;
use crate::proc;
use crate::record::{self, Line, Record};
use crate::ui::Stage;
use anyhow::{Context, Result};
use machine::Machine;
use monitor::Hang;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

pub(crate) mod bochs;
mod machine;
mod monitor;
mod qemu;

/// How L1's init announces a step.
const STEP: &str = "l1-init: step ";

/// One boot of L1.
pub(crate) struct Boot<'a> {
    /// For messages, and the beginning of its files' names.
    pub(crate) name: &'a str,
    /// The machine.
    pub(crate) lane: Lane,
    /// The kernel of L1.
    pub(crate) kernel: &'a Path,
    /// L1's initramfs, with its plan.
    pub(crate) initrd: &'a Path,
    /// CPUs of L1.
    pub(crate) cpus: u32,
    /// Memory of L1.
    pub(crate) mem_mib: u32,
    /// Kernel parameters.
    pub(crate) cmdline: &'a str,
    /// An empty disk of this size, /dev/vda in L1; 0 for none.
    pub(crate) disk_mib: u32,
    /// The emulator has one CPU of this machine, however many L1 has.
    pub(crate) one_cpu: bool,
    /// QEMU counts instructions as time, 2^N ns each.
    pub(crate) icount: Option<u8>,
    /// Millions of instructions that are a second for a CPU in Bochs.
    pub(crate) mips: u32,
    /// The console goes here, with times.
    pub(crate) log: PathBuf,
    /// Commands for Bochs's debugger; it logs to [`Boot::debugger_log`].
    pub(crate) debugger: Option<String>,
    /// For each step of the plan: what it may take, in the host's time.
    pub(crate) limits: Vec<Duration>,
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
    /// The step that L1 began.
    name: String,
    /// When.
    began: Option<Instant>,
    /// How long the step took, in the host's time.
    pub(crate) took: Duration,
}

/// What a boot said.
pub(crate) struct Console {
    /// One for each step that ended.
    pub(crate) steps: Vec<Section>,
    /// After the last step that ended.
    pub(crate) tail: Section,
    /// Of a machine that had to be killed.
    pub(crate) hang: Hang,
    /// How it ended.
    pub(crate) end: End,
}

impl Boot<'_> {
    /// What the debugger said.
    pub(crate) fn debugger_log(&self) -> PathBuf {
        self.log.with_file_name(format!("{}.debugger.log", self.name))
    }

    /// Boots, waits for the end of the plan, and returns everything that was reported.
    pub(crate) fn run(&self) -> Result<Console> {
        let mut log = Log::create(&self.log)?;
        let name = format!("boot: {} ({})", self.name, self.lane.name());
        let stage = Stage::new(name, Some(self.limits.len().max(1) as u64));
        let mut machine = Machine::new(self)?;
        log.line(&format!("# {:?}", machine.command))?;
        let command = &mut machine.command;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let cpu = self.one_cpu.then(OneCpu::take).transpose()?;
        let mut running = match &cpu {
            Some(cpu) => cpu.run(|| proc::Running::spawn(command))?,
            None => proc::Running::spawn(command)?,
        };
        let lines = read_lines(&mut running, machine.prefix())?;

        let mut console = Console {
            steps: Vec::new(),
            tail: Section::default(),
            hang: Hang::default(),
            end: End::Died,
        };
        let mut deadline = log.start + self.limit(0);
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let timed = log.timed(&line)?;
                    let done = console.steps.len();
                    take(&mut console, &line, timed, &stage);
                    if console.steps.len() > done {
                        deadline = Instant::now() + self.limit(console.steps.len());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    console.end = End::TimedOut;
                    log.timed("# killed: it took too long")?;
                    console.hang = machine.look();
                    log.line(&console.hang.said)?;
                    break;
                }
            }
        }
        if console.end != End::TimedOut {
            let status = running.wait()?;
            log.line(&format!("# {}: {status}", machine.name()))?;
            let complaint = machine.complaint(&console.tail.lines);
            if console.steps.is_empty()
                && !status.success()
                && !machine.guest_ran(&console.tail.lines)
            {
                let why = complaint.map(|c| format!(" ({c})")).unwrap_or_default();
                return Err(fail(
                    Kind::Environment,
                    format!("{} ended with {status} before anything ran{why}", machine.name()),
                    format!("see {}", self.log.display()),
                ));
            }
            if let Some(line) = complaint {
                console.tail.lines.push(log.timed(&line)?);
            }
        }
        stage.done(match console.end {
            End::Complete => "",
            End::Died => "L1 died",
            End::TimedOut => "timed out",
        });
        Ok(console)
    }

    /// How long it may take to come to the end of step `n`, or, after the last one, to switch off.
    fn limit(&self, n: usize) -> Duration {
        let step = self.limits.get(n).copied();
        let boot = (n == 0 || step.is_none()).then(|| self.lane.boot_limit());
        step.unwrap_or_default() + boot.unwrap_or_default()
    }
}

/// The console's log.
struct Log {
    file: std::fs::File,
    path: PathBuf,
    start: Instant,
}

impl Log {
    fn create(path: &Path) -> Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let file =
            std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), start: Instant::now() })
    }

    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.file, "{line}").with_context(|| format!("writing {}", self.path.display()))
    }

    /// Writes a line with the time; returns it like that.
    fn timed(&mut self, line: &str) -> Result<String> {
        let timed = format!("[{:9.3}] {line}", self.start.elapsed().as_secs_f64());
        self.line(&timed)?;
        Ok(timed)
    }
}

/// Lines of both outputs as they come; those of standard error with a prefix.
fn read_lines(running: &mut proc::Running, prefix: &'static str) -> Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel();
    let stdout = running.child().stdout.take().context("the machine has no stdout")?;
    let stderr = running.child().stderr.take().context("the machine has no stderr")?;
    for (prefix, pipe) in
        [("", Box::new(stdout) as Box<dyn std::io::Read + Send>), (prefix, Box::new(stderr))]
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
    Ok(lines)
}

fn take(console: &mut Console, line: &str, timed: String, stage: &Stage) {
    console.tail.lines.push(timed);
    if let Some((_, name)) = line.split_once(STEP) {
        stage.message(name);
        console.tail.name = name.to_owned();
        console.tail.began = Some(Instant::now());
    }
    match record::parse(line) {
        Line::Other => {}
        Line::Broken(text) => console.tail.broken.push(text),
        Line::Records(records) => {
            for record in records {
                let kind = record.kind().to_owned();
                if kind == "result" {
                    // A step may have many of them.
                    stage.message(format!(
                        "{}, after {}",
                        console.tail.name,
                        record.text("workload")
                    ));
                }
                console.tail.records.push(record);
                match kind.as_str() {
                    "end" => console.end = End::Complete,
                    "step" => {
                        stage.inc();
                        let tail = &mut console.tail;
                        tail.took = tail.began.map(|b| b.elapsed()).unwrap_or_default();
                        stage.step(&tail.name, tail.took);
                        console.steps.push(std::mem::take(&mut console.tail));
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booting_counts_with_the_first_step_and_switching_off_by_itself() {
        let seconds = Duration::from_secs;
        let boot = Boot {
            name: "x",
            lane: Lane::Svm,
            kernel: Path::new("k"),
            initrd: Path::new("i"),
            cpus: 1,
            mem_mib: 64,
            cmdline: "",
            disk_mib: 0,
            one_cpu: false,
            icount: None,
            mips: 200,
            log: "x.log".into(),
            debugger: None,
            limits: vec![seconds(5), seconds(7)],
        };
        let limits: Vec<u64> = (0..3).map(|n| boot.limit(n).as_secs()).collect();
        assert_eq!(limits, [125, 7, 120]);
    }
}
