//! The pager: takes pages away and delivers them by userfaultfd when their policy says so.

mod content;
mod loss;
pub mod policy;
pub mod saved;
pub mod schedule;
mod stream;
mod thread;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use rcu_clean::ArcRcu;
use ve_apf_testdev::{Order, PolicyArgs, Run};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::counters::{Values, lock};
use crate::memory::Ram;
use crate::sys;
use crate::uffd::{Answer, Uffd};
use content::Content;
use loss::Losses;
use policy::{Policies, Policy, Table};
use saved::{Counts, Lazy};
use schedule::{Request, Schedule};
use stream::Stream;
pub use thread::PagerThread;

/// Shared by the vCPU threads, which carry out the guest's commands, and the pager thread, which waits.
pub struct Pager {
    ram: Arc<Ram>,
    uffd: Uffd,
    /// The policy table.
    pub policies: Policies,
    /// How pages come that the guest did not evict: they are restored from a snapshot.
    restore: Policy,
    state: Mutex<State>,
    /// Ends [`Pager::run`].
    stop: EventFd,
}

struct State {
    registered: bool,
    schedule: Schedule,
    /// Evicted and not delivered yet.
    missing: HashMap<u64, Content>,
    losses: Losses,
    /// Not evicted, but not restored yet either.
    lazy: Option<Lazy>,
    stream: Stream,
    counts: Counts,
    /// Missing frames in the order in which they were asked for, since somebody looked.
    log: Vec<u64>,
}

/// Longest log: what fits into a command page.
const MAX_LOG: usize = ve_apf_testdev::DATA_SIZE / 8;

/// [`Pager::state`]'s answer.
#[derive(Debug, Clone, Copy)]
pub struct PagerState {
    /// Asked for, not delivered.
    pub pending: u64,
    /// Evicted, not delivered.
    pub missing: u64,
    /// Requests so far.
    pub faults: u64,
    /// Pages delivered so far.
    pub delivered: u64,
    /// Of a snapshot's, so far.
    pub restored: u64,
}

impl Pager {
    /// Nothing is registered until the guest declares its arena, so that booting costs no round trips. Pages of a snapshot
    /// come `restore_us` after they were asked for, the others at `restore_mib_s`.
    pub fn new(ram: Arc<Ram>, restore_us: (u32, u32), restore_mib_s: u32) -> Result<Pager> {
        let uffd = Uffd::open().context("userfaultfd is not available")?;
        let state = State {
            registered: false,
            schedule: Schedule::new(sys::now_ns()),
            missing: HashMap::new(),
            lazy: None,
            stream: Stream::new(restore_mib_s),
            losses: Losses::default(),
            counts: Counts::default(),
            log: Vec::new(),
        };
        let (min_us, max_us) = restore_us;
        let args = PolicyArgs { min_us, max_us, order: Order::Random, ..PolicyArgs::fixed(0) };
        let restore = Policy { id: u32::MAX, args };
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let policies = Policies::new();
        Ok(Pager { ram, uffd, policies, restore, state: Mutex::new(state), stop })
    }

    /// Hands guest memory to userfaultfd, all of it made present first. Further calls do nothing.
    pub fn register(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if !state.registered {
            self.ram.populate()?;
            let (start, len) = self.ram.host_range();
            self.uffd.register(start, len).context("cannot register guest memory")?;
            state.registered = true;
        }
        Ok(())
    }

    /// Takes pages away. What comes back is the pattern of `round`, or with `None` what they hold now.
    pub fn evict(&self, runs: &[Run], round: Option<u64>) -> Result<()> {
        // Under the lock, so that no page is delivered before its content is known.
        let mut state = lock(&self.state);
        anyhow::ensure!(state.registered, "evict before declare");
        for run in runs {
            self.make_evictable(&mut state, *run, round.is_none())?;
            for gfn in run.frames() {
                let content = match round {
                    Some(round) => Content::Pattern(round),
                    // A page missing already keeps what it was to get.
                    None if state.missing.contains_key(&gfn) => continue,
                    None => match state.take_lazy(gfn)? {
                        Some(bytes) => Content::Saved(bytes),
                        None => Content::save(&self.ram, gfn)?,
                    },
                };
                if let Some(lazy) = &mut state.lazy {
                    lazy.forget(gfn);
                }
                state.missing.insert(gfn, content);
                state.counts.evicted += 1;
            }
            self.ram.drop_frames(run.first, run.count)?;
        }
        Ok(())
    }

    /// Delivers these frames, or all that are missing, now.
    pub fn restore(&self, runs: &[Run]) -> Result<u64> {
        let mut state = lock(&self.state);
        let frames: Vec<u64> = if runs.is_empty() {
            state.missing.keys().copied().collect()
        } else {
            runs.iter()
                .flat_map(|run| run.frames())
                .filter(|gfn| state.missing.contains_key(gfn))
                .collect()
        };
        for gfn in &frames {
            state.schedule.take(*gfn);
        }
        self.deliver(&mut state, &frames)?;
        Ok(frames.len() as u64)
    }

    /// Delivers what is missing, or was asked for, and hands guest memory back to the kernel.
    pub fn finish(&self) -> Result<()> {
        self.restore(&[])?;
        {
            let mut state = lock(&self.state);
            let asked = state.schedule.pages();
            self.deliver(&mut state, &asked)?;
        }
        if lock(&self.state).registered {
            let (start, len) = self.ram.host_range();
            self.uffd.unregister(start, len).context("cannot unregister guest memory")?;
        }
        Ok(())
    }

