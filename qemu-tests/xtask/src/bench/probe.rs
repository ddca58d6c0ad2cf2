//! Exact counts of instructions, by Bochs's debugger: it stops at addresses of the kernel and says how many instructions
//! have been executed. The guest does not notice; a workload says with `magic=1` where its section begins and ends.
//!
//! L1 and L2 run the same kernel at the same addresses. Whose a stop is follows from the VM entries and exits, at which it
//! stops as well; what passes between an exit and the next entry is the host's.

use crate::error::{Kind, fail};
use crate::initrd::vmlinux;
use crate::kernel::{Kernel, symbols};
use crate::record::Record;
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt::Write;
use std::path::Path;

/// Stops in each section. A fault makes some twenty-five, so a section has to have about two hundred faults.
const STOPS: usize = 2500;

/// Where it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// #VE, or #PF, begins.
    Fault,
    /// `__schedule()` begins.
    Schedule,
    /// The interrupt of a completion begins.
    Interrupt,
    /// The scheduler is asked to wake a task.
    Wake,
    /// A task was made runnable.
    Runnable,
    /// A VM exit has happened.
    Exit,
    /// A VM entry is about to.
    Entry,
}

const SYMBOLS: [(&str, Point); 7] = [
    ("asm_exc_virtualization_exception", Point::Fault),
    ("asm_exc_page_fault", Point::Fault),
    ("__schedule", Point::Schedule),
    ("asm_sysvec_kvm_asyncpf_interrupt", Point::Interrupt),
    ("try_to_wake_up", Point::Wake),
    // Called for each task that was put on a run queue, right after that.
    ("wakeup_preempt", Point::Runnable),
    ("vmx_vmexit", Point::Exit),
];
/// The function with the VM entry, up to `vmx_vmexit`.
const ENTER: &str = "__vmx_vcpu_run";
const VMRESUME: [u8; 3] = [0x0f, 0x01, 0xc3];

/// The addresses, of one kernel.
pub(crate) struct Points(Vec<(u64, Point)>);

impl Points {
    /// Of this kernel, whose System.map lies beside it.
    pub(crate) fn of(kernel: &Kernel) -> Result<Self> {
        let map = symbols::path(&kernel.bzimage);
        let text = std::fs::read_to_string(&map).map_err(|e| {
            fail(
                Kind::Usage,
                format!("{} cannot be read ({e})", map.display()),
                "counting instructions needs the kernel's System.map beside it",
            )
        })?;
        let address = |name: &str| {
            symbols::address(&text, name).with_context(|| format!("{}: no {name}", map.display()))
        };
        let mut points = Vec::new();
        for (name, point) in SYMBOLS {
            points.push((address(name)?, point));
        }
        let image = std::fs::read(&kernel.bzimage).context("reading the kernel")?;
        let elf = vmlinux::unpack(image)?;
        let (from, to) = (address(ENTER)?, address("vmx_vmexit")?);
        let code = elf_bytes(&elf, from, to).context("the kernel has no code of KVM's VM entry")?;
        let at = code.windows(3).position(|bytes| bytes == VMRESUME).context("no VMRESUME")?;
        points.push((from + at as u64, Point::Entry));
        Ok(Self(points))
    }

    /// What the debugger is to do in a boot with so many sections.
    pub(crate) fn script(&self, sections: usize) -> String {
        let mut text = String::new();
        let all = |text: &mut String, command: &str| {
            for n in 1..=self.0.len() {
                let _ = writeln!(text, "{command} {n}");
            }
        };
        for (address, _) in &self.0 {
            let _ = writeln!(text, "lb {address:#x}");
        }
        all(&mut text, "bpd");
        for _ in 0..sections {
            text.push_str("c\n");
            all(&mut text, "bpe");
            text.push_str(&"c\n".repeat(STOPS));
            all(&mut text, "bpd");
            text.push_str("c\n");
        }
        text.push_str("c\n");
        text
    }

    /// The debugger's log: a record for each section that ended.
    pub(crate) fn read(&self, log: &Path) -> Vec<Record> {
        let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
        self.sections(&text).iter().map(|stops| figures(stops)).collect()
    }

