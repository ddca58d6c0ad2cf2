//! What this VMM sets for its whole VM, see `ve_apf_abi::vm`.

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::VmFd;
use ve_apf_abi::vm::{VE_APF_VM_CAP, VE_APF_VM_FAIL_POISON, VE_APF_VM_KNOWN};

/// Sets what is asked for. A host that can not is an error; with nothing asked for it is left alone.
pub fn enable(vm: &VmFd, deadline_ms: Option<u32>, fail_poison: bool) -> Result<()> {
    let Some(cap) = request(deadline_ms, fail_poison)? else { return Ok(()) };
    let known = u64::try_from(vm.check_extension_raw(VE_APF_VM_CAP)).unwrap_or(0);
    check(known, cap.args[0])?;
    vm.enable_cap(&cap).context("KVM_ENABLE_CAP of ve-apf")
}

fn request(deadline_ms: Option<u32>, fail_poison: bool) -> Result<Option<kvm_enable_cap>> {
    if deadline_ms.is_none() && !fail_poison {
        return Ok(None);
    }
    let cap = u32::try_from(VE_APF_VM_CAP)?;
    let mut cap = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
    cap.args[0] = if fail_poison { VE_APF_VM_FAIL_POISON } else { 0 };
    cap.args[1] = 1_000_000 * u64::from(deadline_ms.unwrap_or(0));
    Ok(Some(cap))
}

/// `known` is what KVM_CHECK_EXTENSION said.
fn check(known: u64, flags: u64) -> Result<()> {
    if known & VE_APF_VM_KNOWN == 0 {
        bail!("--deadline-ms, --fail-poison: this host's KVM has no ve-apf");
    }
    ensure!(flags & !known == 0, "--fail-poison: this host's KVM knows ve-apf, but not this");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ve_apf_abi::vm::VE_APF_VM_DEADLINE_MAX_NS;

    #[test]
    fn options_become_arguments() -> Result<()> {
        assert!(request(None, false)?.is_none());
        let args = |cap: Option<kvm_enable_cap>| cap.map(|cap| (cap.cap, cap.flags, cap.args));
        assert_eq!(args(request(Some(250), false)?), Some((0x5645, 0, [0, 250_000_000, 0, 0])));
        assert_eq!(args(request(None, true)?), Some((0x5645, 0, [1, 0, 0, 0])));
        let longest = args(request(Some(3_600_000), true)?);
        assert_eq!(longest, Some((0x5645, 0, [1, VE_APF_VM_DEADLINE_MAX_NS, 0, 0])));
        Ok(())
    }

    #[test]
    fn a_host_without_it_is_an_error() {
        assert!(check(0, 0).is_err());
        assert!(check(VE_APF_VM_KNOWN, VE_APF_VM_FAIL_POISON).is_err());
        assert!(check(VE_APF_VM_KNOWN, 0).is_ok());
        assert!(check(VE_APF_VM_KNOWN | VE_APF_VM_FAIL_POISON, VE_APF_VM_FAIL_POISON).is_ok());
    }
}
