//! Whatever the host does to the VM's memory, an entry of its MMU raises #VE only for memory that the guest declared and
//! that the host does not have: the VMM has KVM walk all entries before and after each operation. What the guest meets
//! afterwards is checked byte by byte, and #VEs are counted by page.
//!
//! `mmu_ops`: small pages. `mmu_huge`: under a VMM with `--thp`. For one vCPU. Options: `pages` (64; of each two
//! neighbours one is taken away). Results: `steps`, by name; `walks`; `errors`, the entries that were wrong in any walk but
//! those for which one was made wrong on purpose (`flipped`).

mod huge;
mod steps;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ve_apf_testdev::Mmu;

use crate::arena::Arena;
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, selftest};
use steps::Steps;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// `mmu_ops`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let arena = Arena::anonymous(device, 2 * options.count("pages", 64)?)?;
    with_steps(name, options, device, &arena, |steps, slots| {
        let (gone, there) = halves(arena.frames.len());
        evict_and_restore(steps, &gone, &there)?;
        undeclared(steps, &gone, there[0])?;
        memslots(steps, &gone, slots)?;
        dirty_logging(steps, &gone)?;
        others(steps, &gone, &there)
    })
}

/// `mmu_huge`.
pub(super) fn run_huge(name: &str, options: &Options, device: &Device) -> Result<()> {
    // Off at boot with less than 512 MiB.
    std::fs::write(THP, "madvise").context(THP)?;
    let arena = Arena::huge(device, 2 * huge::BLOCK)?;
    with_steps(name, options, device, &arena, huge::run)
}

/// The arena's memslot.
struct Slots {
    of_arena: u64,
    /// Pages of it that are declared.
    declared: u64,
}

impl Slots {
    fn of(device: &Device, arena: &Arena, count: u64) -> Result<Slots> {
        let size = (device.memory_mib()? << 8) / count;
        let of_arena = arena.frames[0] / size;
        let inside = |frame: u64| frame.clamp(of_arena * size, (of_arena + 1) * size);
        let declared =
            selftest::ranges()?.iter().map(|range| inside(range.end) - inside(range.start)).sum();
        Ok(Slots { of_arena, declared })
    }
}

fn with_steps(
    name: &str,
    options: &Options,
    device: &Device,
    arena: &Arena,
    body: impl FnOnce(&mut Steps, &Slots) -> Result<()>,
) -> Result<()> {
    device.set_policy(&[], options.policy()?)?;
    let slots = Slots::of(device, arena, options.number("slots", 1)?)?;
    let before = GuestCounters::read();
    let mut steps = Steps::new(device, arena)?;
    steps.op("start", Mmu::Check, 0, &[])?;
    body(&mut steps, &slots)?;
    steps.op("end", Mmu::Check, 0, &[])?;
    let bad = dmesg::bad_lines();
    let mut record = json!({
        "kind": "result", "workload": name, "slot": slots.of_arena, "declared_in_slot": slots.declared,
        "bad": bad.len(), "bad_lines": bad,
    });
    for (field, value) in steps.fields().as_object().into_iter().flatten() {
        record[field] = value.clone();
    }
    if let Value::Object(record) = &mut record {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

/// Pages that are taken away, and their neighbours that stay.
fn halves(count: usize) -> (Vec<usize>, Vec<usize>) {
    (0..count).partition(|page| page.is_multiple_of(2))
}

fn evict_and_restore(steps: &mut Steps, gone: &[usize], there: &[usize]) -> Result<()> {
    steps.evict("evict", gone)?;
    steps.touch("evict_touch_there", there, false)?;
    steps.touch("evict_touch", gone, false)?;
    // What the host has again is still armed, and found there at once.
    steps.evict("restore_evict", gone)?;
    steps.op("restore", Mmu::Restore, 0, gone)?;
    steps.touch("restore_touch", gone, true)
}

fn undeclared(steps: &mut Steps, gone: &[usize], there: usize) -> Result<()> {
    steps.declare("withdraw", gone, true)?;
    steps.evict("undeclared_evict", gone)?;
    // The test of the test: a present entry, and one that is missing and not declared.
    steps.flip("flip_present", there)?;
    steps.flip("flip_missing", gone[0])?;
    steps.touch("undeclared_touch", gone, false)?;
    // Declared while they are missing, and withdrawn while they are.
    steps.evict("again_evict", gone)?;
    steps.declare("declare", gone, false)?;
    steps.declare("withdraw_missing", gone, true)?;
    steps.declare("declare_missing", gone, false)?;
    steps.touch("declare_touch", gone, false)
}

fn memslots(steps: &mut Steps, gone: &[usize], slots: &Slots) -> Result<()> {
    let ways = [
        ("remake", Mmu::Remake, 0),
        ("remake_own", Mmu::Remake, 1),
        ("move", Mmu::Move, 0),
        ("move_own", Mmu::Move, 1),
    ];
    for (name, how, own) in ways {
        steps.op(&format!("{name}_zap"), Mmu::ZapOwn, own, &[])?;
        steps.evict(&format!("{name}_evict"), gone)?;
        steps.op(name, how, slots.of_arena, &[])?;
        // What was declared is gone with the memslot: the host tells of these.
        steps.touch(&format!("{name}_touch"), gone, false)?;
        steps.declare_all(&format!("{name}_declare"))?;
        steps.evict(&format!("{name}_again"), gone)?;
        steps.touch(&format!("{name}_again_touch"), gone, true)?;
    }
    steps.op("remake_zap", Mmu::ZapOwn, 0, &[])
}

fn dirty_logging(steps: &mut Steps, gone: &[usize]) -> Result<()> {
    // Half of them is missing when it begins.
    let (missing, written) = gone.split_at(gone.len() / 2);
    steps.evict("log_evict", missing)?;
    steps.op("log_on", Mmu::Log, 1, &[])?;
    steps.touch("log_write", gone, true)?;
    steps.op("log_get", Mmu::GetLog, 0, gone)?;
    // All of them are protected now.
    steps.touch("log_read", gone, false)?;
    steps.op("log_get_read", Mmu::GetLog, 0, gone)?;
    steps.evict("log_manual_evict", missing)?;
    steps.op("log_manual", Mmu::LogManual, 1, &[])?;
    steps.touch("log_manual_write", written, true)?;
    steps.op("log_manual_get", Mmu::GetLog, 0, gone)?;
    steps.op("log_clear", Mmu::ClearLog, 0, gone)?;
    steps.op("log_cleared", Mmu::GetLog, 0, gone)?;
    steps.touch("log_missing", missing, true)?;
    steps.op("log_missing_get", Mmu::GetLog, 0, gone)?;
    steps.evict("log_off_evict", missing)?;
    steps.op("log_off", Mmu::Log, 0, &[])?;
    steps.op("log_auto", Mmu::LogManual, 0, &[])?;
    steps.touch("log_off_touch", gone, true)
}

fn others(steps: &mut Steps, gone: &[usize], there: &[usize]) -> Result<()> {
    // Of the pages that are there; the missing ones have no page of the host to forget.
    steps.touch("age_before", there, true)?;
    steps.evict("age_evict", gone)?;
    steps.op("age", Mmu::Age, 0, there)?;
    steps.touch("age_touch_there", there, true)?;
    steps.touch("age_touch", gone, false)?;
    steps.evict("zap_evict", gone)?;
    steps.op("zap", Mmu::ZapAll, 0, &[])?;
    steps.touch("zap_touch_there", there, false)?;
    steps.touch("zap_touch", gone, false)
}