    fn sections(&self, log: &str) -> Vec<Vec<(Point, u64)>> {
        let mut sections = Vec::new();
        let mut open: Option<Vec<(Point, u64)>> = None;
        let mut point = None;
        for line in log.lines() {
            if line.contains("agic breakpoint") {
                match open.take() {
                    Some(stops) => sections.push(stops),
                    None => open = Some(Vec::new()),
                }
            } else if let Some((_, rest)) = line.split_once("Breakpoint ") {
                point = rest.split_once("0x").and_then(|(_, hex)| {
                    let hex = hex.split_whitespace().next()?;
                    let address = u64::from_str_radix(hex, 16).ok()?;
                    self.0.iter().find(|p| p.0 == address).map(|p| p.1)
                });
            } else if let Some(t) = line.strip_prefix("Next at t=") {
                if let (Some(stops), Some(point), Ok(t)) = (&mut open, point.take(), t.parse()) {
                    stops.push((point, t));
                }
            }
        }
        sections
    }
}

/// What an ELF file loads from one address to another.
fn elf_bytes(elf: &[u8], from: u64, to: u64) -> Option<&[u8]> {
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    (0..count).find_map(|n| {
        let head = usize::try_from(table + n * size).ok()?;
        let (offset, address, length) =
            (number(head + 8, 8)?, number(head + 16, 8)?, number(head + 32, 8)?);
        if from < address || to > address.checked_add(length)? {
            return None;
        }
        let start = usize::try_from(offset + (from - address)).ok()?;
        elf.get(start..start + usize::try_from(to - from).ok()?)
    })
}

/// What the stops of a section say. The guest's clock stands still while the host runs.
fn figures(stops: &[(Point, u64)]) -> Record {
    let (mut park, mut wake, mut host_of_fault) = (Vec::new(), Vec::new(), Vec::new());
    let mut scheduler = Vec::new();
    // Instructions of the host so far, and when it began to run.
    let (mut host, mut host_since) = (0, stops.first().map(|s| s.1));
    let (mut fault, mut interrupt): (Option<(u64, u64, u32)>, Option<u64>) = (None, None);
    let mut waking = None;
    // The host's instructions and the exits so far, when the last fault began.
    let (mut last_fault, mut exits): (Option<(u64, u32)>, u32) = (None, 0);
    for &(point, t) in stops {
        match (point, host_since) {
            (Point::Entry, Some(since)) => {
                host += t - since;
                host_since = None;
            }
            (Point::Exit, None) => {
                exits += 1;
                host_since = Some(t);
            }
            // Of the host.
            (_, Some(_)) | (Point::Entry, None) => {}
            (Point::Fault, None) => fault = Some((t - host, host, exits)),
            (Point::Schedule, None) => {
                if let Some((began, host_then, exits_then)) = fault.take() {
                    park.push(t - host - began);
                    let since = |last: (u64, u32)| (exits_then - last.1, host_then - last.0);
                    host_of_fault.extend(last_fault.map(since));
                    last_fault = Some((host_then, exits_then));
                }
            }
            (Point::Interrupt, None) => interrupt = Some(t - host),
            (Point::Wake, None) => waking = interrupt.map(|_| t - host),
            (Point::Runnable, None) => {
                wake.extend(interrupt.take().map(|began| t - host - began));
                scheduler.extend(waking.take().map(|began| t - host - began));
            }
        }
    }
    Record {
        value: json!({
            "kind": "probe", "faults": park.len(),
            "park": spread(&mut park), "wake": spread(&mut wake), "scheduler": spread(&mut scheduler),
            "host": spread(&mut undisturbed(&host_of_fault)),
        }),
    }
}

/// The counts of faults without an exit that others do not have, as a timer tick is that comes while the guest runs. Half of all have one
/// or more, so that the median of all is now with one and now without. Of (exits, instructions), those with the fewest exits that one
/// in five has: fewer have it where two pages came together.
fn undisturbed(counts: &[(u32, u64)]) -> Vec<u64> {
    let with = |exits: u32| counts.iter().filter(move |c| c.0 == exits).map(|c| c.1);
    let most = counts.iter().map(|c| c.0).max().unwrap_or(0);
    let fewest = (0..=most).find(|exits| with(*exits).count() * 5 >= counts.len());
    fewest.map_or_else(Vec::new, |exits| with(exits).collect())
}

