//! Takes the snapshots of a campaign while the machine runs.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvm_ioctls::VmFd;
use serde_json::{Value, json};

use super::campaign::{Campaign, Into};
use super::file::SnapshotFile;
use super::gate::Keeper;
use super::vm::VmState;
use super::{Shape, State};
use crate::bus::Bus;
use crate::counters::Counters;
use crate::memory::Ram;
use crate::pager::Pager;

/// The parts of a machine.
pub struct Parts {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// Its memory.
    pub ram: Arc<Ram>,
    /// Who brings missing pages.
    pub pager: Arc<Pager>,
    /// Ports.
    pub bus: Arc<Bus>,
    /// Statistics.
    pub counters: Arc<Counters>,
}

/// A campaign on a machine.
pub struct Driver {
    parts: Parts,
    shape: Shape,
    keeper: Keeper,
    campaign: Campaign,
    /// Made for the first snapshot, or what this process started from.
    file: Option<SnapshotFile>,
    next: Option<Next>,
    /// Evicted pages that had come at the last restore: the workload goes on when there is one more.
    waits_for: Option<u64>,
}

struct Next {
    at: Instant,
    what: What,
}

enum What {
    Save,
    GoBack(Box<State>),
}

/// How often to look whether the guest has come to its workload.
const POLL: Duration = Duration::from_millis(10);

impl Driver {
    /// For this machine. `file` is what it was loaded from.
    pub fn new(
        parts: Parts,
        shape: Shape,
        keeper: Keeper,
        campaign: Campaign,
        file: Option<SnapshotFile>,
    ) -> Driver {
        let restored = campaign.restored() > 0;
        let mut driver =
            Driver { parts, shape, keeper, campaign, file, next: None, waits_for: None };
        if restored {
            driver.wait_for_workload();
        }
        driver.tell_guest();
        driver
    }

    /// When [`Driver::step`] wants to be called.
    pub fn due(&mut self) -> Option<Instant> {
        if self.next.is_none() && self.campaign.left() > 0 {
            let pager = &self.parts.pager;
            let idle = self.waits_for.is_some_and(|seen| pager.state().delivered <= seen);
            if idle || !pager.has_evicted() {
                return Some(Instant::now() + POLL);
            }
            self.next =
                Some(Next { at: Instant::now() + self.campaign.interval(), what: What::Save });
        }
        self.next.as_ref().map(|next| next.at)
    }

    /// Does what is due. Does not return if the machine goes on in another process.
    pub fn step(&mut self, tids: &BTreeMap<u8, i32>) -> Result<()> {
        let Some(next) = self.next.take_if(|next| next.at <= Instant::now()) else {
            return Ok(());
        };
        if !self.keeper.stop(tids)? {
            // The guest has come to its end.
            return Ok(());
        }
        match next.what {
            What::Save => self.save().context("cannot save the machine")?,
            What::GoBack(state) => self.go_back(&state).context("cannot load the machine")?,
        }
        self.keeper.resume();
        Ok(())
    }

    /// Requests, deliveries and pages, for who asks why a guest hangs.
    pub fn pager(&self) -> Value {
        let pager = &self.parts.pager;
        let state = pager.state();
        json!({"pending": state.pending, "missing": state.missing, "counts": pager.values()})
    }

    /// For the record at the end, if there was something to do.
    pub fn record(&self) -> Option<Value> {
        let record = self.campaign.record();
        (record["planned"] != 0).then_some(record)
    }

    fn save(&mut self) -> Result<()> {
        let Parts { vm, ram, pager, bus, counters } = &self.parts;
        let vcpus = self.keeper.save()?;
        self.campaign.found.look(&vcpus, ram, pager);
        if self.campaign.into == Into::Same {
            let vm_state = VmState::save(vm)?;
            self.keeper.load(&vcpus)?;
            vm_state.load(vm)?;
            self.restored();
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => SnapshotFile::create(ram.host_range().1)?,
        };
        let mut campaign = self.campaign.clone();
        campaign.count_restored();
        let state = State {
            shape: self.shape.clone(),
            vcpus,
            vm: VmState::save(vm)?,
            pager: pager.save(&file.pages())?,
            bus: bus.save()?,
            counters: counters.save()?,
            campaign,
        };
        if self.campaign.into == Into::Fresh {
            file.write(&state)?;
            return Err(go_on_in(&file)).context("cannot start the new process");
        }
        self.file = Some(file);
        let at = Instant::now() + self.campaign.interval();
        self.next = Some(Next { at, what: What::GoBack(Box::new(state)) });
        Ok(())
    }

    fn go_back(&mut self, state: &State) -> Result<()> {
        let Parts { vm, pager, bus, counters, .. } = &self.parts;
        let file = self.file.as_ref().context("no snapshot")?;
        pager.load(&state.pager, file.pages())?;
        bus.load(&state.bus)?;
        counters.load_sections(&state.counters);
        self.keeper.load(&state.vcpus)?;
        state.vm.load(vm)?;
        self.restored();
        Ok(())
    }

    fn wait_for_workload(&mut self) {
        let delivered = self.parts.pager.state().delivered;
        self.waits_for = (!self.campaign.is_early()).then_some(delivered);
    }

    fn restored(&mut self) {
        self.campaign.count_restored();
        self.wait_for_workload();
        self.tell_guest();
    }

    fn tell_guest(&self) {
        self.parts.bus.device().set_snapshots(self.campaign.restored(), self.campaign.left());
    }
}

/// Becomes a new process of the same program, with nothing of this one but standard output and the snapshot. All other
/// descriptors close, with whatever is under way behind them.
fn go_on_in(file: &SnapshotFile) -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    let mut args: Vec<_> = std::env::args_os().skip(1).collect();
    if !args.iter().any(|arg| arg == "--restore") {
        args.extend(["--restore".into(), file.path().into()]);
    }
    Command::new(program).args(args).exec().into()
}
