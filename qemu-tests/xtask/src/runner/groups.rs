//! Which cases run in one boot.

use super::Outcome;
use crate::cases::{BootEntry, Case, Suite};
use std::time::Duration;

/// Cases that share a boot.
pub(super) struct Group<'a> {
    pub(super) name: String,
    pub(super) entry: BootEntry,
    pub(super) cases: Vec<&'a Case>,
}

impl Group<'_> {
    /// What all its cases may take, in the host's time.
    pub(super) fn limit(&self) -> Duration {
        self.cases.iter().map(|case| self.entry.limit(&case.step)).sum()
    }
}

/// What to boot, in the table's order, and what became of the cases that are skipped.
pub(super) fn groups<'a>(suite: &Suite, cases: &[&'a Case]) -> (Vec<Outcome>, Vec<Group<'a>>) {
    let (mut skipped, mut groups) = (Vec::new(), Vec::<Group<'a>>::new());
    for case in cases {
        if let Some(why) = &case.skip {
            skipped.push(Outcome::skipped(&case.name, why));
            continue;
        }
        if let Some(group) = groups.iter_mut().find(|group| group.name == case.boot) {
            group.cases.push(case);
            continue;
        }
        let entry = suite.boots.get(&case.boot).cloned().unwrap_or_default();
        groups.push(Group { name: case.boot.clone(), entry, cases: vec![case] });
    }
    (skipped, groups)
}
