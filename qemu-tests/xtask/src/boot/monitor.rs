//! QEMU's monitor: to ask a machine that hangs where its CPUs are.

use crate::kernel::symbols;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A QEMU that hangs itself does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often one looks, to tell what stands from what moves; a CPU takes an interrupt within microseconds.
const LOOKS: u32 = 5;
const BETWEEN: Duration = Duration::from_millis(500);
/// Interrupts are on (SDM 3.4.3.3).
const RFLAGS_IF: u64 = 1 << 9;
/// What QEMU prints for no interrupt.
const NONE: &str = "(none)";

/// Of a machine that said nothing for too long.
#[derive(Debug, Default)]
pub(crate) struct Hang {
    /// Where each CPU was, a line each; or why QEMU does not tell.
    pub(crate) cpus: Vec<String>,
    /// All that QEMU said.
    pub(crate) said: String,
    /// What shows that QEMU is at fault.
    pub(crate) lost: Option<String>,
}

/// A socket that a QEMU listens on; nobody is connected before something is asked.
pub(super) struct Monitor {
    /// Short, whatever the checkout's path is: a socket's name has 108 bytes.
    dir: tempfile::TempDir,
    cpus: u32,
    /// Of the kernel, if it lies beside it.
    symbols: PathBuf,
}

impl Monitor {
    /// For a QEMU with so many CPUs that boots `kernel`.
    pub(super) fn new(cpus: u32, kernel: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ve-apf-").tempdir().context("a directory")?;
        Ok(Self { dir, cpus, symbols: symbols::path(kernel) })
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp")
    }

    /// QEMU's option, and its value.
    pub(super) fn option(&self) -> [String; 2] {
        ["-qmp".into(), format!("unix:{},server=on,wait=off", self.socket().display())]
    }

    /// Looks where each CPU is, some times in a row.
    pub(super) fn look(&self) -> Result<Hang> {
        let stream = UnixStream::connect(self.socket()).context("the monitor")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        // A greeting comes first.
        read(&mut reader)?;
        run(&mut reader, "qmp_capabilities", &json!({}))?;
        let mut said = String::new();
        let mut looks = Vec::new();
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::sleep(BETWEEN);
            }
            said = ask(&mut reader, "info registers -a")?;
            let mut cpus = registers(&said);
            for number in 0..self.cpus {
                let lapic = ask(&mut reader, &format!("info lapic {number}"))?;
                cpus.entry(number).or_default().set_lapic(&lapic);
                said.push_str(&lapic);
            }
            looks.push(cpus);
        }
        let map = std::fs::read(&self.symbols).unwrap_or_default();
        let map = String::from_utf8_lossy(&map);
        let last = looks.last().into_iter().flatten();
        let cpus = last.map(|(number, cpu)| cpu.line(*number, &map)).collect();
        Ok(Hang { cpus, said, lost: lost(&looks) })
    }
}

/// Interrupts that a CPU could have taken and did not, from the first look to the last.
fn lost(looks: &[BTreeMap<u32, Cpu>]) -> Option<String> {
    let (first, rest) = looks.split_first()?;
    first.iter().find_map(|(number, cpu)| {
        let all: Vec<&Cpu> =
            std::iter::once(cpu).chain(rest.iter().filter_map(|look| look.get(number))).collect();
        let waits = |vector: &&str| all.iter().all(|cpu| cpu.irr.split(' ').any(|v| v == *vector));
        let vector = cpu.irr.split(' ').filter(|v| v.parse::<u8>().is_ok()).find(waits)?;
        let free = all.iter().all(|cpu| cpu.isr == NONE) && all.iter().any(|cpu| cpu.takes);
        free.then(|| format!("QEMU lost interrupt {vector} of CPU {number}"))
    })
}

fn read(reader: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    if reader.read_line(&mut line).context("QEMU's monitor does not answer")? == 0 {
        bail!("QEMU closed its monitor");
    }
    serde_json::from_str(&line).with_context(|| format!("QEMU's monitor: {line}"))
}

fn run(reader: &mut BufReader<UnixStream>, command: &str, arguments: &Value) -> Result<Value> {
    writeln!(reader.get_mut(), "{}", json!({"execute": command, "arguments": arguments}))?;
    loop {
        // Events come between.
        let answer = read(reader)?;
        if let Some(value) = answer.get("return") {
            return Ok(value.clone());
        }
        if let Some(error) = answer.get("error") {
            bail!("QEMU's monitor: {command}: {}", error["desc"]);
        }
    }
}

fn ask(reader: &mut BufReader<UnixStream>, command: &str) -> Result<String> {
    let said = run(reader, "human-monitor-command", &json!({"command-line": command}))?;
    Ok(said.as_str().unwrap_or_default().to_owned())
}

/// Where a CPU is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    rip: u64,
    /// RFL, CPL and HLT, as QEMU prints them.
    state: String,
    /// RFLAGS.IF.
    takes: bool,
    /// Interrupts that wait.
    irr: String,
    /// Those that are being handled.
    isr: String,
    timer: String,
}

