//! The kernel goes while faults are outstanding, and another one comes: its faults park as before, and the rings of the first
//! are never written again.
//!
//! Options: `outstanding` (62); `how`: `reboot`, `sysrq` (at once, without a word to drivers), `kexec` or `crash`;
//! `latency`: when pages come; without it they do not. Then the tasks that wait for them are stopped, so that they do not fault
//! again when their ring goes: with no ring the whole CPU would wait.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use ve_apf_testdev::{Mark, PAGE_WORDS, PolicyArgs};

use super::msr;
use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::kexec::{self, Memory, When};
use crate::options::Options;
use crate::tally::{From, Tally};
use crate::{dmesg, process, sys, system};

/// `reboot`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    match options.number("boot", 0)? {
        0 => first(options, device),
        boot => second(name, boot, options, device),
    }
}

fn first(options: &Options, device: &Device) -> Result<()> {
    let outstanding = options.count("outstanding", 62)?;
    let comes = !options.text("latency", "").is_empty();
    let policy =
        if comes { options.policy()? } else { PolicyArgs { never: true, ..PolicyArgs::fixed(0) } };
    process::only_one_thread()?;
    sys::pin_to(0)?;
    let arena = Arena::anonymous(device, outstanding.max(1))?;
    let slice = arena.slices(1).remove(0);
    device.set_policy(&[], policy)?;
    let rings = rings()?;
    device.mark(Mark::Remember, &rings)?;
    match options.text("how", "reboot") {
        "kexec" => load(&slice, &rings, When::Asked)?,
        "crash" => load(&slice, &rings, When::Crashed)?,
        _ => {}
    }
    park(device, &slice, outstanding, !comes)?;
    device.report("", &json!({"kind": "leaving", "outstanding": outstanding, "rings": rings}));
    let how = options.text("how", "reboot");
    match how {
        "reboot" => system::restart(),
        "sysrq" => fs::write("/proc/sysrq-trigger", "b")?,
        "kexec" => bail!("kexec: {}", kexec::start()),
        "crash" => fs::write("/proc/sysrq-trigger", "c")?,
        _ => bail!("veapf.how={how}: must be reboot, sysrq, kexec or crash"),
    }
    // The CPU that does it may not be this one.
    std::thread::sleep(Duration::from_secs(10));
    bail!("{how}: this kernel is still there")
}

/// Frames of all CPUs' rings.
fn rings() -> Result<Vec<u64>> {
    let ring = |cpu| {
        let mut en = [0; 8];
        msr::open(cpu)?.read_exact_at(&mut en, msr::EN)?;
        ensure!(en[0] & 1 != 0, "the ring of CPU {cpu} is off");
        Ok(u64::from_le_bytes(en) >> 12)
    };
    (0..sys::cpus_online() as u64).map(ring).collect()
}

fn park(device: &Device, slice: &Slice, count: usize, stop: bool) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    device.evict(&slice.frames()[..count], 0)?;
    let faults = device.pager_state()?.faults;
    let children: Vec<i32> = (0..count)
        .map(|index| {
            process::fork(|| {
                slice.read(index, 0);
                0
            })
        })
        .collect::<std::io::Result<_>>()?;
    for _ in 0..5000 {
        if device.pager_state()?.faults >= faults + count as u64 {
            if stop {
                children.iter().try_for_each(|child| process::kill(*child, libc::SIGSTOP))?;
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("not all of {count} tasks met their page")
}

/// Loads the kernel that comes after this one. Memory that is missing, and the rings, are not its own.
fn load(slice: &Slice, rings: &[u64], when: When) -> Result<()> {
    const BESIDE: std::ops::Range<u64> = 0x280_0000..0x400_0000;
    const LOW: u64 = 0x9_fc00;
    let kernel = fs::read("/kernel").context("/kernel (kernel_inside = true)")?;
    let init = fs::read("/proc/self/exe").context("/proc/self/exe")?;
    let (beside, mut memory) = match when {
        When::Asked => (BESIDE, kexec::memory()?),
        When::Crashed => {
            let area = kexec::crash_area()?;
            let low = Memory { start: 0, size: LOW, ram: true };
            (
                area.clone(),
                vec![low, Memory { start: area.start, size: area.end - area.start, ram: true }],
            )
        }
    };
    let taken: Vec<u64> = slice.frames().iter().chain(rings).copied().collect();
    if when == When::Asked {
        // What lies where the new kernel goes could not be written.
        let inside = |frame: &&u64| **frame << 12 < BESIDE.end;
        ensure!(!taken.iter().any(|frame| inside(&frame)), "a page lies where the kernel goes");
        memory.extend(taken.iter().map(|frame| Memory {
            start: frame << 12,
            size: 4096,
            ram: false,
        }));
    }
    let own = fs::read_to_string("/proc/cmdline")?;
    let words = own.split_whitespace().filter(|word| !word.starts_with("crashkernel="));
    let cmdline = words.chain(["veapf.boot=1"]).collect::<Vec<_>>().join(" ");
    kexec::load(&kernel, &init, &cmdline, &memory, beside, when)
}

fn second(name: &str, boot: u64, options: &Options, device: &Device) -> Result<()> {
    let how = options.text("how", "reboot");
    if ["kexec", "crash"].contains(&how) {
        // After a reset the VMM has done these two.
        device.mark(Mark::Fill, &[])?;
        device.restore_all()?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let [changed, marked] = device.mark(Mark::Check, &[])?;

    const PAGES: usize = 16;
    let arena = Arena::anonymous(device, PAGES)?;
    let slice = arena.slices(1).remove(0);
    device.set_policy(&[], PolicyArgs::fixed(5000))?;
    device.evict(slice.frames(), 1)?;
    let before = GuestCounters::read();
    let mut tally = Tally::default();
    for index in 0..PAGES {
        let touch = || slice.wrong_bytes(index, 1, 0..PAGE_WORDS);
        let wrong = tally.touch(From::User, touch);
        tally.wrong_bytes += wrong;
    }
    let [again, _] = device.mark(Mark::Check, &[])?;
    let bad = dmesg::bad_lines();
    let mut record = Value::Object(GuestCounters::read().since(&before));
    for (field, value) in [
        ("kind", json!("result")),
        ("workload", json!(name)),
        ("how", json!(how)),
        ("boot", json!(boot)),
        ("rings_marked", json!(marked)),
        ("bytes_written", json!(changed.max(again))),
        ("faults", json!(PAGES)),
        ("wrong_bytes", json!(tally.wrong_bytes)),
        ("ve_apf_log", json!(dmesg::lines_with("ve-apf"))),
        ("bad", json!(bad.len())),
        ("bad_lines", json!(bad)),
    ] {
        record[field] = value;
    }
    device.report("", &record);
    Ok(())
}
