//! State of a vCPU: everything KVM lets a VMM read and write back.
//!
//! Not among it: a nested guest's state. A guest that is itself a hypervisor cannot be saved while its guest runs.

use std::arch::x86_64::__cpuid;

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use ve_apf_abi::msr::{VE_APF_MSR_EN, VE_APF_MSR_INT};

/// `MSR_IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;
/// MSRs that one call may read or write (`MAX_IO_MSRS` of KVM).
const MSRS_AT_ONCE: usize = 256;
/// Frequencies that differ by less are one to KVM, unless `kvm.tsc_tolerance_ppm` says otherwise, and need not be set.
const TSC_TOLERANCE_PPM: u64 = 250;

/// One vCPU's.
#[derive(Clone, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u32>,
    debug_regs: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

/// MSRs that are state: what KVM lists, unless it does not let this vCPU read it.
pub fn msr_list(kvm: &Kvm) -> Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
    Ok(list.as_slice().to_vec())
}

/// What a restore leaves out that forgets `text`, by its name on the command line.
pub fn forgotten(text: &str) -> Result<&'static [u32], String> {
    match text {
        "en" => Ok(&[VE_APF_MSR_EN]),
        "all" => Ok(&[VE_APF_MSR_EN, VE_APF_MSR_INT]),
        _ => Err(format!("--snapshot-forgets {text}: must be en or all")),
    }
}

impl VcpuState {
    /// Reads it. The vCPU must be outside KVM_RUN, with no exit half handled.
    pub fn save(fd: &VcpuFd, msrs: &[u32]) -> Result<VcpuState> {
        Ok(VcpuState {
            // First, since it takes INIT and SIPI, which change the rest.
            mp_state: fd.get_mp_state().context("KVM_GET_MP_STATE")?,
            cpuid: fd
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .context("KVM_GET_CPUID2")?
                .as_slice()
                .to_vec(),
            tsc_khz: fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?,
            regs: fd.get_regs().context("KVM_GET_REGS")?,
            sregs: fd.get_sregs().context("KVM_GET_SREGS")?,
            xcrs: fd.get_xcrs().context("KVM_GET_XCRS")?,
            xsave: fd.get_xsave().context("KVM_GET_XSAVE")?.region.to_vec(),
            debug_regs: fd.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
            lapic: Box::new(fd.get_lapic().context("KVM_GET_LAPIC")?),
            msrs: read_msrs(fd, msrs)?,
            // Last: the calls before it may move events about.
            events: fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
        })
    }

    /// Writes it, to the same vCPU or to a new one.
    pub fn load(&self, fd: &VcpuFd) -> Result<()> {
        let cpuid =
            kvm_bindings::CpuId::from_entries(&self.cpuid).context("too many CPUID leaves")?;
        fd.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        self.load_frequency(fd)?;
        fd.set_sregs(&for_host(self.sregs)).context("KVM_SET_SREGS")?;
        // None without XSAVE, and then there is nothing to set either.
        if self.xcrs.nr_xcrs != 0 {
            fd.set_xcrs(&self.xcrs).context("KVM_SET_XCRS")?;
        }
        let mut xsave = kvm_xsave::default();
        ensure!(self.xsave.len() == xsave.region.len(), "an XSAVE area of another size");
        xsave.region.copy_from_slice(&self.xsave);
        // SAFETY: without features beyond SSE and AVX, which are never requested with arch_prctl(), KVM reads no more
        // than the 4 KiB that this is.
        unsafe { fd.set_xsave(&xsave) }.context("KVM_SET_XSAVE")?;
        fd.set_debug_regs(&self.debug_regs).context("KVM_SET_DEBUGREGS")?;
        // After APIC_BASE, which sregs hold and which says how to read it.
        fd.set_lapic(&self.lapic).context("KVM_SET_LAPIC")?;
        // After the LAPIC, whose timer has to be in deadline mode, and after the TSC that the deadline is compared with.
        let (deadline, others): (Vec<_>, Vec<_>) =
            self.msrs.iter().copied().partition(|msr| msr.index == TSC_DEADLINE);
        write_msrs(fd, &others)?;
        write_msrs(fd, &deadline)?;
        fd.set_regs(&self.regs).context("KVM_SET_REGS")?;
        // After SET_REGS, which drops a queued exception.
        fd.set_vcpu_events(&self.events).context("KVM_SET_VCPU_EVENTS")?;
        fd.set_mp_state(self.mp_state).context("KVM_SET_MP_STATE")?;
        // Tells the guest's watchdogs that time has passed; refused where the guest does not use KVM's clock.
        let _ = fd.kvmclock_ctrl();
        Ok(())
    }

    /// A frequency that KVM takes for the same is not set: a host that cannot scale its TSC refuses any.
    fn load_frequency(&self, fd: &VcpuFd) -> Result<()> {
        let (saved, now) =
            (u64::from(self.tsc_khz), u64::from(fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?));
        if saved.abs_diff(now) * 1_000_000 > now * TSC_TOLERANCE_PPM {
            fd.set_tsc_khz(self.tsc_khz)
                .with_context(|| format!("KVM_SET_TSC_KHZ {saved}, on a host with {now}"))?;
        }
        Ok(())
    }

    /// The same, but for these MSRs.
    pub fn without(&self, msrs: &[u32]) -> VcpuState {
        let mut state = self.clone();
        state.msrs.retain(|msr| !msrs.contains(&msr.index));
        state
    }

    /// Value of an MSR, if it was saved.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.data)
    }
}

/// QEMU's TCG lets a program use the ports that its TSS allows only if the TSS is not marked busy (`check_io()`), which on
/// its CPUs TR never is. KVM says of every TR that it is.
fn for_host(sregs: kvm_sregs) -> kvm_sregs {
    const TCG: [u32; 3] = [0x5447_4354, 0x4354_4743, 0x4743_5447];
    const BUSY: u8 = 2;
    let leaf = __cpuid(0x4000_0000);
    let mut sregs = sregs;
    if [leaf.ebx, leaf.ecx, leaf.edx] == TCG {
        sregs.tr.type_ &= !BUSY;
    }
    sregs
}

fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let now = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let entries: Vec<_> = now
            .iter()
            .map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() })
            .collect();
        let mut msrs = Msrs::from_entries(&entries).context("too many MSRs")?;
        let count = fd.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        // KVM stops at one that this vCPU, by its CPUID, does not have.
        rest = &rest[(count + usize::from(count < now.len()))..];
    }
    Ok(read)
}

fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<()> {
    for now in entries.chunks(MSRS_AT_ONCE) {
        let msrs = Msrs::from_entries(now).context("too many MSRs")?;
        let count = fd.set_msrs(&msrs).context("KVM_SET_MSRS")?;
        let refused = now.get(count).map(|msr| format!("{:#x} = {:#x}", msr.index, msr.data));
        ensure!(count == now.len(), "KVM refused MSR {}", refused.unwrap_or_default());
    }
    Ok(())
}
