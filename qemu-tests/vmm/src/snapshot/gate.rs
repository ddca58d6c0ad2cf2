//! Where vCPU threads stop, outside KVM_RUN, for whoever saves or loads their state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kvm_ioctls::VcpuFd;

use super::vcpu::VcpuState;
use crate::sys;

/// A vCPU thread's side.
pub struct Gate {
    id: u8,
    closed: Arc<AtomicBool>,
    msrs: Arc<Vec<u32>>,
    requests: Receiver<Request>,
    answers: Sender<(u8, Answer)>,
}

/// The side of whoever stops them.
pub struct Keeper {
    closed: Arc<AtomicBool>,
    vcpus: Vec<Sender<Request>>,
    answers: Receiver<(u8, Answer)>,
    /// MSRs that are saved and not put back.
    forgotten: &'static [u32],
}

enum Request {
    Save,
    Load(Box<VcpuState>),
    Resume,
}

enum Answer {
    Stopped,
    Ended,
    Saved(Result<Box<VcpuState>>),
    Loaded(Result<()>),
}

/// How long all may take to stop. One whose ring or page table is missing waits for that page, signal or not.
const STOP: Duration = Duration::from_secs(20);

/// A gate for each of `count` vCPUs, whose state includes these MSRs; those in `forgotten` are not put back.
pub fn gates(count: u8, msrs: Vec<u32>, forgotten: &'static [u32]) -> (Keeper, Vec<Gate>) {
    let (closed, msrs) = (Arc::new(AtomicBool::new(false)), Arc::new(msrs));
    let (answers, from_vcpus) = channel();
    let (vcpus, gates) = (0..count)
        .map(|id| {
            let (to_vcpu, requests) = channel();
            let (closed, msrs, answers) = (closed.clone(), msrs.clone(), answers.clone());
            (to_vcpu, Gate { id, closed, msrs, requests, answers })
        })
        .unzip();
    (Keeper { closed, vcpus, answers: from_vcpus, forgotten }, gates)
}

impl Gate {
    /// The vCPU is to stop: complete what KVM_RUN left open, with `immediate_exit`, and call [`Gate::wait`].
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Stays until the gate opens.
    pub fn wait(&self, fd: &VcpuFd) {
        self.answer(Answer::Stopped);
        // A keeper that is gone has nothing to ask any more.
        for request in &self.requests {
            match request {
                Request::Save => {
                    self.answer(Answer::Saved(VcpuState::save(fd, &self.msrs).map(Box::new)));
                }
                Request::Load(state) => self.answer(Answer::Loaded(state.load(fd))),
                Request::Resume => return,
            }
        }
    }

    /// The vCPU will not run again.
    pub fn end(&self) {
        self.answer(Answer::Ended);
    }

    fn answer(&self, answer: Answer) {
        let _ = self.answers.send((self.id, answer));
    }
}

impl Keeper {
    /// Takes all vCPUs out of KVM_RUN. False if one of them has come to its end instead; the others then run on.
    pub fn stop(&self, tids: &BTreeMap<u8, i32>) -> Result<bool> {
        self.closed.store(true, Ordering::Release);
        let give_up = Instant::now() + STOP;
        let mut stopped = Vec::new();
        while stopped.len() < self.vcpus.len() {
            // Again and again: a signal just before KVM_RUN is lost.
            for (_, tid) in tids.iter().filter(|(id, _)| !stopped.contains(*id)) {
                sys::kick(*tid);
            }
            match self.answers.recv_timeout(Duration::from_millis(2)) {
                Ok((id, Answer::Stopped)) => stopped.push(id),
                Ok((_, Answer::Ended)) => {
                    self.resume();
                    return Ok(false);
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the vCPU threads are gone"),
            }
            if Instant::now() > give_up {
                bail!("only vCPUs {stopped:?} of {} stopped within {STOP:?}", self.vcpus.len());
            }
        }
        Ok(true)
    }

    /// State of all vCPUs, by number. They must have stopped.
    pub fn save(&self) -> Result<Vec<VcpuState>> {
        self.ask(|_| Request::Save)?
            .into_values()
            .map(|answer| match answer {
                Answer::Saved(state) => state.map(|state| *state),
                _ => bail!("a vCPU did not stay stopped"),
            })
            .collect()
    }

    /// Puts state back, which [`Keeper::save`] gave. They must have stopped.
    pub fn load(&self, states: &[VcpuState]) -> Result<()> {
        let request = |id: usize| match states.get(id) {
            Some(state) => Request::Load(Box::new(state.without(self.forgotten))),
            None => Request::Resume,
        };
        for answer in self.ask(request)?.into_values() {
            match answer {
                Answer::Loaded(result) => result?,
                _ => bail!("a vCPU did not stay stopped"),
            }
        }
        Ok(())
    }

    /// Lets them run.
    pub fn resume(&self) {
        self.closed.store(false, Ordering::Release);
        for vcpu in &self.vcpus {
            // One that has ended does not listen.
            let _ = vcpu.send(Request::Resume);
        }
    }

    fn ask(&self, request: impl Fn(usize) -> Request) -> Result<BTreeMap<u8, Answer>> {
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.send(request(id)).ok().context("a vCPU thread is gone")?;
        }
        let answers: BTreeMap<u8, Answer> = self.answers.iter().take(self.vcpus.len()).collect();
        anyhow::ensure!(answers.len() == self.vcpus.len(), "a vCPU did not answer");
        Ok(answers)
    }
}
