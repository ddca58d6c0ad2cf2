//! The engine's traits on KVM.

use crate::ring_ptr::RingPtr;
use crate::sys::{self, KvmVcpu, KvmVm};
use core::ptr::NonNull;
use host::poll::{Poll, Polled};
use host::platform::{KickMode, Mapping, Page, Vcpu, Vm};
use host::works::{WorkId, Works as AnyWorks};

/// At most so many pages of a VM are waited for at a time; more wait synchronously.
pub(crate) const WORKS: usize = 1024;
/// And so many slots.
pub(crate) const WAITERS: usize = 4096;
/// `KVM_MAX_VCPUS` at its largest.
pub(crate) const VCPUS: usize = 4096;

pub(crate) type Works = AnyWorks<WORKS, WAITERS, VCPUS>;

/// A vCPU, on its own thread.
#[derive(Clone, Copy)]
pub(crate) struct ThisVcpu(*mut KvmVcpu);

impl ThisVcpu {
    /// # Safety
    /// `v` is valid until the value is dropped, and the caller is the vCPU's own thread, or has
    /// it stopped.
    pub(crate) unsafe fn new(v: *mut KvmVcpu) -> Self {
        Self(v)
    }

    pub(crate) fn raw(&self) -> *mut KvmVcpu {
        self.0
    }

    pub(crate) fn vm(&self) -> ThisVm {
        // SAFETY: `new` promises a valid vCPU, whose VM outlives it.
        ThisVm(unsafe { sys::ve_apf_vcpu_vm(self.0) })
    }
}

/// A VM.
#[derive(Clone, Copy)]
pub(crate) struct ThisVm(*mut KvmVm);

impl ThisVm {
    /// # Safety
    /// `vm` is valid until the value is dropped.
    pub(crate) unsafe fn new(vm: *mut KvmVm) -> Self {
        Self(vm)
    }
}

/// A vCPU, on any thread: what its poller may do with it.
#[derive(Clone, Copy)]
pub(crate) struct PolledVcpu(*mut KvmVcpu);

impl PolledVcpu {
    /// # Safety
    /// `v` is valid until the value is dropped, and the caller is inside `kvm->srcu`.
    pub(crate) unsafe fn new(v: *mut KvmVcpu) -> Self {
        Self(v)
    }

    pub(crate) fn vm(&self) -> ThisVm {
        // SAFETY: `new` promises a valid vCPU, whose VM outlives it.
        ThisVm(unsafe { sys::ve_apf_vcpu_vm(self.0) })
    }
}

/// Runs `f` on what the vCPU's thread and its poller share.
///
/// # Safety
/// `v` is valid, and its VM's lock is held.
unsafe fn with_poll<R>(v: *mut KvmVcpu, f: impl FnOnce(&mut Poll) -> R) -> R {
    // SAFETY: KVM allocated it zeroed, a valid value, with the size `ve_apf_host_poll_size` gave; the
    // lock makes this reference the only one, since no `f` leads back here.
    f(unsafe { &mut *sys::ve_apf_vcpu_poll(v).cast::<Poll>() })
}

impl Polled for PolledVcpu {
    type Ring = RingPtr;

    fn index(&self) -> u32 {
        // SAFETY: `new` promises a valid vCPU; its index never changes.
        unsafe { sys::ve_apf_vcpu_index(self.0) }
    }

    fn with_ring<R>(&self, f: impl FnOnce(&RingPtr) -> R) -> Option<R> {
        // SAFETY: the vCPU is valid, and the caller is where memslots do not go away.
        let page = NonNull::new(unsafe { sys::ve_apf_ring_trylock(self.0) })?;
        // SAFETY: as in `ThisVcpu::with_ring`.
        let result = f(&unsafe { RingPtr::new(page) });
        // SAFETY: locked above.
        unsafe { sys::ve_apf_ring_release(self.0) };
        Some(result)
    }

    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R {
        // SAFETY: the vCPU is valid, and the engine calls with the lock held.
        unsafe { with_poll(self.0, f) }
    }
}

