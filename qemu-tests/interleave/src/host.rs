//! The hypervisor: the host engine's traits, and what a vCPU's thread does between two entries.

use crate::fiber::{Next, Thread};
use crate::ring::{ModelRing, Side};
use crate::scenario::{Broken, Reach};
use crate::world::{Exit, Frame, Mode, Owned, SlotModel, State, VcpuModel, VmWorks, Worker, World};
use ve_apf_abi::access::FaultInfo;
use ve_apf_abi::hypercall::{
    VE_APF_EINVAL, VE_APF_FAIL, VE_APF_QUEUED, VE_APF_RESOLVED, VE_APF_UNKNOWN,
};
use ve_apf_abi::ring::{VE_APF_CAUSE_GONE, VE_APF_QUAL_READ, VE_APF_QUAL_WRITE};
use ve_apf_host::complete::{complete, interrupts_possible};
use ve_apf_host::fault::{Answer, fault};
use ve_apf_host::platform::{GuestError, KickMode, Mapping, Page, Resolution, Vcpu, Vm};
use ve_apf_host::submit::{Submitted, status, submit};
use ve_apf_host::sweep::{Sweep, detach_all, sweep};
use ve_apf_host::vcpu::VcpuState;
use ve_apf_host::works::{Joined, WorkId, Works};

/// The VM, from a vCPU's thread or from elsewhere.
struct Machine<'a> {
    world: &'static World,
    thread: Option<Thread<'a>>,
}

impl Vm<4, 6, 2> for Machine<'_> {
    fn locked<R>(&self, f: impl FnOnce(&mut VmWorks) -> R) -> R {
        // Nothing in `f` is a step, so the lock is never seen taken.
        if let Some(thread) = self.thread {
            thread.step();
            thread.learn(self.world.with(|state| state.works.hash));
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
            room
        });
        self.world.note(|| format!("work {} for {page:?}: {room}", id.index));
        room
    }

    fn kick(&self, vcpu: u32, _mode: KickMode) {
        self.world.note(|| format!("kick vCPU {vcpu}"));
        self.world.with(|state| {
            let vcpu = &mut state.vcpus[vcpu as usize];
            vcpu.request = true;
            vcpu.ipi |= vcpu.announced;
        });
    }
}

/// One vCPU, on its thread.
struct HostCpu<'a> {
    thread: Thread<'a>,
    vcpu: usize,
    rip: u64,
    ring: ModelRing<'a>,
}