impl Cpu {
    /// Takes what `info lapic` says.
    fn set_lapic(&mut self, text: &str) {
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.unwrap_or("?").split_whitespace().collect::<Vec<_>>().join(" ")
        };
        (self.irr, self.isr, self.timer) = (of("IRR"), of("ISR"), of("Timer"));
    }

    fn line(&self, number: u32, map: &str) -> String {
        let at = symbols::closest(map, self.rip).unwrap_or_else(|| format!("{:#x}", self.rip));
        let Self { state, irr, isr, timer, .. } = self;
        format!("CPU {number}: {at} {state}; IRR {irr}, ISR {isr}, timer {timer}")
    }
}

/// Of each CPU that `info registers -a` speaks of.
fn registers(text: &str) -> BTreeMap<u32, Cpu> {
    let mut cpus = BTreeMap::<u32, Cpu>::new();
    let mut number = 0;
    for line in text.lines() {
        if let Some(digits) = line.trim().strip_prefix("CPU#") {
            number = digits.parse().unwrap_or_default();
        }
        let Some(rest) = line.strip_prefix("RIP=").or_else(|| line.strip_prefix("EIP=")) else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let rip = words.next().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let telling = |word: &&str| ["RFL=", "CPL=", "HLT="].iter().any(|w| word.starts_with(w));
        let words: Vec<&str> = words.filter(telling).collect();
        let flags = words.iter().find_map(|word| word.strip_prefix("RFL="));
        let flags = flags.and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or_default();
        let cpu = Cpu {
            rip: rip.unwrap_or_default(),
            state: words.join(" "),
            takes: flags & RFLAGS_IF != 0,
            ..Cpu::default()
        };
        cpus.insert(number, cpu);
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERS: &str = "\nCPU#0\nRAX=0 RBX=0\n\
        RIP=ffffffff81000012 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
        \nCPU#1\nRIP=0000000000401000 RFL=00000002 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0\n";

    fn lapic(irr: &str, isr: &str) -> String {
        format!(
            "LVTT\t 0x000000ec active-hi edge one-shot\n\
             Timer\t DCR=0xb (divide by 1) initial_count = 62500 current_count = 0\n\
             ISR\t {isr}\nIRR\t {irr} \n"
        )
    }

    fn look(irr: &str, isr: &str) -> BTreeMap<u32, Cpu> {
        let mut cpus = registers(REGISTERS);
        cpus.values_mut().for_each(|cpu| cpu.set_lapic(&lapic("(none)", "(none)")));
        cpus.get_mut(&0).unwrap().set_lapic(&lapic(irr, isr));
        cpus
    }

    #[test]
    fn a_cpu_is_a_line() {
        let map =
            "ffffffff81000000 T default_idle\nffffffff81000020 t other\nffffffff82000000 D data\n";
        let cpus = look("236", "(none)");
        assert_eq!(
            cpus[&0].line(0, map),
            "CPU 0: default_idle+0x12 RFL=00000246 CPL=0 HLT=1; IRR 236, ISR (none), \
             timer DCR=0xb (divide by 1) initial_count = 62500 current_count = 0"
        );
        let other = cpus[&1].line(1, map);
        assert!(
            other.starts_with("CPU 1: 0x401000 RFL=00000002 CPL=3 HLT=0; IRR (none)"),
            "{other}"
        );
    }

    #[test]
    fn lost_is_what_a_cpu_could_have_taken_all_the_time() {
        let stands = [look("236", "(none)"), look("236 251", "(none)")];
        assert_eq!(lost(&stands).unwrap(), "QEMU lost interrupt 236 of CPU 0");
        // It moves, or has a reason.
        assert_eq!(lost(&[look("236", "(none)"), look("251", "(none)")]), None);
        assert_eq!(lost(&[look("236", "(none)"), look("236", "237")]), None);
        assert_eq!(lost(&[look("(none)", "(none)"), look("(none)", "(none)")]), None);
        let mut off = [look("236", "(none)"), look("236", "(none)")];
        off.iter_mut().for_each(|look| look.get_mut(&0).unwrap().takes = false);
        assert_eq!(lost(&off), None);
        assert_eq!(lost(&[]), None);
    }

    #[test]
    fn what_does_not_answer_is_an_error() {
        let monitor = Monitor::new(1, Path::new("/nowhere/bzImage")).unwrap();
        let error = format!("{:#}", monitor.look().unwrap_err());
        assert!(error.contains("monitor"), "{error}");
    }

    #[test]
    fn the_monitor_is_asked_and_answers() {
        let monitor = Monitor::new(1, Path::new("/nowhere/bzImage")).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(monitor.socket()).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{}", json!({"QMP": {}})).unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let asked: Value = serde_json::from_str(&line).unwrap();
                let said = match asked["arguments"]["command-line"].as_str() {
                    None => json!({}),
                    Some("info registers -a") => REGISTERS.into(),
                    Some(_) => lapic("236", "(none)").into(),
                };
                writeln!(stream, "{}", json!({"event": "STOP"})).unwrap();
                writeln!(stream, "{}", json!({"return": said})).unwrap();
            }
        });
        let hang = monitor.look().unwrap();
        assert_eq!(hang.cpus.len(), 2);
        assert!(hang.said.contains("RIP=ffffffff81000012"));
        assert_eq!(hang.lost.unwrap(), "QEMU lost interrupt 236 of CPU 0");
    }
}
