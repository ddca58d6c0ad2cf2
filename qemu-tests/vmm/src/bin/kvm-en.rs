//! What a VMM meets that gives a vCPU the state of one that uses ve-apf, as a restore or a migration does: prints one `result`
//! record. No guest runs.
//!
//! * `set`: how many MSRs KVM took, of one: EN with a ring; `after`: what EN holds then, and `caps` what CAPS reads as.
//! * `blank_set`, `blank_after`: the same for a vCPU whose CPUID has no asynchronous page faults by interrupt, and means it.
//! * `stock_set`: EN as a guest writes it that uses KVM's own asynchronous page faults.
//! * `source_after`: what EN of the first vCPU holds at the end.

use std::process::ExitCode;

use anyhow::{Context, Result};
use kvm_bindings::{
    CpuId, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap,
    kvm_msr_entry,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde_json::json;
use ve_apf_abi::msr::{VE_APF_MSR_CAPS as CAPS, VE_APF_MSR_EN as EN, VE_APF_MSR_INT as INT};
use ve_apf_vmm::memory::Ram;
use ve_apf_vmm::report::Reporter;

/// A vector, as Linux has it.
const VECTOR: u64 = 0xf3;
/// A ring at 1 MiB; version 1, selected, interrupt, kernel mode, enabled.
const RING: u64 = 0x10_0000 | 0x11b;
/// KVM's own word at 1 MiB; interrupt, enabled.
const STOCK: u64 = 0x10_0000 | 0x9;
/// KVM's features, and the one in question, in EAX (Documentation/virt/kvm/x86/cpuid.rst).
const FEATURES: u32 = 0x4000_0001;
const ASYNC_PF_INT: u32 = 1 << 14;

/// A VM with a vCPU that does not run. The memory is the VM's.
struct Machine {
    fd: VcpuFd,
    _vm: VmFd,
    _ram: Ram,
}

impl Machine {
    fn new(kvm: &Kvm, cpuid: &CpuId) -> Result<Machine> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        let ram = Ram::new(4, 1, false)?;
        ram.register(&vm)?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let fd = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
        let machine = Machine { fd, _vm: vm, _ram: ram };
        anyhow::ensure!(machine.set(INT, VECTOR)? == 1, "KVM refuses a vector");
        Ok(machine)
    }

    /// How many MSRs were set.
    fn set(&self, index: u32, data: u64) -> Result<usize> {
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let one = Msrs::from_entries(&[entry]).context("one MSR")?;
        self.fd.set_msrs(&one).context("KVM_SET_MSRS")
    }

    fn get(&self, index: u32) -> Result<Option<u64>> {
        let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
        let mut one = Msrs::from_entries(&[entry]).context("one MSR")?;
        let got = self.fd.get_msrs(&mut one).context("KVM_GET_MSRS")?;
        Ok((got == 1).then(|| one.as_slice()[0].data))
    }
}

fn run() -> Result<()> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let all = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let source = Machine::new(&kvm, &all)?;
    let (set, after, caps) = (source.set(EN, RING)?, source.get(EN)?, source.get(CAPS)?);

    let mut fewer = all.clone();
    for leaf in fewer.as_mut_slice().iter_mut().filter(|leaf| leaf.function == FEATURES) {
        leaf.eax &= !ASYNC_PF_INT;
    }
    let blank = Machine::new(&kvm, &fewer)?;
    let mut enforce =
        kvm_enable_cap { cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
    enforce.args[0] = 1;
    blank.fd.enable_cap(&enforce).context("KVM_CAP_ENFORCE_PV_FEATURE_CPUID")?;
    let record = json!({
        "workload": "kvm_en",
        "set": set,
        "after": after,
        "caps": caps,
        "blank_set": blank.set(EN, RING)?,
        "blank_after": blank.get(EN)?,
        "stock_set": Machine::new(&kvm, &all)?.set(EN, STOCK)?,
        "source_after": source.get(EN)?,
    });
    Reporter::new("", 1).print_value("result", record);
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvm-en: {error:#}");
            ExitCode::FAILURE
        }
    }
}