fn spread(counts: &mut [u64]) -> serde_json::Value {
    counts.sort_unstable();
    json!({"n": counts.len(), "least": counts.first(), "quartile": counts.get(counts.len() / 4), "median": counts.get(counts.len() / 2), "most": counts.last()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_clock_stands_still_while_the_host_runs() {
        let stops = [
            (Point::Schedule, 100),
            (Point::Entry, 110),
            (Point::Fault, 120),
            (Point::Exit, 150),
            (Point::Schedule, 170),
            (Point::Entry, 250),
            (Point::Schedule, 300),
            (Point::Interrupt, 400),
            (Point::Exit, 420),
            (Point::Entry, 440),
            (Point::Wake, 450),
            (Point::Runnable, 480),
            (Point::Runnable, 490),
            (Point::Fault, 500),
            (Point::Schedule, 560),
        ];
        let got = figures(&stops).value;
        // 300 - 120 without the host's 100, and 560 - 500; 480 - 400 without 20; the host's 100 and 20 between two faults.
        let one = |n: u64| json!({"n": 1, "least": n, "quartile": n, "median": n, "most": n});
        assert_eq!(
            got["park"],
            json!({"n": 2, "least": 60, "quartile": 60, "median": 80, "most": 80})
        );
        assert_eq!(got["wake"], one(60));
        assert_eq!(got["scheduler"], one(30));
        assert_eq!(got["host"], one(120));
        assert_eq!(figures(&[]).value["park"]["median"], json!(null));
    }

    #[test]
    fn an_exit_between_a_fault_and_its_park_is_the_next_faults() {
        // Two faults; the host takes 30 after the first one's #VE, 10 before the second's.
        let fault = |t: u64| [(Point::Entry, t), (Point::Fault, t + 1), (Point::Schedule, t + 2)];
        let late = [
            (Point::Entry, 100),
            (Point::Fault, 101),
            (Point::Exit, 102),
            (Point::Entry, 132),
            (Point::Schedule, 133),
        ];
        let mut stops: Vec<(Point, u64)> = fault(0).into();
        stops.push((Point::Exit, 90));
        stops.extend(late);
        stops.push((Point::Exit, 140));
        stops.extend(fault(155));
        let got = figures(&stops).value;
        // One exit and 10 instructions; two exits, 30 and 15.
        assert_eq!(
            got["host"],
            json!({"n": 1, "least": 10, "quartile": 10, "median": 10, "most": 10})
        );
    }

    #[test]
    fn faults_with_more_exits_do_not_count() {
        let mut counts = vec![(1, 3)];
        counts.extend([(2, 50), (2, 49), (2, 52)]);
        counts.extend([(3, 53); 8]);
        assert_eq!(undisturbed(&counts), [50, 49, 52]);
        counts.push((3, 54));
        counts.extend([(3, 53); 4]);
        assert_eq!(undisturbed(&counts).len(), 13);
        assert_eq!(undisturbed(&[]), [0_u64; 0]);
    }

    #[test]
    fn the_log_is_divided_at_magic_breakpoints() {
        let points = Points(vec![(0xffff_0010, Point::Exit), (0xffff_0020, Point::Entry)]);
        let log = "c\n(0) Breakpoint 1, 0xffff0010 in ?? ()\nNext at t=5\n(0) Magic breakpoint\nNext at t=7\n\
                   (0) Breakpoint 2, 0xffff0020 in ?? ()\nNext at t=9\n(0) [0x1] x\n(0) Magic breakpoint\nNext at t=11\n\
                   (0) Breakpoint 1, 0xffff0010 in ?? ()\nNext at t=12\n";
        assert_eq!(points.sections(log), [vec![(Point::Entry, 9)]]);
        let script = points.script(2);
        assert!(
            script.starts_with("lb 0xffff0010\nlb 0xffff0020\nbpd 1\nbpd 2\nc\nbpe 1\nbpe 2\nc\n")
        );
        assert_eq!(script.lines().filter(|l| *l == "c").count(), 2 * (STOPS + 2) + 1);
    }

    #[test]
    fn code_is_found() {
        let mut elf = vec![0; 64 + 56 + 8];
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64 + 8] = 120;
        elf[64 + 16] = 0x40;
        elf[64 + 32] = 8;
        elf[122..125].copy_from_slice(&VMRESUME);
        assert_eq!(elf_bytes(&elf, 0x42, 0x45), Some(&VMRESUME[..]));
        assert_eq!(elf_bytes(&elf, 0x42, 0x49), None);
    }
}