impl HostCpu<'_> {
    fn look<R>(&self, f: impl FnOnce(&mut VcpuModel) -> R) -> R {
        self.thread.world.with(|state| f(&mut state.vcpus[self.vcpu]))
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

    fn interrupt_allowed(&self) -> bool {
        let world = self.thread.world;
        self.thread.learn(world.with(|state| interrupts_on(state, self.vcpu)))
    }

    fn event_pending(&self) -> bool {
        self.look(|vcpu| vcpu.ve)
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
        self.thread.step();
        let gfn = page.gfn as usize;
        let (mapping, code) = self.thread.world.with(|state| match state.frames[gfn] {
            Frame::Mapped => (Mapping::Mapped, 0),
            Frame::InHost => {
                state.frames[gfn] = Frame::Mapped;
                (Mapping::Mapped, 0)
            }
            Frame::Missing => (Mapping::NotNow, 1),
            Frame::Gone => (Mapping::Failed(VE_APF_CAUSE_GONE), 2),
        });
        self.thread.learn(code);
        self.ring.mapped.set(Some((page.gfn, code == 2)));
        self.thread.note(|| format!("map gfn {gfn}: {mapping:?}"));
        mapping
    }

    fn inject_ve(&self) {
        self.thread.note(|| "inject #VE".into());
        self.look(|vcpu| vcpu.ve = true);
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

/// Are the guest's interrupts on where the vCPU is?
pub fn interrupts_on(state: &State, vcpu: usize) -> bool {
    let vcpu = &state.vcpus[vcpu];
    !vcpu.in_irq && vcpu.current.is_none_or(|task| state.tasks[task].irqs)
}

/// A work is over, or its deadline is: then `late` says so of the thread that still works on it.
pub fn finish(world: &'static World, id: WorkId, resolution: Resolution, late: bool) {
    let vm = Machine { world, thread: None };
    let ended = vm.locked(|works| {
        let before = works.running();
        works.finish(&vm, id, resolution);
        before - works.running()
    });
    if ended != u32::from(!late) {
        world.violate(format!("a thread that ends (late: {late}) ended {ended} works"));
    }
    // From here on a failure is known. Read off a copy of the mailboxes.
    world.with(|state| {
        let Some(mut works) = state.works.get().cloned() else { return };
        for (index, vcpu) in state.vcpus.iter_mut().enumerate() {
            while let Some(mail) = works.take_mail(index as u32) {
                if let Resolution::Failed(_) = mail.resolution {
                    let slot = &mut vcpu.ring.slots[usize::from(mail.slot.get())];
                    slot.known_failed = Some(mail.generation.get());
                }
            }
        }
    });
}

/// A VMM writes EN of a vCPU that is paused.
pub fn write_en(world: &'static World, vcpu: usize) {
    let mut host = world.with(|state| state.vcpus[vcpu].host.take());
    detach_all(&mut host, &Machine { world, thread: None });
    world.with(|state| {
        let vcpu = &mut state.vcpus[vcpu];
        vcpu.host = Owned::new(host);
        vcpu.sweep = vcpu.enabled;
        // To the restored VM nothing is known.
        vcpu.ring.slots.iter_mut().for_each(|slot| slot.known_failed = None);
    });
}

/// The vCPU's thread, from an exit to the next entry.
pub fn run(thread: Thread<'_>, vcpu: usize) {
    let exit = thread.world.with(|state| state.vcpus[vcpu].exit);
    thread.forget(exit);
    thread.note(|| format!("exit: {exit:?}"));
    let rip = if let Exit::Fault { rip, .. } = exit { rip } else { 0 };
    let ring = ModelRing::new(thread, vcpu, Side::Host);
    let host = Host { cpu: HostCpu { thread, vcpu, rip, ring } };
    if host.handle(exit).and_then(|()| host.enter()).is_err() {
        // The VM stopped; the violation says why.
        host.cpu.look(|vcpu| vcpu.mode = Mode::Resolving(usize::MAX));
        thread.step();
    }
}

struct Host<'a> {
    cpu: HostCpu<'a>,
}

impl<'a> Host<'a> {
    fn vm(&self) -> Machine<'a> {
        Machine { world: self.cpu.thread.world, thread: Some(self.cpu.thread) }
    }

    fn reach(&self, what: Reach) {
        self.cpu.thread.world.reach(what);
    }

    fn owning<R>(&self, f: impl FnOnce(&mut VcpuState) -> Result<R, GuestError>) -> Result<R, ()> {
        let mut state = self.cpu.look(|vcpu| vcpu.host.take());
        let result = f(&mut state);
        self.cpu.look(|vcpu| vcpu.host = Owned::new(state));
        result.map_err(|error| {
            self.cpu.thread.world.violate(format!("an honest guest was refused: {error:x?}"));
        })
    }

    fn handle(&self, exit: Exit) -> Result<(), ()> {
        match exit {
            Exit::Kick => {}
            Exit::Fault { gfn, write, .. } => self.fault(gfn, write)?,
            Exit::Submit(slot) => self.submit(slot)?,
            Exit::Status(slot, generation) => {
                self.complete()?;
                let answer = self.owning(|state| Ok(status(&self.cpu, state, slot, generation)))?;
                self.answer(answer)?;
            }
            Exit::Disable => {
                self.sweep(Sweep::Disable)?;
                self.cpu.look(|vcpu| vcpu.enabled = false);
            }
            Exit::Enable => self.cpu.look(|vcpu| {
                vcpu.enabled = true;
                vcpu.ring.host_flags = 0;
            }),
            Exit::Lapic(on) => {
                self.cpu.look(|vcpu| vcpu.lapic = on);
                if on {
                    let raised = self.owning(|state| Ok(interrupts_possible(&self.cpu, state)))?;
                    if raised {
                        self.reach(Reach::Held);
                    }
                }
            }
        }
        Ok(())
    }

    fn fault(&self, gfn: usize, write: bool) -> Result<(), ()> {
        let present = self.cpu.thread.world.with(|state| {
            let frame = &mut state.frames[gfn];
            if *frame == Frame::InHost {
                *frame = Frame::Mapped;
            }
            *frame == Frame::Mapped
        });
        if present {
            return Ok(());
        }
        let page = Page { gfn: gfn as u64, write };
        let qualification = if write { VE_APF_QUAL_WRITE } else { VE_APF_QUAL_READ };
        let info =
            FaultInfo { reason: 48, qualification, gpa: page.gfn << 12, ..FaultInfo::default() };
        self.cpu.ring.crowded.set(true);
        let answer = self.owning(|state| fault(&self.cpu, state, &self.vm(), page, info));
        self.cpu.ring.crowded.set(false);
        let answer = answer?;
        self.cpu.thread.note(|| format!("fault on gfn {gfn}: {answer:?}"));
        match answer {
            Answer::Injected(_, Joined::Running) => self.reach(Reach::Joined),
            Answer::Injected(_, Joined::Started) => {}
            Answer::Sync(_) => {
                self.reach(Reach::Sync);
                self.resolve(gfn);
            }
        }
        Ok(())
    }

    /// Resolves a page with the vCPU stopped.
    fn resolve(&self, gfn: usize) {
        self.cpu.look(|vcpu| vcpu.mode = Mode::Resolving(gfn));
        self.cpu.thread.step();
        self.cpu.thread.world.with(|state| {
            let vcpu = &mut state.vcpus[self.cpu.vcpu];
            vcpu.mode = Mode::Host;
            match &mut state.frames[gfn] {
                Frame::Gone => vcpu.fault_failed = true,
                frame => *frame = Frame::Mapped,
            }
        });
        self.cpu.thread.note(|| format!("gfn {gfn} resolved with the vCPU stopped"));
    }

    fn submit(&self, slot: u64) -> Result<(), ()> {
        self.complete()?;
        let answer = self.owning(|state| submit(&self.cpu, state, &self.vm(), slot))?;
        self.answer(answer)
    }

    fn answer(&self, answer: Submitted) -> Result<(), ()> {
        self.cpu.thread.note(|| format!("hypercall: {answer:?}"));
        let rax = match answer {
            Submitted::Queued => Some(VE_APF_QUEUED.cast_signed()),
            Submitted::Resolved => Some(VE_APF_RESOLVED.cast_signed()),
            Submitted::Fail => Some(VE_APF_FAIL.cast_signed()),
            Submitted::Unknown => Some(VE_APF_UNKNOWN.cast_signed()),
            Submitted::Invalid => Some(-VE_APF_EINVAL),
            Submitted::Halt => {
                self.reach(Reach::Halted);
                self.cpu.look(|vcpu| vcpu.mode = Mode::Halted);
                self.cpu.thread.step();
                self.cpu.look(|vcpu| vcpu.mode = Mode::Host);
                None
            }
            Submitted::Wait(page) => {
                self.reach(Reach::Unqueued);
                self.resolve(page.gfn as usize);
                None
            }
        };
        self.cpu.look(|vcpu| vcpu.rax = rax);
        Ok(())
    }

    fn complete(&self) -> Result<(), ()> {
        self.cpu.look(|vcpu| vcpu.request = false);
        let done = self.owning(|state| complete(&self.cpu, state, &self.vm()))?;
        self.cpu.thread.note(|| format!("completed: {done:?}"));
        Ok(())
    }

    fn sweep(&self, why: Sweep) -> Result<(), ()> {
        let failed = self.cpu.look(|vcpu| {
            vcpu.sweeping = true;
            let slots = vcpu.ring.slots.iter();
            let failure = |slot: &SlotModel| {
                let word = slot.word;
                word.state().is_waiting() && slot.known_failed == Some(word.generation().get())
            };
            slots.copied().any(|slot| failure(&slot))
        });
        if failed {
            self.reach(Reach::SweptFailure);
        }
        let count = self.owning(|state| Ok(sweep(&self.cpu, state, &self.vm(), why)))?;
        self.cpu.thread.note(|| format!("sweep ({why:?}) completed {count}"));
        if count > 0 {
            self.reach(Reach::Swept);
        }
        self.cpu.look(|vcpu| vcpu.sweeping = false);
        Ok(())
    }

    fn enter(&self) -> Result<(), ()> {
        let thread = self.cpu.thread;
        if self.cpu.look(|vcpu| std::mem::take(&mut vcpu.sweep)) {
            self.sweep(Sweep::Restore)?;
        }
        loop {
            thread.forget("entry");
            if self.cpu.look(|vcpu| vcpu.request) {
                self.complete()?;
            }
            thread.forget("about to announce");
            thread.step_to(Next::OwnEntry);
            self.cpu.look(|vcpu| vcpu.announced = true);
            thread.note(|| "announces guest mode".into());
            thread.step_to(Next::OwnEntry);
            if thread.world.scenario.broken == Some(Broken::NoSecondLook)
                || !self.cpu.look(|vcpu| vcpu.request)
            {
                break;
            }
            self.reach(Reach::SecondLook);
            self.cpu.look(|vcpu| (vcpu.announced, vcpu.ipi) = (false, false));
        }
        self.cpu.look(|vcpu| vcpu.mode = Mode::Guest);
        thread.note(|| "enters the guest".into());
        Ok(())
    }
}

/// Nothing of ours is left in the VM's table.
pub fn is_empty<const W: usize, const N: usize, const V: usize>(works: &Works<W, N, V>) -> bool {
    works.running() == 0 && (0..V).all(|vcpu| !works.has_mail(vcpu as u32))
}