impl Vm<WORKS, WAITERS, VCPUS> for ThisVm {
    fn locked<R>(&self, f: impl FnOnce(&mut Works) -> R) -> R {
        // SAFETY: the VM is valid; KVM's lock returns its table, allocated with the size that
        // `ve_apf_host_works_size` gave, zeroed (a valid table), and reached under this lock only.
        let works = unsafe { &mut *sys::ve_apf_vm_lock(self.0).cast::<Works>() };
        let result = f(works);
        // SAFETY: locked above; the reference is not used any more.
        unsafe { sys::ve_apf_vm_unlock(self.0) };
        result
    }

    fn start(&self, work: WorkId, page: Page) -> bool {
        // SAFETY: the VM is valid, and the engine calls with the lock held, as KVM wants.
        unsafe { sys::ve_apf_vm_start(self.0, work.index, work.serial, page.gfn, page.write) }
    }

    fn now(&self) -> u64 {
        // SAFETY: as `start`.
        unsafe { sys::ve_apf_vm_now(self.0) }
    }

    fn kick(&self, vcpu: u32, _: KickMode) {
        // SAFETY: as `start`. KVM's kick covers every mode: its LAPIC is never passed through.
        unsafe { sys::ve_apf_vm_kick(self.0, vcpu) }
    }

    fn kick_soon(&self, vcpu: u32, _: KickMode) {
        // SAFETY: as `kick`.
        unsafe { sys::ve_apf_vm_kick_soon(self.0, vcpu) }
    }
}

impl Vcpu for ThisVcpu {
    type Ring = RingPtr;

    fn index(&self) -> u32 {
        // SAFETY: `new` promises a valid vCPU; so for all calls below.
        unsafe { sys::ve_apf_vcpu_index(self.0) }
    }

    fn with_ring<R>(&self, f: impl FnOnce(&RingPtr) -> R) -> Option<R> {
        // SAFETY: the vCPU is valid, and this is its thread.
        let page = NonNull::new(unsafe { sys::ve_apf_ring_lock(self.0) })?;
        // SAFETY: the lock keeps a whole page of guest memory mapped, read and written by guests
        // and by this object, atomically, until it is dropped below.
        let result = f(&unsafe { RingPtr::new(page) });
        // SAFETY: locked above.
        unsafe { sys::ve_apf_ring_unlock(self.0) };
        Some(result)
    }

    fn poll<R>(&self, f: impl FnOnce(&mut Poll) -> R) -> R {
        // SAFETY: the vCPU is valid, and the engine calls with the lock held.
        unsafe { with_poll(self.0, f) }
    }

    fn interrupt_allowed(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_interrupt_allowed(self.0) }
    }

    fn event_pending(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_event_pending(self.0) }
    }

    fn is_nested(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_is_nested(self.0) }
    }

    fn nested_run_pending(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_nested_run_pending(self.0) }
    }

    fn deliverable(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_deliverable(self.0) }
    }

    fn rip(&self) -> u64 {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_rip(self.0) }
    }

    fn map(&self, page: Page) -> Mapping {
        mapping(self, page, true)
    }

    fn map_if_there(&self, page: Page) -> Mapping {
        mapping(self, page, false)
    }

    fn inject_ve(&self) {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_inject_ve(self.0) }
    }

    fn can_interrupt(&self) -> bool {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_can_interrupt(self.0) }
    }

    fn inject_irq(&self) {
        // SAFETY: as `index`.
        unsafe { sys::ve_apf_inject_irq(self.0) }
    }
}

/// `ask`: why a page is not there.
fn mapping(vcpu: &ThisVcpu, page: Page, ask: bool) -> Mapping {
    // SAFETY: the vCPU is valid, and this is its thread; no lock of ours is held, so it may sleep.
    match unsafe { sys::ve_apf_map(vcpu.0, page.gfn, page.write, ask) } {
        sys::MAPPED => Mapping::Mapped,
        sys::NOT_NOW => Mapping::NotNow,
        cause => Mapping::Failed(u16::try_from(cause).unwrap_or(u16::MAX)),
    }
}
