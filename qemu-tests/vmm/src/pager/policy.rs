//! When and in which order pages are delivered: a table by frame range, read on every fault, replaced while running.

use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rcu_clean::ArcRcu;
use serde::{Deserialize, Serialize};
use ve_apf_testdev::PolicyArgs;

use crate::counters::lock;

/// One entry's identity and content. Requests under the same id form one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Grows with every change.
    pub id: u32,
    /// What the guest asked for.
    pub args: PolicyArgs,
}

/// Policies of frame ranges, and the one of all other frames.
#[derive(Debug, Clone)]
pub struct Table {
    default: Policy,
    /// Sorted by start, not overlapping.
    ranges: Vec<(Range<u64>, Policy)>,
}

impl Table {
    /// Everything at once, until told otherwise.
    pub fn new() -> Table {
        Table { default: Policy { id: 0, args: PolicyArgs::fixed(0) }, ranges: Vec::new() }
    }

    /// The policy of a frame.
    pub fn get(&self, gfn: u64) -> Policy {
        let after = self.ranges.partition_point(|(range, _)| range.start <= gfn);
        match after.checked_sub(1).and_then(|i| self.ranges.get(i)) {
            Some((range, policy)) if range.contains(&gfn) => *policy,
            _ => self.default,
        }
    }

    /// A new default; policies of ranges end.
    pub fn set_default(&mut self, policy: Policy) {
        self.default = policy;
        self.ranges.clear();
    }

    /// A policy for a range, in place of what was set for its frames before.
    pub fn set_range(&mut self, new: Range<u64>, policy: Policy) {
        let mut kept = Vec::with_capacity(self.ranges.len() + 2);
        for (old, was) in self.ranges.drain(..) {
            if old.start < new.start {
                kept.push((old.start..old.end.min(new.start), was));
            }
            if old.end > new.end {
                kept.push((old.start.max(new.end)..old.end, was));
            }
        }
        kept.push((new, policy));
        kept.sort_by_key(|(range, _)| range.start);
        self.ranges = kept;
    }
}

impl Default for Table {
    fn default() -> Table {
        Table::new()
    }
}

/// Writer's side of the table.
///
/// A reader has a clone of the pointer ([`Policies::reader`]) and takes no lock. Old tables are freed with the last
/// clone and not before: `ArcRcu::clean` may free a table between another thread's count and its load, so it is not
/// used while readers run. A table is a few hundred bytes and changes a few times in a VM's life.
pub struct Policies {
    writer: Mutex<(ArcRcu<Table>, u32)>,
}

impl Policies {
    /// With the default table.
    pub fn new() -> Policies {
        Policies { writer: Mutex::new((ArcRcu::new(Table::new()), 0)) }
    }

    /// For one thread that reads.
    pub fn reader(&self) -> ArcRcu<Table> {
        lock(&self.writer).0.clone()
    }

    /// Replaces the policy of these ranges, or of everything if there are none.
    pub fn set(&self, ranges: &[Range<u64>], args: PolicyArgs) {
        // The lock also keeps writers apart, which ArcRcu::update asks for.
        let mut writer = lock(&self.writer);
        writer.1 += 1;
        let policy = Policy { id: writer.1, args };
        let mut table = writer.0.update();
        if ranges.is_empty() {
            table.set_default(policy);
        }
        for range in ranges {
            table.set_range(range.clone(), policy);
        }
    }
}

/// All policies, as words of [`PolicyArgs`].
#[derive(Serialize, Deserialize)]
pub struct SavedPolicies {
    last_id: u32,
    default: (u32, [u64; 4]),
    ranges: Vec<(Range<u64>, u32, [u64; 4])>,
}

impl Policies {
    /// Reads them.
    pub(super) fn save(&self) -> SavedPolicies {
        let writer = lock(&self.writer);
        let words = |policy: &Policy| (policy.id, policy.args.to_args());
        let ranges = writer.0.ranges.iter().map(|(range, policy)| {
            let (id, args) = words(policy);
            (range.clone(), id, args)
        });
        SavedPolicies {
            last_id: writer.1,
            default: words(&writer.0.default),
            ranges: ranges.collect(),
        }
    }

    /// Puts them back.
    pub(super) fn load(&self, saved: &SavedPolicies) -> Result<()> {
        let policy = |id: u32, args: [u64; 4]| {
            let args = PolicyArgs::from_args(args).context("a policy in the snapshot is none")?;
            Ok::<_, anyhow::Error>(Policy { id, args })
        };
        let default = policy(saved.default.0, saved.default.1)?;
        let ranges = saved
            .ranges
            .iter()
            .map(|(range, id, args)| Ok((range.clone(), policy(*id, *args)?)))
            .collect::<Result<_>>()?;
        let mut writer = lock(&self.writer);
        writer.1 = saved.last_id;
        *writer.0.update() = Table { default, ranges };
        Ok(())
    }
}

impl Default for Policies {
    fn default() -> Policies {
        Policies::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(id: u32) -> Policy {
        Policy { id, args: PolicyArgs::fixed(id) }
    }

    #[test]
    fn later_ranges_cut_earlier_ones() {
        let mut table = Table::new();
        table.set_range(10..20, policy(1));
        table.set_range(30..40, policy(2));
        table.set_range(15..35, policy(3));
        let ids: Vec<u32> =
            [9, 10, 14, 15, 34, 35, 39, 40].iter().map(|gfn| table.get(*gfn).id).collect();
        assert_eq!(ids, [0, 1, 1, 3, 3, 2, 2, 0]);
        table.set_range(12..13, policy(4));
        let ids: Vec<u32> = [11, 12, 13].iter().map(|gfn| table.get(*gfn).id).collect();
        assert_eq!(ids, [1, 4, 1]);
        table.set_default(policy(5));
        assert_eq!(table.get(12).id, 5);
    }

    #[test]
    fn readers_see_the_new_table() {
        let policies = Policies::new();
        let reader = policies.reader();
        assert_eq!(reader.get(1).args, PolicyArgs::fixed(0));
        policies.set(&[], PolicyArgs::fixed(7));
        assert_eq!(reader.get(1).args, PolicyArgs::fixed(7));
        policies.set(&[0..2, 8..9], PolicyArgs::fixed(9));
        assert_eq!(
            [reader.get(1).args.min_us, reader.get(4).args.min_us, reader.get(8).args.min_us],
            [9, 7, 9]
        );
    }

    #[test]
    fn policies_go_on_elsewhere() -> Result<()> {
        let (one, two) = (Policies::new(), Policies::new());
        one.set(&[], PolicyArgs::fixed(7));
        one.set(&[3..5, 5..9], PolicyArgs { never: true, ..PolicyArgs::fixed(2) });
        let reader = two.reader();
        two.load(&one.save())?;
        for gfn in [2, 3, 8, 9] {
            assert_eq!(reader.get(gfn), one.reader().get(gfn));
        }
        two.set(&[4..5, 6..7], PolicyArgs::fixed(1));
        assert_eq!(reader.get(4).id, 3);
        Ok(())
    }

    #[test]
    fn readers_and_a_writer_at_once() {
        let policies = Policies::new();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let reader = policies.reader();
                scope.spawn(move || {
                    let mut last = 0;
                    while last < 500 {
                        let policy = reader.get(3);
                        assert!(policy.id >= last && policy.args.min_us == policy.id);
                        last = policy.id;
                    }
                });
            }
            for us in 1..=500 {
                policies.set(&[], PolicyArgs::fixed(us));
            }
        });
    }
}
