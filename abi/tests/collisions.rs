//! Our numbers collide with nothing that KVM has.
//!
//! The kernel's headers come from the tree in `VE_APF_KERNEL_TREE`, or from linux-libc-dev.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use ve_apf_abi::hypercall::VE_APF_HYPERCALL;
use ve_apf_abi::msr::*;
use ve_apf_abi::vm::VE_APF_VM_CAP;

/// MSRs that are ours alone; `EN` and `INT` are KVM's on purpose.
const OWN_MSRS: [u32; 2] = [VE_APF_MSR_CAPS, VE_APF_MSR_VEINFO];

type Constants = BTreeMap<String, u64>;

/// A decimal or hexadecimal number, or `(1 << n)`.
fn number(text: &str) -> Option<u64> {
    let text = text.trim().trim_start_matches('(').trim_end_matches(')');
    if let Some((base, shift)) = text.split_once("<<") {
        return number(base)?.checked_shl(u32::try_from(number(shift)?).ok()?);
    }
    let text = text.trim().trim_end_matches(['U', 'L', 'u', 'l']);
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn defines(header: &Path) -> Constants {
    let text = std::fs::read_to_string(header)
        .unwrap_or_else(|error| panic!("{}: {error}: install linux-libc-dev", header.display()));
    text.lines()
        .filter_map(|line| {
            let line = line.split("/*").next()?.strip_prefix("#define")?.trim_start();
            let (name, value) = line.split_once([' ', '\t'])?;
            Some((name.to_owned(), number(value)?))
        })
        .collect()
}

/// `asm/kvm_para.h` and `linux/kvm_para.h`.
fn headers() -> (Constants, Constants) {
    let (arch, generic) = match std::env::var_os("VE_APF_KERNEL_TREE") {
        Some(tree) => {
            let tree = PathBuf::from(tree);
            let arch = tree.join("arch/x86/include/uapi/asm/kvm_para.h");
            (arch, tree.join("include/uapi/linux/kvm_para.h"))
        }
        None => {
            let dirs = ["/usr/include/x86_64-linux-gnu/asm", "/usr/include/asm"].map(Path::new);
            let dir = dirs.into_iter().find(|dir| dir.exists()).unwrap_or(dirs[0]);
            (dir.join("kvm_para.h"), "/usr/include/linux/kvm_para.h".into())
        }
    };
    (defines(&arch), defines(&generic))
}

fn with_prefix<'a>(all: &'a Constants, prefix: &str) -> Vec<(&'a String, u64)> {
    let found: Vec<_> = all
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, value)| (name, *value))
        .collect();
    assert!(found.len() >= 5, "no {prefix}* constants: has the header's form changed?");
    found
}

#[test]
fn msrs() {
    let (arch, _) = headers();
    let msrs = with_prefix(&arch, "MSR_KVM_");
    for (name, value) in &msrs {
        assert!(OWN_MSRS.iter().all(|own| u64::from(*own) != *value), "{name} is {value:#x}");
    }
    // "Custom MSRs falls in the range 0x4b564d00-0x4b564dff"; upstream counts up from 0.
    for own in OWN_MSRS {
        assert!((0x4b56_4d80..=0x4b56_4dff).contains(&own), "{own:#x}");
    }
    assert_eq!(arch["MSR_KVM_ASYNC_PF_EN"], u64::from(VE_APF_MSR_EN));
    assert_eq!(arch["MSR_KVM_ASYNC_PF_INT"], u64::from(VE_APF_MSR_INT));
}

#[test]
fn enable_bits() {
    let (arch, _) = headers();
    let same = [
        ("KVM_ASYNC_PF_ENABLED", VE_APF_EN_ENABLE),
        ("KVM_ASYNC_PF_SEND_ALWAYS", VE_APF_EN_KERNEL),
        ("KVM_ASYNC_PF_DELIVERY_AS_INT", VE_APF_EN_INTERRUPT),
    ];
    for (name, bit) in same {
        assert_eq!(arch[name], bit, "{name}: the two mean the same");
    }
    let own = VE_APF_EN_SELECT | VE_APF_EN_VERSION_MASK;
    for (name, value) in arch.iter().filter(|(name, _)| name.starts_with("KVM_ASYNC_PF_")) {
        assert_eq!(value & own, 0, "{name} has taken a bit of ours");
    }
}

#[test]
fn hypercall_number() {
    let (_, generic) = headers();
    for (name, value) in with_prefix(&generic, "KVM_HC_") {
        assert_ne!(value, VE_APF_HYPERCALL, "{name}");
        assert!(value < 0x1000, "{name}: upstream no longer counts up from 1");
    }
    assert_eq!(generic["KVM_ENOSYS"], ve_apf_abi::hypercall::VE_APF_ENOSYS.unsigned_abs());
}

#[test]
fn capability_number() {
    let header = match std::env::var_os("VE_APF_KERNEL_TREE") {
        Some(tree) => PathBuf::from(tree).join("include/uapi/linux/kvm.h"),
        None => "/usr/include/linux/kvm.h".into(),
    };
    for (name, value) in with_prefix(&defines(&header), "KVM_CAP_") {
        assert_ne!(value, VE_APF_VM_CAP, "{name}");
        assert!(value < 0x1000, "{name}: upstream no longer counts up from 1");
    }
}

/// kvm-bindings has no constant, of whatever meaning, with the value of a number of ours that a
/// VMM could come across.
#[test]
fn kvm_bindings() {
    let source = kvm_bindings_source();
    let text = std::fs::read_to_string(&source).expect("the registry's copy can be read");
    let constants: Constants = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().strip_prefix("pub const ")?.split_once(':')?;
            let value = rest.split_once('=')?.1.trim_end_matches(';');
            Some((name.to_owned(), number(value)?))
        })
        .collect();
    assert!(constants.len() > 500, "{} constants in {}", constants.len(), source.display());
    assert_eq!(constants["KVM_API_VERSION"], u64::from(kvm_bindings::KVM_API_VERSION));
    for own in OWN_MSRS.map(u64::from).into_iter().chain([VE_APF_HYPERCALL]) {
        let taken: Vec<_> = constants.iter().filter(|(_, value)| **value == own).collect();
        assert!(taken.is_empty(), "{own:#x}: {taken:?}");
    }
}

/// Where cargo keeps the crate that this test is linked with.
fn kvm_bindings_source() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"])
        .args(["--offline", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    let metadata = String::from_utf8(output.stdout).expect("JSON");
    let manifest = metadata
        .split('"')
        .find(|text| text.contains("/kvm-bindings-") && text.ends_with("/Cargo.toml"))
        .expect("kvm-bindings is a dependency of this test");
    Path::new(manifest).with_file_name("src").join("x86_64/bindings.rs")
}
