//! What follows from several records.

use super::row::{Bench, Row};
use crate::lane::Lane;
use std::collections::BTreeSet;

/// Modes in which a task can park, and the one in which none does.
pub(super) const MODES: [&str; 4] = ["blocking", "kvm-apf", "injected", "hardware"];
/// Lanes, the exact one first.
pub(super) const LANES: [&str; 2] = ["vmx", "svm"];

impl Bench {
    /// Records of this lane, mode and workload, on one vCPU.
    pub(super) fn of<'a>(
        &'a self,
        lane: &'a str,
        mode: &'a str,
        workload: &'a str,
    ) -> impl Iterator<Item = &'a Row> {
        self.records.iter().filter(move |row| {
            let key = &row.key;
            key.lane == lane && key.mode == mode && key.workload == workload && key.vcpus == 1
        })
    }

    /// The lanes that were run.
    pub(super) fn lanes(&self) -> Vec<&'static str> {
        let ran = |lane: &&str| self.records.iter().any(|row| row.key.lane == **lane);
        LANES.into_iter().filter(ran).collect()
    }

    /// The machine of this lane, as its records have it.
    pub(super) fn about(&self, lane: &str) -> String {
        let all = |field: &str| -> Vec<u32> {
            let of_lane = self.records.iter().filter(|row| row.key.lane == lane);
            let numbers =
                of_lane.filter_map(|row| row.values.get(field)?.as_u64()?.try_into().ok());
            numbers.collect::<BTreeSet<u32>>().into_iter().collect()
        };
        let machine = if lane == Lane::Vmx.name() { Lane::Vmx } else { Lane::Svm };
        machine.about(&all("l1_cpus"), &all("mips"))
    }

    /// Latencies and what a fault costs at each of them, in us.
    fn costs(&self, lane: &str, mode: &str) -> Vec<(f64, f64)> {
        let point = |row: &Row| {
            #[expect(clippy::cast_precision_loss, reason = "microseconds")]
            let latency = row.key.latency_us as f64;
            Some((latency, row.number("cost_us_per_fault")?))
        };
        self.of(lane, mode, "user_touch").filter_map(point).collect()
    }

    /// The latency below which blocking is better.
    pub(super) fn break_even(&self, lane: &str, mode: &str) -> Option<BreakEven> {
        break_even(&self.costs(lane, "blocking"), &self.costs(lane, mode))
    }
}

/// A break-even latency, in us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum BreakEven {
    /// Even the shortest latency measured costs less than it does with a stopped vCPU.
    Below(f64),
    /// Between two latencies, on a line from one to the other.
    At(f64),
    /// Blocking is always better.
    Above(f64),
}

impl std::fmt::Display for BreakEven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Below(us) => write!(f, "below {us:.0} us"),
            Self::At(us) => write!(f, "{us:.0} us"),
            Self::Above(us) => write!(f, "above {us:.0} us"),
        }
    }
}

/// Of costs by latency, sorted by it.
fn break_even(blocking: &[(f64, f64)], other: &[(f64, f64)]) -> Option<BreakEven> {
    let gain: Vec<(f64, f64)> = blocking
        .iter()
        .filter_map(|(l, cost)| Some((*l, cost - other.iter().find(|o| (o.0 - l).abs() < 0.5)?.1)))
        .collect();
    let (first, last) = (gain.first()?, gain.last()?);
    if first.1 >= 0.0 {
        return Some(BreakEven::Below(first.0));
    }
    let crossing = gain.windows(2).find(|two| two[0].1 < 0.0 && two[1].1 >= 0.0);
    Some(crossing.map_or(BreakEven::Above(last.0), |two| {
        let ((l0, g0), (l1, g1)) = (two[0], two[1]);
        BreakEven::At(l0 + (l1 - l0) * -g0 / (g1 - g0))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_is_where_the_costs_meet() {
        let blocking = [(5.0, 30.0), (100.0, 130.0), (1000.0, 1030.0)];
        let cost = |us: f64| [(5.0, us), (100.0, us), (1000.0, us)];
        assert_eq!(break_even(&blocking, &cost(20.0)), Some(BreakEven::Below(5.0)));
        assert_eq!(break_even(&blocking, &cost(2000.0)), Some(BreakEven::Above(1000.0)));
        let Some(BreakEven::At(us)) = break_even(&blocking, &cost(80.0)) else {
            panic!("no crossing")
        };
        assert!((us - 52.5).abs() < 1e-9, "{us}");
        assert_eq!(break_even(&blocking, &[]), None);
    }
}
