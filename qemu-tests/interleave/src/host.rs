//! The host engine's traits, and what reaches the engine from outside the vCPUs' threads.

use crate::fiber::Thread;
use crate::hash::Owned;
use crate::ring::ModelRing;
use crate::scenario::Broken;
use crate::vcpu::{Mode, VcpuModel};
use crate::world::{Frame, State, VmWorks, Worker, World};
use ve_apf_abi::ring::{VE_APF_CAUSE_DEADLINE, VE_APF_CAUSE_GONE};
use ve_apf_host::platform::{KickMode, Mapping, Page, Resolution, Vcpu, Vm};
use ve_apf_host::poll::Poll;
use ve_apf_host::sweep::detach_all;
use ve_apf_host::works::{WorkId, Works};

/// The VM, from a vCPU's thread or from elsewhere.
pub struct HostVm<'a> {
    /// The machine.
    pub world: &'static World,
    /// `None`: not a vCPU's thread, and a single step as it is.
    pub thread: Option<Thread<'a>>,
}

impl Vm<4, 6, 2> for HostVm<'_> {
    const IN_A_ROW: u32 = 2;

    fn locked<R>(&self, f: impl FnOnce(&mut VmWorks) -> R) -> R {
        // Nothing in `f` is a step, so the lock is never seen taken.
        if let Some(thread) = self.thread {
            thread.step();
            thread.learn(self.world.with(|state| state.works.hash));
            if self.world.scenario.polls() {
                let polls = |state: &mut State| -> Vec<u64> {
                    state.vcpus.iter().map(|vcpu| vcpu.poll.hash).collect()
                };
                thread.learn(self.world.with(polls));
            }
        }
        let mut works = self.world.with(|state| state.works.take());
        let result = f(&mut works);
        self.world.with(|state| state.works = Owned::new(works));
        result
    }

    fn start(&self, id: WorkId, page: Page) -> bool {
        let room = self.world.with(|state| {
            let room = state.workers.len() < self.world.scenario.threads;
            if room {
                state.workers.push(Worker { id, page, late: false, outcome: None });
                state.workers.sort_by_key(|worker| (worker.id.index, worker.id.serial));
            }
            // What the poller has to leave is told to try again.
            state.disturbed |= !room && self.world.scenario.polls();
            room
        });
        self.world.note(|| format!("work {} for {page:?}: {room}", id.index));
        room
    }

    /// Time stands still: a deadline is over when the environment says so.
    fn now(&self) -> u64 {
        0
    }

    fn kick(&self, vcpu: u32, _mode: KickMode) {
        self.world.note(|| format!("kick vCPU {vcpu}"));
        self.world.with(|state| {
            let vcpu = &mut state.vcpus[vcpu as usize];
            vcpu.request = true;
            vcpu.ipi |= vcpu.announced;
        });
    }

    /// Whoever runs is kicked by the timer.
    fn kick_soon(&self, index: u32, mode: KickMode) {
        let scenario = &self.world.scenario;
        let runs = self.world.with(|state| state.vcpus[index as usize].announced);
        if !scenario.gathers || !runs {
            return self.kick(index, mode);
        }
        self.world.note(|| format!("kick vCPU {index} soon"));
        self.world.with(|state| {
            let vcpu = &mut state.vcpus[index as usize];
            vcpu.request = true;
            vcpu.gathering = true;
        });
    }
}

/// One vCPU, on its thread.
pub struct HostCpu<'a> {
    /// Its fiber.
    pub thread: Thread<'a>,
    /// Its index.
    pub vcpu: usize,
    /// Of the guest.
    pub rip: u64,
    /// Its ring.
    pub ring: ModelRing<'a>,
}

impl HostCpu<'_> {
    /// One look at its state, or one change of it.
    pub fn look<R>(&self, f: impl FnOnce(&mut VcpuModel) -> R) -> R {
        self.thread.world.with(|state| f(&mut state.vcpus[self.vcpu]))
    }

    /// `knows`: that a page can never come is seen before anybody waited for it.
    fn map_knowing(&self, page: Page, knows: bool) -> Mapping {
        self.thread.step();
        let gfn = page.gfn as usize;
        let (mapping, code) = self.thread.world.with(|state| match state.frames[gfn] {
            Frame::Mapped => (Mapping::Mapped, 0),
            Frame::InHost => {
                state.frames[gfn] = Frame::Mapped;
                (Mapping::Mapped, 0)
            }
            Frame::Missing => (Mapping::NotNow, 1),
            Frame::Gone if knows => (Mapping::Failed(VE_APF_CAUSE_GONE), 2),
            Frame::Gone => (Mapping::NotNow, 1),
        });
        self.thread.learn(code);
        self.ring.mapped.set(Some((page.gfn, mapping)));
        self.thread.note(|| format!("map gfn {gfn}: {mapping:?}"));
        mapping
    }
}

impl<'a> Vcpu for HostCpu<'a> {
    type Ring = ModelRing<'a>;

    fn index(&self) -> u32 {
        self.vcpu as u32
    }

    fn with_ring<R>(&self, f: impl FnOnce(&Self::Ring) -> R) -> Option<R> {
        self.look(|vcpu| vcpu.enabled).then(|| f(&self.ring))
    }

    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R {
        polled(self.thread.world, self.vcpu, f)
    }

    fn interrupt_allowed(&self) -> bool {
        let world = self.thread.world;
        let waits = self.look(|vcpu| vcpu.waiting) && world.scenario.broken != Some(Broken::Tells);
        self.thread.learn(!waits && world.with(|state| interrupts_on(state, self.vcpu)))
    }

    fn event_pending(&self) -> bool {
        self.look(|vcpu| vcpu.found.ve)
    }

    fn is_nested(&self) -> bool {
        false
    }

