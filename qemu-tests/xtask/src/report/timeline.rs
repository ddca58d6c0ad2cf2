//! From scheduler events to what each task and each vCPU did when.

use super::ftrace::Event;
use crate::record::Record;
use std::collections::BTreeMap;

/// What a task or a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// On a CPU.
    Running,
    /// Wants to, but another task has the vCPU.
    Runnable,
    /// Sleeps, here: until its page is there.
    Parked,
    /// The guest believes it runs, but its vCPU does not.
    Stopped,
    /// A vCPU that does not run.
    Halted,
}

/// From, to (both in ns since the start of the picture), state.
pub(crate) type Span = (u64, u64, State);

/// One line of the picture.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lane {
    /// "touch0", "vcpu0".
    pub(crate) name: String,
    /// In order, without gaps.
    pub(crate) spans: Vec<Span>,
}

/// One mode's picture.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    /// The mode.
    pub(crate) mode: String,
    /// How long it is, ns.
    pub(crate) length: u64,
    /// Tasks by name, then vCPUs.
    pub(crate) lanes: Vec<Lane>,
}

/// Makes the picture of one case; None if it has no trace of L2.
pub(crate) fn build(mode: &str, records: &[Record]) -> Option<Timeline> {
    let l2_lines = lines(records, "l2");
    let l1_lines = lines(records, "l1");
    let l2: Vec<Event<'_>> = l2_lines.iter().filter_map(|l| Event::parse(l)).collect();
    let l1: Vec<Event<'_>> = l1_lines.iter().filter_map(|l| Event::parse(l)).collect();
    // L1's clock plus this is L2's.
    let offset = records.iter().rev().find(|r| r.kind() == "clock").and_then(|r| {
        let ns = |f: &str| r.value.get(f)?.as_u64();
        Some(i128::from(ns("l2_ns")?) - i128::from(ns("l1_ns")?))
    });

    let names = workload_tasks(&l2);
    let ours = |e: &&Event<'_>| {
        ["prev_pid", "next_pid", "pid"]
            .iter()
            .any(|f| e.number(f).is_some_and(|pid| names.contains_key(&pid)))
    };
    // It begins when the first faulting task wakes up.
    let faulting = |e: &Event<'_>| {
        let name = |pid: &str| e.number(pid).and_then(|pid| names.get(&pid));
        name("next_pid").or(name("pid")).is_some_and(|n| !n.starts_with("compute"))
    };
    let start = l2.iter().find(|e| faulting(e)).or_else(|| l2.iter().find(ours))?.ns;
    let length = l2.iter().rfind(ours)?.ns.checked_sub(start).filter(|l| *l > 0)?;
    let cut = |ns: u64| ns.saturating_sub(start).min(length);

    let mut vcpus = BTreeMap::new();
    if let Some(offset) =
        offset.filter(|_| records.iter().any(|r| r.kind() == "trace" && r.text("where") == "l1"))
    {
        vcpus = vcpu_spans(&l1, |ns| u64::try_from(i128::from(ns) + offset).map_or(0, cut), length);
        // A vCPU that was never switched out has no events.
        for cpu in l2.iter().filter(ours).map(|e| e.cpu) {
            vcpus.entry(cpu).or_insert_with(|| vec![(0, length, State::Running)]);
        }
    }
    let mut lanes: Vec<Lane> = names
        .iter()
        .map(|(&pid, name)| {
            let spans = task_spans(&l2, pid, cut, length);
            Lane { name: name.clone(), spans: stop_where_halted(&spans, &vcpus) }
        })
        .collect();
    lanes.sort_by_key(|lane| natural(&lane.name));
    lanes.extend(vcpus.into_iter().map(|(n, spans)| Lane { name: format!("vcpu{n}"), spans }));
    Some(Timeline { mode: mode.to_owned(), length, lanes })
}

/// The text lines of every trace record from one place, in order.
fn lines<'a>(records: &'a [Record], place: &str) -> Vec<&'a str> {
    records
        .iter()
        .filter(|r| r.kind() == "trace" && r.text("where") == place)
        .filter_map(|r| r.value.get("lines")?.as_array())
        .flatten()
        .filter_map(|l| l.as_str())
        .collect()
}

