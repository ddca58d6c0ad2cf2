//! The kernel goes while faults are outstanding, and another one comes: its faults park as before, and the rings of those before
//! it are never written again.
//!
//! Options: `outstanding` (62): a list, one number for each kernel but the last; `how`: `reboot`, `sysrq` (at once, without a
//! word to drivers), `kexec` or `crash`; `on_cpu` (0): where tasks wait; `latency`: when pages come. Without it they do not; then the tasks that wait for them
//! are stopped, so that they do not fault again when their ring goes: with no ring the whole CPU would wait. Prints a `boot`
//! record for each kernel but the first, and a result in the last.

use std::fs;
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
use crate::sys::{self, Pages};
use crate::{dmesg, process, system};

/// Behind the kernel: where kexec puts what goes with the next one.
const BESIDE: std::ops::Range<u64> = 0x280_0000..0x600_0000;

/// `reboot`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let boot = options.count("boot", 0)?;
    let numbers = options.numbers("outstanding", "62")?;
    let mut record = Value::Null;
    if boot > 0 {
        record = arrived(boot, options, device)?;
    }
    if let Some(outstanding) = numbers.get(boot) {
        return leave(*outstanding, boot, options, device);
    }
    record["kind"] = json!("result");
    record["workload"] = json!(name);
    record["outstanding"] = json!(numbers);
    device.report("", &record);
    Ok(())
}

fn leave(outstanding: usize, boot: usize, options: &Options, device: &Device) -> Result<()> {
    let comes = !options.text("latency", "").is_empty();
    let policy =
        if comes { options.policy()? } else { PolicyArgs { never: true, ..PolicyArgs::fixed(0) } };
    process::only_one_thread()?;
    sys::pin_to(0)?;
    let how = options.text("how", "reboot");
    let next = match how {
        "kexec" => Some(When::Asked),
        "crash" => Some(When::Crashed),
        _ => None,
    };
    let arena = match next {
        Some(When::Asked) => arena_above(device, outstanding.max(1))?,
        _ => Arena::anonymous(device, outstanding.max(1))?,
    };
    let slice = arena.slices(1).remove(0);
    device.set_policy(&[], policy)?;
    let rings = rings()?;
    device.mark(Mark::Remember, &rings)?;
    if let Some(when) = next {
        load(&slice, rings, boot + 1, options, when)?;
    }
    park(device, &slice, outstanding, options.count("on_cpu", 0)?, !comes)?;
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

/// Pages that lie where no new kernel goes: they are missing when it is put there.
fn arena_above(device: &Device, count: usize) -> Result<Arena> {
    for _ in 0..10 {
        let arena = Arena::anonymous(device, count)?;
        if arena.frames.iter().all(|frame| *frame << 12 >= BESIDE.end) {
            return Ok(arena);
        }
        // The kernel hands out low pages first. These stay in use.
        Pages::anonymous(4096)?;
    }
    bail!("no memory above {:#x}", BESIDE.end)
}

/// Frames of all CPUs' rings.
fn rings() -> Result<Vec<u64>> {
    let ring = |cpu| {
        let en = msr::en(cpu)?;
        ensure!(en & 1 != 0, "the ring of CPU {cpu} is off");
        Ok(en >> 12)
    };
    (0..sys::cpus_online() as u64).map(ring).collect()
}

fn park(device: &Device, slice: &Slice, count: usize, cpu: usize, stop: bool) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    device.evict(&slice.frames()[..count], 0)?;
    let faults = device.pager_state()?.faults;
    let children: Vec<i32> = (0..count)
        .map(|index| {
            process::fork(|| {
                if process::move_to(0, cpu).is_ok() {
                    slice.read(index, 0);
                }
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
fn load(slice: &Slice, rings: Vec<u64>, boot: usize, options: &Options, when: When) -> Result<()> {
    const LOW: u64 = 0x9_fc00;
    let kernel = fs::read("/kernel").context("/kernel (kernel_inside = true)")?;
    let init = fs::read("/proc/self/exe").context("/proc/self/exe")?;
    let mut all = options.numbers("rings", "")?;
    all.extend(rings.into_iter().map(|ring| ring as usize));
    let rings = all.iter().map(|ring| *ring as u64);
    let taken: Vec<u64> = slice.frames().iter().copied().chain(rings).collect();
    let page = |frame: &u64| Memory { start: frame << 12, size: 4096, ram: false };
    let (beside, memory) = match when {
        When::Asked => {
            let inside = |frame: &u64| *frame << 12 < BESIDE.end;
            ensure!(!taken.iter().any(inside), "a ring lies where the kernel goes");
            // Pages that were missing before this kernel came are there.
            let told = kexec::memory()?.into_iter().filter(|one| one.ram || one.size != 4096);
            (BESIDE, told.chain(taken.iter().map(page)).collect())
        }
        When::Crashed => {
            let area = kexec::crash_area()?;
            let own = Memory { start: area.start, size: area.end - area.start, ram: true };
            (area, vec![Memory { start: 0, size: LOW, ram: true }, own])
        }
    };
    let own = fs::read_to_string("/proc/cmdline")?;
    let old = ["crashkernel=", "veapf.boot=", "veapf.rings="];
    let words = own.split_whitespace().filter(|word| !old.iter().any(|o| word.starts_with(o)));
    let rings = all.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    // As is usual for a crash kernel; so no INIT comes to the others.
    let cpus = if when == When::Crashed { "nr_cpus=1" } else { "" };
    let more = [format!("veapf.boot={boot} veapf.rings={rings}"), cpus.to_owned()];
    let cmdline = words.chain(more.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    // A crash kernel is the last one, and has little room.
    let mut files = vec![("init", &init[..])];
    if when == When::Asked {
        files.push(("kernel", &kernel[..]));
    }
    kexec::load(&kernel, &files, &cmdline, &memory, beside, when)
}

/// In a kernel that is not the first.
fn arrived(boot: usize, options: &Options, device: &Device) -> Result<Value> {
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
    let wrong: u64 = (0..PAGES).map(|index| slice.wrong_bytes(index, 1, 0..PAGE_WORDS)).sum();
    let counts = Value::Object(GuestCounters::read().since(&before));
    let counted = |name: &str| counts["ve_apf"][name].as_u64();
    // A page may be there before its task sleeps.
    let parked = counted("parked").unwrap_or(0) + counted("early").unwrap_or(0);
    let [again, _] = device.mark(Mark::Check, &[])?;
    let bad = dmesg::bad_lines();
    let record = json!({
        "kind": "boot",
        "how": how,
        "boot": boot,
        "rings_marked": marked,
        "bytes_written": changed.max(again),
        "faults": PAGES,
        "wrong_bytes": wrong,
        "parked_or_early": parked,
        "ve_apf": counts["ve_apf"],
        "ve_apf_log": dmesg::lines_with("ve-apf"),
        "bad": bad.len(),
        "bad_lines": bad,
    });
    device.report("", &record);
    ensure!(
        record["bytes_written"] == 0
            && wrong == 0
            && bad.is_empty()
            && counted("rescued") == Some(0),
        "boot {boot}: {record}"
    );
    ensure!(parked == PAGES as u64, "boot {boot}: {record}");
    Ok(record)
}
