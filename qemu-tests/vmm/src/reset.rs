//! System reset: vCPUs and interrupt controllers get the state back that they had when they were made.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_debugregs,
    kvm_fpu, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_pit_state2, kvm_regs,
    kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST: time goes on through a reset.
const TIME: [u32; 2] = [0x10, 0x3b];

/// MSR_KVM_ASYNC_PF_EN: where the fault ring is.
pub const EN: u32 = 0x4b56_4d02;

/// One vCPU before it ran.
pub struct VcpuState {
    sregs: kvm_sregs,
    regs: kvm_regs,
    fpu: kvm_fpu,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    msrs: Vec<kvm_msr_entry>,
}

impl VcpuState {
    /// Of this vCPU, as it is.
    pub fn of(kvm: &Kvm, fd: &VcpuFd) -> Result<VcpuState> {
        let list = kvm.get_msr_index_list().context("KVM_GET_MSR_INDEX_LIST")?;
        let indices = list.as_slice().iter().filter(|index| !TIME.contains(index));
        Ok(VcpuState {
            sregs: fd.get_sregs().context("KVM_GET_SREGS")?,
            regs: fd.get_regs().context("KVM_GET_REGS")?,
            fpu: fd.get_fpu().context("KVM_GET_FPU")?,
            debug: fd.get_debug_regs().context("KVM_GET_DEBUGREGS")?,
            lapic: fd.get_lapic().context("KVM_GET_LAPIC")?,
            events: fd.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?,
            mp_state: fd.get_mp_state().context("KVM_GET_MP_STATE")?,
            msrs: indices.filter_map(|index| get_msr(fd, *index)).collect(),
        })
    }

    /// Gives it back. Writes of MSRs come before the LAPIC: some of them say where it is.
    pub fn restore(&self, fd: &VcpuFd) -> Result<()> {
        fd.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        fd.set_regs(&self.regs).context("KVM_SET_REGS")?;
        fd.set_fpu(&self.fpu).context("KVM_SET_FPU")?;
        fd.set_debug_regs(&self.debug).context("KVM_SET_DEBUGREGS")?;
        for entry in &self.msrs {
            // One by one: KVM stops at the first that it refuses, and some that can be read cannot be written.
            if let Ok(one) = Msrs::from_entries(&[*entry]) {
                fd.set_msrs(&one).context("KVM_SET_MSRS")?;
            }
        }
        fd.set_lapic(&self.lapic).context("KVM_SET_LAPIC")?;
        fd.set_vcpu_events(&self.events).context("KVM_SET_VCPU_EVENTS")?;
        fd.set_mp_state(self.mp_state).context("KVM_SET_MP_STATE")
    }
}

fn get_msr(fd: &VcpuFd, index: u32) -> Option<kvm_msr_entry> {
    let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
    let mut one = Msrs::from_entries(&[entry]).ok()?;
    (fd.get_msrs(&mut one).ok()? == 1).then(|| one.as_slice()[0])
}

/// PICs, IO-APIC and timer before anything ran.
pub struct ChipState {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
}

impl ChipState {
    /// Of this VM, as they are.
    pub fn of(vm: &VmFd) -> Result<ChipState> {
        let mut chips = Vec::new();
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP")?;
            chips.push(chip);
        }
        Ok(ChipState { chips, pit: vm.get_pit2().context("KVM_GET_PIT2")? })
    }

    /// Gives it back.
    pub fn restore(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.chips {
            vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
        }
        vm.set_pit2(&self.pit).context("KVM_SET_PIT2")
    }
}

/// The machine before it ran.
pub struct PowerOn {
    chips: ChipState,
    vcpus: Vec<VcpuState>,
}

impl PowerOn {
    /// Of this machine, as it is.
    pub fn save<'a>(
        kvm: &Kvm,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<PowerOn> {
        let vcpus = vcpus.map(|fd| VcpuState::of(kvm, fd)).collect::<Result<_>>()?;
        Ok(PowerOn { chips: ChipState::of(vm)?, vcpus })
    }

    /// Resets it; no vCPU runs. Returns what [`EN`] was.
    pub fn restore<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Vec<Option<u64>>> {
        self.chips.restore(vm)?;
        let one = |(state, fd): (&VcpuState, &VcpuFd)| {
            let en = get_msr(fd, EN).map(|entry| entry.data);
            state.restore(fd).map(|()| en)
        };
        self.vcpus.iter().zip(vcpus).map(one).collect()
    }
}
