//! Children that wait for missing pages, and a stopwatch.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use ve_apf_testdev::{Mmu, PolicyArgs};

use super::touch::Touch;
use crate::arena::Slice;
use crate::device::Device;
use crate::process::{self, Status};

/// Time for the host to tell of the pages of the round before.
const SETTLE: Duration = Duration::from_millis(400);

/// The children, and what is known of them.
pub(super) struct Party<'a> {
    device: &'a Device,
    slice: &'a Slice,
    /// Faults outstanding at the same time.
    pub(super) outstanding: usize,
    round: u64,
    limit: Duration,
    /// Those that have not ended.
    pub(super) children: Vec<i32>,
    times: Map<String, Value>,
}

impl<'a> Party<'a> {
    /// Nobody yet.
    pub(super) fn new(
        device: &'a Device,
        slice: &'a Slice,
        outstanding: usize,
        round: u64,
        limit: Duration,
    ) -> Party<'a> {
        let times = Map::from_iter([("outstanding".to_owned(), json!(outstanding))]);
        Party { device, slice, outstanding, round, limit, children: Vec::new(), times }
    }

    /// A child for each missing page; returns when all of them wait for it.
    pub(super) fn park(&mut self, how: Touch) -> Result<()> {
        self.take_away()?;
        for index in 0..self.outstanding {
            let (slice, round) = (self.slice, self.round);
            self.children.push(process::fork(|| how(slice, index, round))?);
        }
        self.wait_for_faults()
    }

    /// A child for page `index`, which is taken away; returns when the pager has heard of it.
    pub(super) fn park_one_more(&mut self, index: usize, how: Touch) -> Result<()> {
        self.device.evict(&self.slice.frames()[index..=index], self.round)?;
        self.children.push(process::fork(|| how(self.slice, index, self.round))?);
        self.outstanding += 1;
        self.wait_for_faults()
    }

    /// One child with a thread for each missing page, which then does what the byte sent to the returned pipe says; returns
    /// when all of its threads but that one wait.
    pub(super) fn park_group(&mut self) -> Result<i32> {
        self.take_away()?;
        let (slice, round, count) = (self.slice, self.round, self.outstanding);
        let [from, to] = process::pipe()?;
        self.children.push(process::fork(|| super::touch::group(slice, count, round, from))?);
        self.wait_for_faults()?;
        Ok(to)
    }

    fn take_away(&self) -> Result<()> {
        // A killed task's slot is free when the host has told of its page, which nobody here sees; and these are to be all that
        // is outstanding.
        std::thread::sleep(SETTLE);
        if self.outstanding > 0 {
            self.device.evict(&self.slice.frames()[..self.outstanding], self.round)?;
        }
        Ok(())
    }

    fn wait_for_faults(&mut self) -> Result<()> {
        let wanted = self.outstanding as u64;
        let device = self.device;
        self.until("parked_us", || Ok(device.pager_state()?.pending == wanted))?;
        // The pager has heard of the last one; give the guest the time to put it to sleep.
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Notes how long it takes until `done`; an error if that is longer than allowed.
    pub(super) fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        while !done()? {
            if began.elapsed() > self.limit {
                bail!("{what}: not after {} ms; tasks: {}", self.limit.as_millis(), self.states());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.times.insert(what.to_owned(), json!(began.elapsed().as_micros() as u64));
        Ok(())
    }

    /// The same for something that is done when it returns.
    pub(super) fn timed(&mut self, what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        work()?;
        self.times.insert(what.to_owned(), json!(began.elapsed().as_micros() as u64));
        Ok(())
    }

    /// Every child, by its id.
    pub(super) fn each(&self, mut f: impl FnMut(i32) -> std::io::Result<()>) -> Result<()> {
        self.children.iter().try_for_each(|child| Ok(f(*child)?))
    }

    /// Sends a signal to every child.
    pub(super) fn signal(&self, signal: i32) -> Result<()> {
        self.each(|child| process::kill(child, signal))
    }

    /// Waits until each child was found like this.
    pub(super) fn all(&mut self, what: &str, wanted: Status) -> Result<()> {
        let mut left = self.children.clone();
        self.until(what, || {
            let mut still = Vec::new();
            for child in &left {
                match process::poll(*child)? {
                    None => still.push(*child),
                    Some(found) if found == wanted => {}
                    Some(found) => bail!("{child}: {found:?}, not {wanted:?}"),
                }
            }
            left = still;
            Ok(left.is_empty())
        })?;
        if !matches!(wanted, Status::Stopped(..)) {
            self.children.clear();
        }
        Ok(())
    }

    /// For a moment, no child has anything to say: it neither ends nor stops.
    pub(super) fn quiet(&self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(50));
        for child in &self.children {
            if let Some(status) = process::poll(*child)? {
                bail!("{child}: {status:?}, while it should wait for its page");
            }
        }
        Ok(())
    }

    /// Does something to the VM's memory, or to the pages that are waited for.
    pub(super) fn mmu(&mut self, what: Mmu, arg: u64, pages: bool) -> Result<()> {
        let count = if pages { self.outstanding } else { 0 };
        let (device, frames) = (self.device, &self.slice.frames()[..count]);
        self.timed("mmu_us", || device.mmu(what, [arg, 0], frames).map(drop))
    }

    /// The VMM's test device.
    pub(super) fn device(&self) -> &'a Device {
        self.device
    }

    /// From now on page `index` comes by itself, so long after it was asked for; with `None`, not any more.
    pub(super) fn comes_after(&self, index: usize, time: Option<Duration>) -> Result<()> {
        let policy = match time {
            Some(time) => PolicyArgs::fixed(time.as_micros().try_into()?),
            None => PolicyArgs { never: true, ..PolicyArgs::fixed(0) },
        };
        self.device.set_policy(&self.slice.frames()[index..=index], policy)
    }

    /// The pages come.
    pub(super) fn come(&self) -> Result<()> {
        let came = self.device.restore_all()?;
        if came != self.outstanding as u64 {
            bail!("{came} pages were missing, not {}", self.outstanding);
        }
        Ok(())
    }

    /// Leaves nothing behind; how long everything took, if all went well.
    pub(super) fn finish(self, result: Result<()>) -> Result<Value> {
        let result = result.and_then(|()| match self.children.len() {
            0 => Ok(()),
            n => bail!("{n} tasks are left: {}", self.states()),
        });
        let came = self.device.restore_all();
        for child in &self.children {
            // It may have ended meanwhile.
            let _ = process::kill(*child, libc::SIGKILL);
        }
        result?;
        came?;
        Ok(Value::Object(self.times))
    }

    /// State letter of each child, from /proc/PID/stat.
    fn states(&self) -> String {
        let letter = |child: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit_once(')').and_then(|(_, rest)| rest.chars().nth(1)).unwrap_or('-')
        };
        self.children.iter().map(letter).collect()
    }
}
