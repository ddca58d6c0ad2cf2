//! System reset: vCPUs and interrupt controllers get the state back that they had when they were made.

use anyhow::Result;
use kvm_ioctls::{VcpuFd, VmFd};
use ve_apf_abi::msr::VE_APF_MSR_EN;

use crate::snapshot::vcpu::VcpuState;
use crate::snapshot::vm::VmState;

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST: time goes on through a reset.
const TIME: [u32; 2] = [0x10, 0x3b];

/// The machine before it ran.
pub struct PowerOn {
    vm: VmState,
    vcpus: Vec<VcpuState>,
    msrs: Vec<u32>,
}

impl PowerOn {
    /// Of this machine, as it is. `msrs` are those that are state.
    pub fn save<'a>(
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
        mut msrs: Vec<u32>,
    ) -> Result<PowerOn> {
        msrs.retain(|index| !TIME.contains(index));
        let vcpus = vcpus.map(|fd| VcpuState::save(fd, &msrs)).collect::<Result<_>>()?;
        Ok(PowerOn { vm: VmState::save(vm)?, vcpus, msrs })
    }

    /// Resets it; no vCPU runs. Returns what [`VE_APF_MSR_EN`] was.
    pub fn restore<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
    ) -> Result<Vec<Option<u64>>> {
        let one = |(state, fd): (&VcpuState, &VcpuFd)| {
            let en = VcpuState::save(fd, &self.msrs)?.msr(VE_APF_MSR_EN);
            state.load(fd).map(|()| en)
        };
        let en = self.vcpus.iter().zip(vcpus).map(one).collect::<Result<_>>()?;
        self.vm.load(vm)?;
        Ok(en)
    }
}
