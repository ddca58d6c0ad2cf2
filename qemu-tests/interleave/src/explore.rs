//! Depth-first search over all choices. A state is reached again by running its path from the
//! start; one whose hash was seen is not followed.

use crate::choices::{Choice, choices};
use crate::hash::{self, Seen};
use crate::host::{gathers_in_vain, is_empty};
use crate::info::wrong_state;
use crate::machine::Machine;
use crate::scenario::{Reach, Scenario};
use crate::world::{State, Status, World};
use std::fmt;
use std::time::{Duration, Instant};
use ve_apf_abi::ring::{SlotIndex, injected_slot};
use ve_apf_guest::waiters::Waiter;

/// What an exhaustive search did.
#[derive(Clone, Copy, Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Runs from the start.
    pub executions: usize,
    /// States in which nothing more must happen.
    pub ends: usize,
    /// Sum of the hashes of those.
    pub ends_hash: u64,
    /// The longest path.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, executions, ends, depth, time, .. } = self;
        write!(f, "{states:>8} states {executions:>8} runs {ends:>6} ends, depth {depth:>4}, ")?;
        write!(f, "{:.2} s", time.as_secs_f64())
    }
}

/// A path that breaks the protocol.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What is broken.
    pub what: String,
    /// How it comes to that.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "violation: {}", self.what)
    }
}

/// Longer paths are taken for livelocks.
const LONGEST: usize = 4000;

struct Node {
    choices: Vec<Choice>,
    at: usize,
    hash: u64,
}

/// Runs a scenario through every interleaving.
///
/// # Errors
/// The first [`Violation`] found.
pub fn explore(scenario: &Scenario) -> Result<Explored, Violation> {
    let started = Instant::now();
    // Fibers need it for as long as they live; a process explores a few dozen scenarios.
    let world: &'static World = Box::leak(Box::new(World::new(scenario.clone())));
    let start = scenario.start();
    let mut machine = Machine::new(world);
    let mut path: Vec<Node> = Vec::new();
    let (mut seen, mut on_path) = (Seen::default(), Seen::default());
    let mut done = Explored {
        states: 0,
        executions: 0,
        ends: 0,
        ends_hash: 0,
        depth: 0,
        time: Duration::default(),
    };
    loop {
        done.executions += 1;
        machine.reset();
        world.reset(&start, false);
        for node in &path {
            machine.take(node.choices[node.at]);
        }
        loop {
            let fresh = world.with(|state| hash::of(state));
            let known = !seen.insert(fresh);
            if known && !world.is_broken() {
                if on_path.contains(&fresh) {
                    world.violate("goes round in circles");
                } else {
                    break;
                }
            }
            let mut next = Vec::new();
            world.with(|state| choices(world, state, &mut next));
            if next.iter().all(|choice| choice.is_optional()) && !world.is_broken() {
                done.ends += 1;
                done.ends_hash = done.ends_hash.wrapping_add(fresh);
                if let Some(what) = world.with(|state| wrong_end(scenario, state)) {
                    world.violate(what);
                }
            }
            if let Some(what) =
                world.with(|state| wrong_state(state).or_else(|| gathers_in_vain(state)))
            {
                world.violate(what);
            }
            if path.len() > LONGEST {
                world.violate("does not come to an end");
            }
            if let Some(what) = world.violation() {
                return Err(replay(world, &start, &mut machine, &path, what));
            }
            if next.is_empty() {
                break;
            }
            let first = next[0];
            on_path.insert(fresh);
            path.push(Node { choices: next, at: 0, hash: fresh });
            done.depth = done.depth.max(path.len());
            machine.take(first);
        }
        while let Some(node) = path.last_mut() {
            node.at += 1;
            if node.at < node.choices.len() {
                break;
            }
            on_path.remove(&node.hash);
            path.pop();
        }
        if path.is_empty() {
            let missed = |what: &&Reach| !world.has_reached(**what);
            let missed: Vec<_> = scenario.reaches.iter().filter(missed).collect();
            if !missed.is_empty() {
                let what = format!("no interleaving reached {missed:?}");
                return Err(Violation { what, trace: Vec::new() });
            }
            done.states = seen.len();
            done.time = started.elapsed();
            return Ok(done);
        }
    }
}

fn replay(
    world: &'static World,
    start: &State,
    machine: &mut Machine,
    path: &[Node],
    what: String,
) -> Violation {
    machine.reset();
    world.reset(start, true);
    for node in path {
        machine.take(node.choices[node.at]);
    }
    Violation { what, trace: world.trace() }
}

/// What must not be left when nothing more must happen.
fn wrong_end(scenario: &Scenario, state: &State) -> Option<String> {
    for (index, task) in state.tasks.iter().enumerate() {
        let name = crate::world::name(index);
        match task.status {
            Status::Finished | Status::Killed => {}
            Status::Failed if scenario.may_fail(index) => {}
            Status::Failed => return Some(format!("task {name} failed without a reason")),
            status => return Some(format!("task {name} is stuck: {status:?}")),
        }
    }
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        let ring = &vcpu.ring;
        // After a lost event its slot is taken back by the next fault.
        let lost = injected_slot(ring.injected).filter(|_| state.event_lost);
        if ring.active & !lost.map_or(0, SlotIndex::bit) != 0 {
            return Some(format!("ring {index}: slots {:#b} leaked", ring.active));
        }
        if ring.submitted != 0 {
            return Some(format!("ring {index}: the host ignored slots {:#b}", ring.submitted));
        }
        if vcpu.info.busy != 0 {
            return Some(format!("vCPU {index}: the busy word is left set"));
        }
        let hardware = vcpu.veinfo && state.declared;
        if vcpu.enabled && hardware != (scenario.declared != 0) {
            return Some(format!("vCPU {index}: hardware mode is off"));
        }
        if vcpu.host.get().is_none_or(|host| host.held() != 0 || host.is_stopped()) {
            return Some(format!("vCPU {index}: the host holds a slot, or waits itself"));
        }
        let told =
            ring.waiters.get().is_some_and(|waiters| !waiters.clone().note_epoch(ring.epoch));
        if !told {
            return Some(format!("ring {index}: the guest was not told of epoch {}", ring.epoch));
        }
        let waits = |slot| ring.waiters.get().map(|waiters| waiters.get(slot));
        for slot in (0..u64::from(ve_apf_abi::ring::VE_APF_SLOTS)).filter_map(SlotIndex::new) {
            if waits(slot) != Some(Waiter::Nobody) {
                return Some(format!("ring {index}: somebody waits for slot {}", slot.get()));
            }
        }
    }
    if !state.works.get().is_some_and(is_empty) {
        return Some("the VM's table is not empty".into());
    }
    None
}
