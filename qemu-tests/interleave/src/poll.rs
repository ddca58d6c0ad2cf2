//! The poller: a thread of the VM that looks at rings, and its vCPU's side of that, as in KVM's poll.c.

use crate::exits::Host;
use crate::fiber::Thread;
use crate::hash::Owned;
use crate::host::{HostVm, polled};
use crate::ring::{ModelRing, Side};
use crate::scenario::Reach;
use crate::vcpu::PollLock;
use ve_apf_host::platform::{KickMode, Vm};
use ve_apf_host::poll::{Looked, Poll, Polled, look, quit, start, stop};

/// A vCPU, as its poller sees it.
struct PolledCpu<'a> {
    thread: Thread<'a>,
    vcpu: usize,
    ring: ModelRing<'a>,
}

impl<'a> PolledCpu<'a> {
    fn new(thread: Thread<'a>, vcpu: usize, side: Side) -> Self {
        Self { thread, vcpu, ring: ModelRing::new(thread, vcpu, side) }
    }
}

impl<'a> Polled for PolledCpu<'a> {
    type Ring = ModelRing<'a>;

    fn index(&self) -> u32 {
        self.vcpu as u32
    }

    fn with_ring<R>(&self, f: impl FnOnce(&Self::Ring) -> R) -> Option<R> {
        self.thread.world.with(|state| state.vcpus[self.vcpu].enabled).then(|| f(&self.ring))
    }

    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R {
        polled(self.thread.world, self.vcpu, f)
    }
}

/// The body of the poller's fiber: one look.
pub fn run_poller(thread: Thread<'_>, vcpu: usize) {
    let world = thread.world;
    thread.forget("look");
    let (last, mut seen) = world.with(|state| {
        let vcpu = &mut state.vcpus[vcpu];
        (vcpu.looking == Some(true), vcpu.seen.take())
    });
    thread.learn(world.with(|state| state.vcpus[vcpu].seen.hash));
    thread.learn(last);
    let vm = HostVm { world, thread: Some(thread) };
    let cpu = PolledCpu::new(thread, vcpu, Side::Poller);
    let looked = match last {
        true => quit(&cpu, &mut seen, &vm),
        false => look(&cpu, &mut seen, &vm),
    };
    thread.note(|| format!("looked (last: {last}): {looked:?}"));
    match looked {
        Looked::Took(_) if last => world.reach(Reach::LastLook),
        Looked::Took(_) => world.reach(Reach::Polled),
        Looked::Left => world.reach(Reach::Left),
        Looked::Nothing => {}
    }
    if looked == Looked::Left {
        vm.locked(|_| vm.kick(vcpu as u32, KickMode::Wake));
    }
    world.with(|state| {
        let vcpu = &mut state.vcpus[vcpu];
        vcpu.seen = Owned::new(seen);
        vcpu.looking = None;
        vcpu.watched &= !last && looked != Looked::Left;
    });
    thread.forget("looked");
}

impl Host<'_> {
    /// Takes the lock that the poller looks under.
    fn lock_poller(&self) {
        self.cpu.look(|vcpu| vcpu.poll_lock = PollLock::Wanted);
        self.cpu.thread.step();
        self.cpu.look(|vcpu| vcpu.poll_lock = PollLock::Held);
    }

    fn unlock_poller(&self) {
        self.cpu.look(|vcpu| vcpu.poll_lock = PollLock::Free);
    }

    /// The poller does not look at the ring any more.
    pub(crate) fn unwatch(&self) {
        if self.cpu.look(|vcpu| vcpu.polling) {
            self.lock_poller();
            self.cpu.look(|vcpu| (vcpu.watched, vcpu.polling) = (false, false));
            self.unlock_poller();
        }
    }

    /// A fault was handed in, or one that was is completed.
    pub(crate) fn start_polling(&self) -> Result<(), ()> {
        let thread = self.cpu.thread;
        let budget = thread.world.with(|state| state.budget.polls);
        if budget == 0 || self.cpu.look(|vcpu| vcpu.polling || !vcpu.enabled) {
            return Ok(());
        }
        thread.world.with(|state| state.budget.polls -= 1);
        self.lock_poller();
        let polled = PolledCpu::new(thread, self.cpu.vcpu, Side::Host);
        let started = self.owning(|state| Ok(start(&polled, state, &self.vm())))?;
        self.cpu.look(|vcpu| (vcpu.watched, vcpu.polling) = (started, started));
        self.unlock_poller();
        Ok(())
    }

    /// The guest rings again.
    pub(crate) fn stop_polling(&self) -> Result<(), ()> {
        if !self.cpu.look(|vcpu| vcpu.polling) {
            return Ok(());
        }
        self.unwatch();
        let held = self.cpu.look(|vcpu| vcpu.host.get().map_or(0, |host| host.held()));
        let done = self.owning(|state| stop(&self.cpu, state, &self.vm()))?;
        let now = self.cpu.look(|vcpu| vcpu.host.get().map_or(0, |host| host.held()));
        self.cpu.thread.note(|| format!("polling stopped: {done:?}, {held:#b} -> {now:#b}"));
        if done.resolved + done.failed > 0 {
            self.reach(Reach::Collected);
        }
        Ok(())
    }
}