/// Threads of a workload are named for the picture: letters, then a number.
fn workload_tasks(events: &[Event<'_>]) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    let fields = [("prev_pid", "prev_comm"), ("next_pid", "next_comm"), ("pid", "comm")];
    for event in events {
        for (pid, comm) in fields {
            if let (Some(pid), Some(comm)) = (event.number(pid), event.field(comm)) {
                if pid != 0 && is_workload_name(comm) {
                    names.insert(pid, comm.to_owned());
                }
            }
        }
    }
    names
}

fn is_workload_name(comm: &str) -> bool {
    let letters = comm.trim_end_matches(|c: char| c.is_ascii_digit());
    letters.len() < comm.len()
        && !letters.is_empty()
        && letters.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        && !["kswapd", "kcompactd", "jfsIO", "ttyS"].contains(&letters)
}

/// A task's state before an event on CPU `cpu`, and the CPU it last ran on.
struct Walk {
    spans: Vec<(u64, u64, State, u32)>,
    at: u64,
    state: State,
    cpu: u32,
}

impl Walk {
    fn go(&mut self, ns: u64, state: State, cpu: u32) {
        if ns > self.at {
            self.spans.push((self.at, ns, self.state, self.cpu));
        }
        (self.at, self.state, self.cpu) = (ns, state, cpu);
    }
}

fn task_spans(
    events: &[Event<'_>],
    pid: u32,
    cut: impl Fn(u64) -> u64,
    length: u64,
) -> Vec<(u64, u64, State, u32)> {
    let mut walk: Option<Walk> = None;
    for event in events {
        let is = |field: &str| event.number(field) == Some(pid);
        // What the event says of the time before it matters only for the first one.
        let (before, after) = match event.name {
            "sched_switch" if is("prev_pid") => {
                let runnable = event.field("prev_state").is_some_and(|s| s.starts_with('R'));
                (State::Running, if runnable { State::Runnable } else { State::Parked })
            }
            "sched_switch" if is("next_pid") => (State::Runnable, State::Running),
            "sched_waking" | "sched_wakeup" if is("pid") => (State::Parked, State::Runnable),
            _ => continue,
        };
        let walk =
            walk.get_or_insert(Walk { spans: Vec::new(), at: 0, state: before, cpu: event.cpu });
        // A wake-up of a task that still runs changes nothing.
        if after == State::Runnable && event.name != "sched_switch" && walk.state == State::Running
        {
            continue;
        }
        walk.go(cut(event.ns), after, event.cpu);
    }
    let Some(mut walk) = walk else { return Vec::new() };
    let (state, cpu) = (walk.state, walk.cpu);
    walk.go(length, state, cpu);
    walk.spans
}

fn vcpu_spans(
    events: &[Event<'_>],
    cut: impl Fn(u64) -> u64,
    length: u64,
) -> BTreeMap<u32, Vec<Span>> {
    let number = |comm: Option<&str>| comm?.strip_prefix("vcpu")?.parse::<u32>().ok();
    let mut all: BTreeMap<u32, Vec<Span>> = BTreeMap::new();
    let mut now: BTreeMap<u32, (u64, State)> = BTreeMap::new();
    let mut go = |vcpu: u32, ns: u64, before: State, after: State| {
        let (at, state) = *now.entry(vcpu).or_insert((0, before));
        if ns > at {
            all.entry(vcpu).or_default().push((at, ns, state));
        }
        now.insert(vcpu, (ns, after));
    };
    for event in events.iter().filter(|e| e.name == "sched_switch") {
        if let Some(vcpu) = number(event.field("prev_comm")) {
            // A thread that was merely preempted goes on at once; that is not a halt.
            let runs_on = event.field("prev_state").is_some_and(|s| s.starts_with('R'));
            go(
                vcpu,
                cut(event.ns),
                State::Running,
                if runs_on { State::Running } else { State::Halted },
            );
        }
        if let Some(vcpu) = number(event.field("next_comm")) {
            go(vcpu, cut(event.ns), State::Halted, State::Running);
        }
    }
    let ends: Vec<(u32, State)> = now.iter().map(|(&v, &(_, state))| (v, state)).collect();
    for (vcpu, state) in ends {
        let (at, _) = now[&vcpu];
        if length > at {
            all.entry(vcpu).or_default().push((at, length, state));
        }
    }
    all
}

/// Where the guest says "running" and the vCPU does not run, the task is stopped.
fn stop_where_halted(
    spans: &[(u64, u64, State, u32)],
    vcpus: &BTreeMap<u32, Vec<Span>>,
) -> Vec<Span> {
    let mut out: Vec<Span> = Vec::new();
    for &(from, to, state, cpu) in spans {
        let halted = vcpus.get(&cpu).map(Vec::as_slice).unwrap_or_default();
        if state != State::Running {
            out.push((from, to, state));
            continue;
        }
        let mut at = from;
        for &(a, b, _) in halted.iter().filter(|s| s.2 == State::Halted && s.0 < to && s.1 > from) {
            let (a, b) = (a.max(from), b.min(to));
            if a > at {
                out.push((at, a, State::Running));
            }
            out.push((a, b, State::Stopped));
            at = b;
        }
        if to > at {
            out.push((at, to, State::Running));
        }
    }
    out
}

/// "touch2" before "touch10", faulting tasks before computing ones.
fn natural(name: &str) -> (bool, String, u64) {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[letters.len()..].parse().unwrap_or(0);
    (letters.starts_with("compute"), letters.to_owned(), number)
}

impl Lane {
    /// The part of `length` spent in each state.
    pub(crate) fn shares(&self, length: u64) -> BTreeMap<State, f64> {
        let mut shares = BTreeMap::new();
        for &(from, to, state) in &self.spans {
            let (from, to) = (from.min(length), to.min(length));
            #[expect(clippy::cast_precision_loss, reason = "times of a picture")]
            let part = (to - from) as f64 / length.max(1) as f64;
            *shares.entry(state).or_insert(0.0) += part;
        }
        shares
    }
}

#[cfg(test)]
mod tests;
