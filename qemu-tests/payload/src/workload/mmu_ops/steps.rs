//! Steps of a test of KVM's MMU: an operation with a walk before and after it, and what the guest then meets.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Map, Value, json};
use ve_apf_testdev::{Mmu, PAGE_WORDS, pattern_base, pattern_word};

use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::{fault_trace, selftest};

/// Tasks that touch pages.
const TASKS: usize = 4;
/// What an entry of the MMU can be that must not be.
const ERRORS: [&str; 3] = ["outside", "wrong_root", "unsuppressed"];
const WALKS: [&str; 4] = ["before", "between", "flipped", "after"];
/// What is kept of a walk besides.
const KEPT: [&str; 6] = ["present", "suppressed", "armed", "ranges", "declared", "pages_2m"];

pub(super) struct Steps<'a> {
    device: &'a Device,
    pub(super) slice: Slice,
    /// Pattern that each page holds, or gets.
    rounds: Vec<u64>,
    steps: Map<String, Value>,
    walks: u64,
    errors: u64,
    wrong_bytes: u64,
}

impl<'a> Steps<'a> {
    /// Every page holds the pattern of round 0 afterwards.
    pub(super) fn new(device: &'a Device, arena: &Arena) -> Result<Steps<'a>> {
        let slice = arena.slices(1).remove(0);
        for (index, gfn) in slice.frames().iter().enumerate() {
            for word in 0..PAGE_WORDS {
                slice.write(index, word, pattern_word(pattern_base(*gfn, 0), word));
            }
        }
        let rounds = vec![0; slice.count];
        let (walks, errors, wrong_bytes) = (0, 0, 0);
        Ok(Steps { device, slice, rounds, steps: Map::new(), walks, errors, wrong_bytes })
    }

    fn frames_of(&self, pages: &[usize]) -> Vec<u64> {
        pages.iter().map(|page| self.slice.frames()[*page]).collect()
    }

    /// Does `what` to these pages, between two walks.
    pub(super) fn op(&mut self, name: &str, what: Mmu, arg: u64, pages: &[usize]) -> Result<()> {
        let frames = self.frames_of(pages);
        let mut answer = self.device.mmu(what, [arg, 0], &frames)?;
        if what == Mmu::Flip {
            answer["found"] = json!(answer["flipped"]["first_gfn"] == json!(arg));
        }
        for name in WALKS {
            let Some(walk) = answer.get_mut(name).and_then(Value::as_object_mut) else { continue };
            self.walks += 1;
            if name != "flipped" {
                let error = |error: &&str| walk.get(*error).and_then(Value::as_u64);
                self.errors += ERRORS.iter().filter_map(error).sum::<u64>();
            }
            walk.retain(|key, value| {
                KEPT.contains(&key.as_str()) || (ERRORS.contains(&key.as_str()) && *value != 0)
            });
        }
        self.put(name, answer);
        Ok(())
    }

    /// Takes the pages away; they come back with a new pattern.
    pub(super) fn evict(&mut self, name: &str, pages: &[usize]) -> Result<()> {
        let round = self.rounds.iter().max().map_or(1, |last| last + 1);
        for page in pages {
            self.rounds[*page] = round;
        }
        self.op(name, Mmu::Evict, round, pages)
    }

    /// Has tasks touch the pages, and checks all of their bytes. `hardware` and `injected` count #VEs for these pages by
    /// who raised them, `at_once` is KVM's count of such as were there already.
    pub(super) fn touch(&mut self, name: &str, pages: &[usize], write: bool) -> Result<()> {
        let frames: BTreeSet<u64> = self.frames_of(pages).into_iter().collect();
        let before = GuestCounters::read();
        fault_trace::start()?;
        self.device.stats_begin("step")?;
        let wrong: u64 = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| {
                    let mine = pages.iter().skip(task).step_by(TASKS);
                    let (slice, rounds) = (&self.slice, &self.rounds);
                    scope.spawn(move || {
                        mine.map(|page| touch_one(slice, *page, rounds[*page], write)).sum::<u64>()
                    })
                })
                .collect();
            // A panic ends the program, so joining does not fail.
            tasks.into_iter().map(|task| task.join().unwrap_or(0)).sum()
        });
        let stats = self.device.stats_end("step")?;
        let faults = fault_trace::stop()?;
        let counters = GuestCounters::read().since(&before);
        let count = |hardware| {
            let ours = |fault: &&fault_trace::Fault| {
                fault.hardware == hardware && frames.contains(&fault.gfn)
            };
            faults.iter().filter(ours).count()
        };
        let kvm = |name: &str| stats["kvm_vcpu"][name].as_u64().unwrap_or(0);
        let guest =
            |name: &str| counters.get("ve_apf").map_or(Value::Null, |all| all[name].clone());
        self.wrong_bytes += wrong;
        let step = json!({
            "pages": pages.len(), "hardware": count(true), "injected": count(false), "wrong_bytes": wrong,
            "at_once": kvm("ve_apf_at_once"), "pf_taken": kvm("pf_taken"), "pf_fast": kvm("pf_fast"),
            "delivered": guest("delivered"), "early": guest("early"), "parked": guest("parked"),
            "suspended": guest("suspended"), "spurious_ve": guest("spurious_ve"), "rescued": guest("rescued"),
        });
        self.put(name, step);
        Ok(())
    }

    /// Declares these pages to the host, or withdraws them; one walk after it.
    pub(super) fn declare(&mut self, name: &str, pages: &[usize], withdraw: bool) -> Result<()> {
        self.op(&format!("{name}_before"), Mmu::Check, 0, &[])?;
        for gfn in self.frames_of(pages) {
            selftest::declare(&(gfn..gfn + 1), withdraw)?;
        }
        self.op(name, Mmu::Check, 0, &[])
    }

    /// Declares again what the kernel did at boot.
    pub(super) fn declare_all(&mut self, name: &str) -> Result<()> {
        for range in selftest::ranges()? {
            selftest::declare(&range, false)?;
        }
        self.op(name, Mmu::Check, 0, &[])
    }

    /// Makes the entry of this page wrong: that must show, and be gone when it is right again.
    pub(super) fn flip(&mut self, name: &str, page: usize) -> Result<()> {
        self.op(name, Mmu::Flip, self.slice.frames()[page], &[])
    }

    fn put(&mut self, name: &str, value: Value) {
        match (self.steps.get_mut(name), value) {
            (Some(Value::Object(there)), Value::Object(more)) => there.extend(more),
            (_, value) => {
                self.steps.insert(name.to_owned(), value);
            }
        }
    }

    /// Fields of the result.
    pub(super) fn fields(self) -> Value {
        json!({
            "steps": self.steps, "walks": self.walks, "errors": self.errors, "wrong_bytes": self.wrong_bytes,
        })
    }
}

fn touch_one(slice: &Slice, page: usize, round: u64, write: bool) -> u64 {
    if write {
        slice.write(page, 0, pattern_word(pattern_base(slice.frames()[page], round), 0));
    }
    slice.wrong_bytes(page, round, 0..PAGE_WORDS)
}
