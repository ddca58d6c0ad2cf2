//! What KVM calls. Pointers come from KVM's own code and are valid; results go out through them.

use crate::platform::{ThisVcpu, ThisVm, WORKS, Works};
use crate::sys::{self, Completed, FaultResult, KvmVcpu, KvmVm, SubmitResult};
use abi::access::FaultInfo;
use abi::hypercall::{VE_APF_FAIL, VE_APF_QUEUED, VE_APF_RESOLVED, VE_APF_UNKNOWN};
use abi::msr::{Caps, EnValue, caps_value};
use abi::ring::VE_APF_CAUSE_NONE;
use abi::ve_info::VE_APF_REASON_EPT_VIOLATION;
use host::fault::{Answer, fail, fault};
use host::platform::{GuestError, Page, Resolution, Vm};
use host::stop::{Stopped, leave, stop};
use host::submit::{Submitted, status, submit};
use host::sweep::{Sweep, detach_all, sweep};
use host::vcpu::VcpuState;
use host::works::{Joined, WorkId};
use host::{complete, platform::Vcpu, poll};

/// # Safety
/// As [`ThisVcpu::new`]. The state must not be borrowed elsewhere: each export does so once, and
/// none calls another.
pub(crate) unsafe fn this<'a>(v: *mut KvmVcpu) -> (ThisVcpu, ThisVm, &'a mut VcpuState) {
    // SAFETY: the caller's promise.
    let vcpu = unsafe { ThisVcpu::new(v) };
    // SAFETY: KVM allocated it zeroed, a valid state, with the size `ve_apf_host_vcpu_size` gave;
    // only the vCPU's thread uses it.
    let state = unsafe { &mut *sys::ve_apf_vcpu_state(v).cast::<VcpuState>() };
    (vcpu, vcpu.vm(), state)
}

fn guest_error(vcpu: &ThisVcpu, error: GuestError) {
    let (word, expected) = (u64::from(error.word), u64::from(error.expected));
    // SAFETY: `ThisVcpu` holds a valid vCPU.
    unsafe { sys::ve_apf_guest_error(vcpu.raw(), u64::from(error.slot), word, expected) };
}

/// Bytes of the VM's table.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_works_size() -> usize {
    size_of::<Works>()
}

/// How many works it holds; a work's index is below that.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_works_capacity() -> u32 {
    WORKS as u32
}

/// Bytes of a vCPU's state.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_vcpu_size() -> usize {
    size_of::<VcpuState>()
}

/// What CAPS reads where ve-apf can be used.
#[unsafe(no_mangle)]
pub extern "C" fn ve_apf_host_caps(hardware: bool) -> u64 {
    caps_value(if hardware { Caps::INJECTED | Caps::HARDWARE } else { Caps::INJECTED })
}

/// Checks a value of EN: 1 and the out parameters set if it enables, 0 if it disables, -1 if it
/// is invalid.
///
/// # Safety
/// `ring` and `kernel` are valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_parse_en(
    value: u64,
    ring: *mut u64,
    kernel: *mut bool,
) -> i32 {
    match EnValue::parse(value) {
        Ok(Some(en)) => {
            // SAFETY: the caller's promise.
            unsafe {
                ring.write(en.ring());
                kernel.write(en.kernel());
            }
            1
        }
        Ok(None) => 0,
        Err(_) => -1,
    }
}

/// A page is missing. `block`: if the guest cannot be told, the vCPU's own thread is to resolve it.
///
/// # Safety
/// As [`ThisVcpu::new`]; `result` is valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_fault(
    v: *mut KvmVcpu,
    gfn: u64,
    write: bool,
    qualification: u64,
    gpa: u64,
    block: bool,
    result: *mut FaultResult,
) {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    let page = Page { gfn, write };
    let answer = fault(&vcpu, state, &vm, page, fault_info(qualification, gpa));
    let stopped = match answer {
        Ok(Answer::Sync(_)) if !block => stop(&vcpu, state, &vm, page),
        _ => Stopped::Block,
    };
    // SAFETY: the caller's promise.
    unsafe { result.write(fault_result(&vcpu, answer, stopped)) };
}

/// A page can never come, for `cause`.
///
/// # Safety
/// As [`ve_apf_host_fault`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_fail(
    v: *mut KvmVcpu,
    qualification: u64,
    gpa: u64,
    cause: u16,
    result: *mut FaultResult,
) {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    let answer = fail(&vcpu, state, &vm, fault_info(qualification, gpa), cause);
    // SAFETY: the caller's promise.
    unsafe { result.write(fault_result(&vcpu, answer, Stopped::Block)) };
}

fn fault_info(qualification: u64, gpa: u64) -> FaultInfo {
    FaultInfo { reason: VE_APF_REASON_EPT_VIOLATION, qualification, gpa, ..FaultInfo::default() }
}

fn fault_result(
    vcpu: &ThisVcpu,
    answer: Result<Answer, GuestError>,
    stopped: Stopped,
) -> FaultResult {
    let wait = match stopped {
        Stopped::Halt => sys::STOP_HALT,
        Stopped::Again => sys::STOP_AGAIN,
        Stopped::Block => sys::STOP_BLOCK,
    };
    let (kind, detail) = match answer {
        Ok(Answer::Injected(slot, Joined::Running)) => (sys::JOINED, u16::from(slot.get())),
        Ok(Answer::Injected(slot, Joined::Started)) => (sys::STARTED, u16::from(slot.get())),
        Ok(Answer::Failed(slot)) => (sys::FAILED, u16::from(slot.get())),
        Ok(Answer::Lost(cause)) => (sys::LOST, cause),
        Ok(Answer::Sync(reason)) => (sys::SYNC + reason as u32, 0),
        Err(error) => {
            guest_error(vcpu, error);
            (sys::BROKEN, 0)
        }
    };
    FaultResult { kind, detail: u32::from(detail), wait }
}