    fn nested_run_pending(&self) -> bool {
        false
    }

    fn deliverable(&self) -> bool {
        self.look(|vcpu| vcpu.enabled && vcpu.lapic)
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn map(&self, page: Page) -> Mapping {
        self.map_knowing(page, true)
    }

    fn map_if_there(&self, page: Page) -> Mapping {
        self.map_knowing(page, self.thread.world.scenario.fails_at_once)
    }

    fn inject_ve(&self) {
        self.thread.note(|| "inject #VE".into());
        self.look(|vcpu| vcpu.found.ve = true);
    }

    fn can_interrupt(&self) -> bool {
        self.look(|vcpu| vcpu.lapic)
    }

    fn inject_irq(&self) {
        self.thread.note(|| "raise the completion interrupt".into());
        // A LAPIC that is off takes nothing.
        self.look(|vcpu| vcpu.irr |= vcpu.lapic);
    }
}

/// Runs `f` on what the vCPU's thread and its poller share, with the VM's lock held: no step.
pub fn polled<R>(world: &'static World, vcpu: usize, f: impl FnOnce(&mut Poll) -> R) -> R {
    let mut poll = world.with(|state| state.vcpus[vcpu].poll.take());
    let result = f(&mut poll);
    world.with(|state| state.vcpus[vcpu].poll = Owned::new(poll));
    result
}

/// Are the guest's interrupts on where the vCPU is?
pub fn interrupts_on(state: &State, vcpu: usize) -> bool {
    let vcpu = &state.vcpus[vcpu];
    !vcpu.in_nmi && !vcpu.in_irq && vcpu.current.is_none_or(|task| state.tasks[task].irqs)
}

/// The thread that worked on it is done with a work; `late`: the work had ended before.
pub fn finish(world: &'static World, id: WorkId, resolution: Resolution, late: bool) {
    let ended = change(world, |vm, works| works.finish(vm, id, resolution));
    if ended != u32::from(!late) {
        world.violate(format!("a thread that ends (late: {late}) ended {ended} works"));
    }
}

/// The deadline of all that wait is over.
pub fn expire(world: &'static World) {
    let ended = change(world, |vm, works| {
        if let Some(since) = works.expire(vm, 0) {
            world.violate(format!("something waits since {since}, after all expired"));
        }
    });
    if ended != 0 {
        world.violate(format!("a deadline ended {ended} works"));
    }
}

/// Other memory is at `gfn` from now on.
pub fn moved(world: &'static World, gfn: u64) {
    change(world, |vm, works| works.moved(vm, gfn, gfn + 1));
}

/// Changes the table from outside the vCPUs' threads; returns how many works that ended.
fn change(world: &'static World, f: impl FnOnce(&HostVm<'_>, &mut VmWorks)) -> u32 {
    let vm = HostVm { world, thread: None };
    let ended = vm.locked(|works| {
        let before = works.running();
        f(&vm, works);
        before - works.running()
    });
    // From here on a failure is known. Read off a copy of the mailboxes.
    world.with(|state| {
        let Some(mut works) = state.works.get().cloned() else { return };
        for (index, vcpu) in state.vcpus.iter_mut().enumerate() {
            while let Some(mail) = works.take_mail(index as u32) {
                match (mail.resolution, mail.slot) {
                    (Resolution::Failed(cause), Some(of)) => {
                        let slot = &mut vcpu.ring.slots[usize::from(of.slot.get())];
                        slot.known_failed = Some((of.generation.get(), cause));
                    }
                    (Resolution::Failed(VE_APF_CAUSE_DEADLINE), None) => {
                        vcpu.late = usize::try_from(mail.page.gfn).ok();
                    }
                    _ => {}
                }
            }
        }
    });
    ended
}

/// A VMM writes EN of a vCPU that is paused.
pub fn write_en(world: &'static World, vcpu: usize) {
    let mut host = world.with(|state| state.vcpus[vcpu].host.take());
    detach_all(&mut host, &HostVm { world, thread: None });
    world.with(|state| {
        hardware_off(state, vcpu);
        let vcpu = &mut state.vcpus[vcpu];
        vcpu.host = Owned::new(host);
        vcpu.late = None;
        vcpu.sweep = vcpu.enabled;
        // To the restored VM nothing is known.
        vcpu.ring.slots.iter_mut().for_each(|slot| slot.known_failed = None);
    });
}

/// VEINFO is off, with the EN of a vCPU; what was declared ends with the last of them.
pub fn hardware_off(state: &mut State, vcpu: usize) {
    state.vcpus[vcpu].veinfo = false;
    state.declared &= state.vcpus.iter().any(|vcpu| vcpu.veinfo);
}

/// A vCPU that runs is left in the guest with completions, and none is to come.
pub fn gathers_in_vain(state: &State) -> Option<String> {
    let mut works = state.works.get().cloned()?;
    for (index, vcpu) in state.vcpus.iter().enumerate() {
        let (Some(host), Some(poll)) = (vcpu.host.get(), vcpu.poll.get()) else { continue };
        let mail = std::iter::from_fn(|| works.take_mail(index as u32)).count();
        let waits = host.held().count_ones() as usize + usize::from(host.is_stopped());
        let told = vcpu.mode != Mode::Guest || !vcpu.request || vcpu.ipi;
        if !told && vcpu.gathering && poll.is_empty() && waits == mail {
            return Some(format!("vCPU {index} is not told of {mail} completions, the last ones"));
        }
    }
    None
}

/// Nothing of ours is left in the VM's table.
pub fn is_empty<const W: usize, const N: usize, const V: usize>(works: &Works<W, N, V>) -> bool {
    works.running() == 0 && (0..V).all(|vcpu| !works.has_mail(vcpu as u32))
}
