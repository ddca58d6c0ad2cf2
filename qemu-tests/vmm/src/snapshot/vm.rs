//! State of the VM itself: interrupt controllers, timer, clock.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// One VM's.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    irqchips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl VmState {
    /// Reads it, with all vCPUs stopped.
    pub fn save(vm: &VmFd) -> Result<VmState> {
        let irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
                vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP")?;
                Ok(chip)
            })
            .collect::<Result<_>>()?;
        Ok(VmState {
            irqchips,
            pit: vm.get_pit2().context("KVM_GET_PIT2")?,
            clock: vm.get_clock().context("KVM_GET_CLOCK")?,
        })
    }

    /// Writes it, after all vCPUs': the IO-APIC raises in their LAPICs what it has pending.
    pub fn load(&self, vm: &VmFd) -> Result<()> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip).context("KVM_SET_IRQCHIP")?;
        }
        vm.set_pit2(&self.pit).context("KVM_SET_PIT2")?;
        // No flags: the guest's clock goes on where it was, whatever time has passed outside.
        let clock = kvm_clock_data { clock: self.clock.clock, ..kvm_clock_data::default() };
        vm.set_clock(&clock).context("KVM_SET_CLOCK")
    }
}