/// The vCPU waits for no page itself any more.
///
/// # Safety
/// As [`ThisVcpu::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_leave(v: *mut KvmVcpu) {
    // SAFETY: the caller's promise.
    let (_, vm, state) = unsafe { this(v) };
    leave(state, &vm);
}

/// Completes what is finished; -1 if the guest broke its ring.
///
/// # Safety
/// As [`ve_apf_host_fault`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_complete(v: *mut KvmVcpu, result: *mut Completed) -> i32 {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    // SAFETY: the caller's promise.
    unsafe { completed(&vcpu, complete::complete(&vcpu, state, &vm), result) }
}

/// 0 and what was completed, or -1 if the guest broke its ring.
///
/// # Safety
/// `result` is valid for writes.
pub(crate) unsafe fn completed(
    vcpu: &ThisVcpu,
    done: Result<complete::Completed, GuestError>,
    result: *mut Completed,
) -> i32 {
    match done {
        Ok(done) => {
            // SAFETY: the caller's promise.
            unsafe { result.write(done.into()) };
            0
        }
        Err(error) => {
            guest_error(vcpu, error);
            -1
        }
    }
}

impl From<complete::Completed> for Completed {
    fn from(done: complete::Completed) -> Self {
        Self {
            resolved: done.resolved,
            failed: done.failed,
            suspended: done.suspended,
            interrupt: u32::from(done.interrupt),
            submitted: done.submitted,
            stuck: u32::from(done.stuck),
        }
    }
}

/// Interrupts may have become possible: raises what waited for that.
///
/// # Safety
/// As [`ThisVcpu::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_interrupts_possible(v: *mut KvmVcpu) -> bool {
    // SAFETY: the caller's promise.
    let (vcpu, _, state) = unsafe { this(v) };
    complete::interrupts_possible(&vcpu, state)
}

fn code(submitted: Submitted) -> SubmitResult {
    let (what, page) = match submitted {
        Submitted::Queued => (VE_APF_QUEUED as u32, Page::default()),
        Submitted::Resolved => (VE_APF_RESOLVED as u32, Page::default()),
        Submitted::Fail => (VE_APF_FAIL as u32, Page::default()),
        Submitted::Unknown => (VE_APF_UNKNOWN as u32, Page::default()),
        Submitted::Invalid => (sys::DO_INVALID, Page::default()),
        Submitted::Halt => (sys::DO_HALT, Page::default()),
        Submitted::Wait(page) => (sys::DO_WAIT, page),
    };
    SubmitResult { what, write: u32::from(page.write), gfn: page.gfn }
}

/// Hypercall SUBMIT.
///
/// # Safety
/// As [`ve_apf_host_fault`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_submit(
    v: *mut KvmVcpu,
    claim: u64,
    result: *mut SubmitResult,
) {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    let answer = match submit(&vcpu, state, &vm, claim) {
        Ok(submitted) => code(submitted),
        Err(error) => {
            guest_error(&vcpu, error);
            SubmitResult { what: sys::DO_STOP, write: 0, gfn: 0 }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { result.write(answer) };
}

/// Hypercall STATUS.
///
/// # Safety
/// As [`ThisVcpu::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_status(v: *mut KvmVcpu, claim: u64, generation: u64) -> u32 {
    // SAFETY: the caller's promise.
    let (vcpu, _, state) = unsafe { this(v) };
    code(status(&vcpu, state, claim, generation)).what
}

/// Completes every slot that waits; returns how many.
///
/// # Safety
/// As [`ThisVcpu::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_sweep(v: *mut KvmVcpu, restore: bool) -> u32 {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    let why = if restore { Sweep::Restore } else { Sweep::Disable };
    sweep(&vcpu, state, &vm, why)
}

/// Nothing of this vCPU waits any more.
///
/// # Safety
/// As [`ThisVcpu::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_detach(v: *mut KvmVcpu) {
    // SAFETY: the caller's promise.
    let (vcpu, vm, state) = unsafe { this(v) };
    poll::end(&vcpu, state, &vm);
    detach_all(state, &vm);
    // Mail that nobody holds a slot for any more.
    while vm.locked(|works| works.take_mail(vcpu.index())).is_some() {}
}

/// A thread of the VM is done with a work: `cause` is `VE_APF_CAUSE_NONE`, or why it failed.
///
/// # Safety
/// As [`ThisVm::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_finish(vm: *mut KvmVm, index: u32, serial: u32, cause: u16) {
    // SAFETY: the caller's promise.
    let vm = unsafe { ThisVm::new(vm) };
    let resolution = match cause {
        VE_APF_CAUSE_NONE => Resolution::Retry,
        cause => Resolution::Failed(cause),
    };
    vm.locked(|works| works.finish(&vm, WorkId { index, serial }, resolution));
}

/// Fails what has waited since `before`, by `ve_apf_vm_now()`; returns since when the longest of
/// the others has waited, or `u64::MAX`.
///
/// # Safety
/// As [`ThisVm::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_expire(vm: *mut KvmVm, before: u64) -> u64 {
    // SAFETY: the caller's promise.
    let vm = unsafe { ThisVm::new(vm) };
    vm.locked(|works| works.expire(&vm, before)).unwrap_or(u64::MAX)
}

/// Other memory, or none, is at the gfns from `start` to below `end`.
///
/// # Safety
/// As [`ThisVm::new`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ve_apf_host_moved(vm: *mut KvmVm, start: u64, end: u64) {
    // SAFETY: the caller's promise.
    let vm = unsafe { ThisVm::new(vm) };
    vm.locked(|works| works.moved(&vm, start, end));
}
