//! Hardware mode's MSR and hypercall are given what they must refuse, and what they must bear. The VM goes on, as do its
//! tasks; what the host remembers of it is bounded.
//!
//! For one vCPU. Options: `pages` (16: touched after each part, to see that hardware mode still works), `many` (100000:
//! separate single pages declared). Results: `veinfo`, `range` and `off`, answers by name (an errno, or what the hypercall
//! returned; null is success); `moved`; `many`; `works`, for each part the #VEs that the CPU then raised for `pages` pages;
//! `errors`, entries of the MMU found wrong.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use ve_apf_testdev::{Mmu, PAGE_WORDS, PolicyArgs};

use super::msr;
use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::selftest::{self, Hypercalls};
use crate::{dmesg, fault_trace, sys};

const EN: u64 = 0x4b56_4d02;
const VEINFO: u64 = 0x4b56_4de1;
const PAGE_MASK: u64 = !0xfff;
/// Bytes that RANGE can speak of.
const ALL: u64 = 1 << 52;
const WITHDRAW: u64 = 1;
/// Tasks whose faults are outstanding while the info page moves.
const WAITING: usize = 4;

/// `bad_input`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    sys::pin_to(0)?;
    let pages = options.count("pages", 16)?;
    let arena = Arena::anonymous(device, 2 * pages + WAITING + 1)?;
    device.set_policy(&[], options.policy()?)?;
    let before = GuestCounters::read();
    let mut test = Test {
        device,
        ranges: selftest::ranges()?,
        slice: arena.slices(1).remove(0),
        pages,
        round: 0,
        msrs: msr::open(0)?,
        calls: Hypercalls::open()?,
        works: Map::new(),
        errors: 0,
        wrong_bytes: 0,
    };
    ensure!(!test.ranges.is_empty(), "no memory is declared: hardware mode, movablecore=");
    let mut record = json!({"kind": "result", "workload": name});
    record["veinfo"] = test.veinfo()?;
    record["moved"] = test.moved()?;
    record["range"] = test.range()?;
    record["many"] = test.many(options.number("many", 100_000)?)?;
    record["off"] = test.off()?;
    let bad = dmesg::bad_lines();
    record["works"] = Value::Object(test.works);
    record["errors"] = json!(test.errors);
    record["wrong_bytes"] = json!(test.wrong_bytes);
    record["bad"] = json!(bad.len());
    record["bad_lines"] = json!(bad);
    if let Value::Object(record) = &mut record {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

struct Test<'a> {
    device: &'a Device,
    /// What the kernel declared.
    ranges: Vec<Range<u64>>,
    slice: Slice,
    pages: usize,
    round: u64,
    msrs: File,
    calls: Hypercalls,
    works: Map<String, Value>,
    errors: u64,
    wrong_bytes: u64,
}