    /// How things stand.
    pub fn state(&self) -> PagerState {
        let state = lock(&self.state);
        PagerState {
            pending: state.schedule.len() as u64,
            missing: state.missing.len() as u64,
            faults: state.counts.faults,
            delivered: state.counts.delivered,
            restored: state.counts.restored,
        }
    }

    /// The log of what was asked for; it starts anew.
    pub fn take_log(&self) -> Vec<u64> {
        std::mem::take(&mut lock(&self.state).log)
    }

    /// Counters for a snapshot; those named `max_` are the highest values since the last one.
    pub fn values(&self) -> Values {
        let mut state = lock(&self.state);
        let max_pending = std::mem::take(&mut state.counts.max_pending);
        let max_late_us = std::mem::take(&mut state.counts.max_late_us);
        let c = &state.counts;
        Values::from([
            ("faults".to_owned(), c.faults),
            ("duplicates".to_owned(), c.duplicates),
            ("untouched".to_owned(), c.untouched),
            ("delivered".to_owned(), c.delivered),
            ("deliveries".to_owned(), c.deliveries),
            ("evicted".to_owned(), c.evicted),
            ("restored".to_owned(), c.restored),
            ("late_us".to_owned(), c.late_us),
            ("max_pending".to_owned(), max_pending),
            ("max_late_us".to_owned(), max_late_us),
        ])
    }

    /// Body of the pager thread, until it is told to stop. What was asked for and not delivered is kept for the next one,
    /// since the kernel says it once.
    pub fn run(&self) -> Result<()> {
        sys::no_timer_slack();
        let table = self.policies.reader();
        let mut faults = Vec::new();
        loop {
            let next = {
                let mut state = lock(&self.state);
                self.deliver_due(&mut state)?;
                let streamed = self.stream(&mut state, sys::now_ns())?;
                state.schedule.next_ns().into_iter().chain(streamed).min()
            };
            self.wait(next)?;
            if self.stop.read().is_ok() {
                return Ok(());
            }
            faults.clear();
            self.uffd.read_faults(&mut faults)?;
            if !faults.is_empty() {
                self.take_requests(&faults, &table)?;
            }
        }
    }

    fn take_requests(&self, faults: &[u64], table: &ArcRcu<Table>) -> Result<()> {
        let now = sys::now_ns();
        let mut state = lock(&self.state);
        for hva in faults {
            let gfn = self.ram.gfn(*hva).context("fault outside guest memory")?;
            if state.lazy.as_ref().is_some_and(|lazy| lazy.has(gfn)) {
                state.schedule.request(now, gfn, &self.restore);
                continue;
            }
            state.counts.faults += 1;
            if !state.missing.contains_key(&gfn) {
                // Never evicted, or delivered while this request was on its way.
                state.counts.untouched += 1;
                self.uffd.zero(*hva)?;
                continue;
            }
            if state.schedule.request(now, gfn, &table.get(gfn)) == Request::Duplicate {
                state.counts.duplicates += 1;
                continue;
            }
            if state.log.len() < MAX_LOG {
                state.log.push(gfn);
            }
            if let Some(content) = state.missing.get_mut(&gfn) {
                content.prepare(gfn);
            }
        }
        let pending = state.schedule.len() as u64;
        state.counts.max_pending = state.counts.max_pending.max(pending);
        Ok(())
    }

    fn deliver_due(&self, state: &mut State) -> Result<()> {
        for (due_ns, batch) in state.schedule.due(sys::now_ns()) {
            let late_us = sys::now_ns().saturating_sub(due_ns) / 1000;
            state.counts.late_us += late_us;
            state.counts.max_late_us = state.counts.max_late_us.max(late_us);
            self.deliver(state, &batch)?;
        }
        Ok(())
    }

    /// Puts all pages in before anybody is woken, so that a burst completes as one.
    fn deliver(&self, state: &mut State, batch: &[u64]) -> Result<()> {
        let alone = batch.len() == 1;
        state.counts.deliveries += 1;
        for gfn in batch {
            let evicted = state.missing.remove(gfn).map(|content| content.bytes(*gfn));
            let was_evicted = evicted.is_some();
            let bytes = match evicted {
                Some(bytes) => Some(bytes),
                None => state.take_lazy(*gfn)?,
            };
            let Some(bytes) = bytes else { continue };
            let hva = self.ram.hva(*gfn).context("frame outside guest memory")?;
            let answer = self.uffd.copy(hva, &bytes, alone).context("cannot deliver a page")?;
            let counts = &mut state.counts;
            let counter = if was_evicted { &mut counts.delivered } else { &mut counts.restored };
            *counter += u64::from(answer == Answer::Delivered);
        }
        // One call for all; who else waits in between looks for his page, and waits again.
        let places = || batch.iter().filter_map(|gfn| self.ram.hva(*gfn));
        if let (false, Some(first), Some(last)) = (alone, places().min(), places().max()) {
            self.uffd.wake(first, last - first + 4096)?;
        }
        Ok(())
    }

    /// Until a request comes or the next delivery is due. Commands of the guest only ever take deliveries out.
    fn wait(&self, until_ns: Option<u64>) -> io::Result<()> {
        let on = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [on(self.uffd.as_raw_fd()), on(self.stop.as_raw_fd())];
        let left = until_ns.map(|at| at.saturating_sub(sys::now_ns())).map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let timeout = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both descriptors and the time live through the call; no signal mask is given.
        let rc = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, timeout, std::ptr::null()) };
        match rc {
            n if n >= 0 => Ok(()),
            _ => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
                e => Err(e),
            },
        }
    }
}