impl Test<'_> {
    /// Values that VEINFO must refuse, and then that it has not changed.
    fn veinfo(&mut self) -> Result<Value> {
        let (is, ring) = (self.read(VEINFO)?, self.read(EN)? & PAGE_MASK);
        let page = is & PAGE_MASK;
        let memory = self.device.memory_mib()? << 20;
        let reserved = (1..12).filter(|bit| self.write(VEINFO, is | 1 << bit).is_some()).count();
        let mut answers = json!({"reserved": reserved});
        let values = [
            ("enable_missing", page),
            ("ring", ring | 1),
            ("above_memory", memory | 1),
            ("lapic", 0xfee0_0001),
            ("above_52_bits", ALL | page | 1),
            ("above_all", PAGE_MASK | 1),
        ];
        for (name, value) in values {
            answers[name] = json!(self.write(VEINFO, value));
            if self.read(VEINFO)? != is {
                // So that the rest still tells something.
                answers["changed_by"] = json!(name);
                self.write(VEINFO, is);
            }
        }
        self.works("veinfo")?;
        Ok(answers)
    }

    /// VEINFO moves to a page of this program while tasks are parked, and that page goes missing. The kernel knows nothing
    /// of this: to it such a #VE is spurious. It does not free the page either, so the faults that follow exit.
    fn moved(&mut self) -> Result<Value> {
        let waiting: Vec<usize> = (2 * self.pages..2 * self.pages + WAITING).collect();
        let info = 2 * self.pages + WAITING;
        let frames: Vec<u64> = waiting.iter().map(|page| self.slice.frames()[*page]).collect();
        self.round += 1;
        let round = self.round;
        self.device.set_policy(&frames, PolicyArgs { never: true, ..PolicyArgs::fixed(0) })?;
        self.device.evict(&frames, round)?;
        let wrong = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = waiting
            .iter()
            .map(|page| {
                let (slice, page, wrong) = (self.slice.clone(), *page, wrong.clone());
                std::thread::spawn(move || {
                    wrong.fetch_add(slice.wrong_bytes(page, round, 0..PAGE_WORDS), Relaxed);
                })
            })
            .collect();
        let began = Instant::now();
        while self.device.pager_state()?.pending < WAITING as u64 {
            ensure!(began.elapsed() < Duration::from_secs(10), "the tasks do not fault");
            sleep(Duration::from_millis(1));
        }

        let is = self.read(VEINFO)?;
        let there = self.slice.frames()[info];
        let before = GuestCounters::read();
        // Not busy.
        self.slice.write(info, 0, 0);
        let moved = self.write(VEINFO, there << 12 | 1);
        self.device.evict_keep(&[there])?;
        let (hardware, injected) = self.touch_some()?;
        // The CPU's reason of an exit for an EPT violation, in the low half; busy, in the high one.
        let first_word = self.slice.read(info, 0);
        let back = self.write(VEINFO, is);
        let counters = GuestCounters::read().since(&before);
        let spurious = counters.get("ve_apf").map_or(Value::Null, |all| all["spurious_ve"].clone());
        let pending = self.device.pager_state()?.pending;
        self.device.restore_all()?;
        for task in tasks {
            // A panic ends the program, so joining does not fail.
            let _ = task.join();
        }
        self.device.set_policy(&frames, PolicyArgs::fixed(1000))?;
        self.wrong_bytes += wrong.load(Relaxed);
        self.works("moved")?;
        Ok(json!({
            "moved": moved, "back": back, "outstanding": pending, "hardware": hardware, "injected": injected,
            "spurious_ve": spurious, "first_word": format!("{first_word:#x}"),
        }))
    }

    fn range(&mut self) -> Result<Value> {
        let memory = self.device.memory_mib()? << 20;
        let (at, end) = (self.ranges[0].start << 12, self.ranges[0].end << 12);
        let before = self.walk()?;
        let mut call =
            |gpa: u64, length: u64, flags: u64| self.calls.call(&[4, gpa, length, flags]);
        let mut answers = json!({
            "zero_length": call(at, 0, 0)?,
            "unaligned": call(at + 8, 4096, 0)?,
            "unaligned_length": call(at, 4097, 0)?,
            "unknown_flag": call(at, 4096, 2)?,
            "all_flags": call(at, 4096, u64::MAX)?,
            "outside": call(memory, 1 << 30, 0)?,
            "wraps": call(PAGE_MASK, 0x2000, 0)?,
            "wraps_to_zero": call(PAGE_MASK, 0x1000, 0)?,
            "beyond_52_bits": call(ALL, 4096, 0)?,
            "longer_than_52_bits": call(4096, ALL, 0)?,
            "longest": call(0, PAGE_MASK, 0)?,
            "withdraw_outside": call(memory, 1 << 30, WITHDRAW)?,
            "again": call(at, end - at, 0)?,
            "overlapping": call(at + 4096, end - at - 4096, 0)?,
            "end_and_beyond": call(memory - 4096, 1 << 30, 0)?,
        });
        let after = self.walk()?;
        answers["unchanged"] = json!(before == after);
        self.works("range")?;

        // All of 2^52 bytes: what of it is memory is declared. The kernel did not mean that, so not for long.
        let mut call = |flags| self.calls.call(&[4, 0, ALL, flags]);
        let declared = call(0)?;
        let all = self.device.mmu(Mmu::Check, [0, 0], &[])?;
        let withdrawn = call(WITHDRAW)?;
        self.errors += errors_in(&all["after"]);
        let none = self.walk()?;
        answers["all"] = json!(declared);
        answers["all_declared"] = all["after"]["declared"].clone();
        answers["all_withdrawn"] = json!(withdrawn);
        answers["left"] = json!(none);
        self.declare_again()?;
        self.works("all")?;
        Ok(answers)
    }

    /// Every second page of what the kernel declared, until there were so many.
    fn many(&mut self, count: u64) -> Result<Value> {
        self.calls.call(&[4, 0, ALL, WITHDRAW])?;
        let before = self.device.mmu(Mmu::Check, [0, 0], &[])?;
        let (mut accepted, mut full, mut other) = (0, 0, 0);
        let singles: Vec<u64> = self.ranges.iter().cloned().flatten().step_by(2).collect();
        let began = Instant::now();
        for gfn in singles.iter().cycle().take(usize::try_from(count)?) {
            match self.calls.call(&[4, gfn << 12, 4096, 0])? {
                0 => accepted += 1,
                -7 => full += 1,
                _ => other += 1,
            }
        }
        let ms = began.elapsed().as_millis() as u64;
        let after = self.device.mmu(Mmu::Check, [0, 0], &[])?;
        self.errors += errors_in(&after["after"]);
        let of = |walk: &Value, key: &str| walk["after"][key].as_u64().unwrap_or(0);
        self.calls.call(&[4, 0, ALL, WITHDRAW])?;
        self.declare_again()?;
        self.works("many")?;
        Ok(json!({
            "calls": count, "accepted": accepted, "full": full, "other": other, "ms": ms,
            "ranges": of(&after, "ranges"), "declared": of(&after, "declared"),
            "host_slab_kib": of(&before, "slab_kib"),
            "host_grew_kib": of(&after, "slab_kib").saturating_sub(of(&before, "slab_kib")),
        }))
    }

    /// Without a ring there is no VEINFO, and nothing stays declared.
    fn off(&mut self) -> Result<Value> {
        let (en, veinfo) = (self.read(EN)?, self.read(VEINFO)?);
        let off = self.write(EN, 0);
        let read = self.read(VEINFO)?;
        let refused = self.write(VEINFO, veinfo);
        let range = self.calls.call(&[4, self.ranges[0].start << 12, 4096, 0])?;
        let left = self.walk()?;
        let on = self.write(EN, en);
        let before_veinfo = self.calls.call(&[4, self.ranges[0].start << 12, 4096, 0])?;
        let again = self.write(VEINFO, veinfo);
        self.declare_again()?;
        self.works("off")?;
        Ok(json!({
            "off": off, "reads": read, "veinfo": refused, "range": range, "left": left, "on": on,
            "range_before_veinfo": before_veinfo, "again": again,
        }))
    }

    fn declare_again(&mut self) -> Result<()> {
        for range in &self.ranges {
            let length = (range.end - range.start) << 12;
            let answer = self.calls.call(&[4, range.start << 12, length, 0])?;
            ensure!(answer == 0, "RANGE: {answer}");
        }
        Ok(())
    }

    /// Does hardware mode work? Counts what the CPU raised.
    fn works(&mut self, part: &str) -> Result<()> {
        let (hardware, injected) = self.touch_some()?;
        self.works.insert(part.to_owned(), json!({"hardware": hardware, "injected": injected}));
        Ok(())
    }

    /// Takes some pages away and touches them; #VEs that the CPU raised for them, and the host.
    fn touch_some(&mut self) -> Result<(usize, usize)> {
        self.round += 1;
        let frames = &self.slice.frames()[..self.pages];
        self.device.evict(frames, self.round)?;
        fault_trace::start()?;
        for page in 0..self.pages {
            self.wrong_bytes += self.slice.wrong_bytes(page, self.round, 0..PAGE_WORDS);
        }
        let faults = fault_trace::stop()?;
        let of = |hardware| {
            let ours = |fault: &&fault_trace::Fault| {
                fault.hardware == hardware && frames.contains(&fault.gfn)
            };
            faults.iter().filter(ours).count()
        };
        Ok((of(true), of(false)))
    }

    /// Ranges and pages declared.
    fn walk(&mut self) -> Result<[u64; 2]> {
        let walk = self.device.mmu(Mmu::Check, [0, 0], &[])?;
        self.errors += errors_in(&walk["after"]);
        Ok(["ranges", "declared"].map(|key| walk["after"][key].as_u64().unwrap_or(u64::MAX)))
    }

    fn read(&self, msr: u64) -> Result<u64> {
        let mut raw = [0; 8];
        self.msrs.read_exact_at(&mut raw, msr)?;
        Ok(u64::from_le_bytes(raw))
    }

    /// The errno, if it is refused.
    fn write(&self, msr: u64, value: u64) -> Option<i32> {
        let error = self.msrs.write_all_at(&value.to_le_bytes(), msr).err()?;
        Some(error.raw_os_error().unwrap_or(-1))
    }
}

fn errors_in(walk: &Value) -> u64 {
    ["outside", "wrong_root", "unsuppressed"].iter().filter_map(|key| walk[key].as_u64()).sum()
}
