//! What L1 is: prints one `machine` record with KVM's vendor module, its parameters, and what the CPU can do for #VE.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::json;
use ve_apf_payload::{plan, sys};

/// IA32_VMX_PROCBASED_CTLS2; the upper half says which controls may be 1.
const VMX_PROCBASED_CTLS2: u64 = 0x48b;
/// "EPT-violation #VE" among them.
const EPT_VIOLATION_VE: u64 = 1 << (32 + 18);

fn main() {
    // The one whose CPU is not there did not come up, and has no directory.
    let found = ["kvm_intel", "kvm_amd"].into_iter().find_map(|m| Some((m, parameters(m)?)));
    let (module, parameters) = found.unzip();
    plan::print(&json!({
        "kind": "machine",
        "cpus": sys::cpus_online(),
        "module": module,
        "parameters": parameters,
        "ept_violation_ve": msr(VMX_PROCBASED_CTLS2).is_some_and(|v| v & EPT_VIOLATION_VE != 0),
    }));
}

fn parameters(module: &str) -> Option<BTreeMap<String, String>> {
    let files = fs::read_dir(format!("/sys/module/{module}/parameters")).ok()?;
    let read = |path: std::path::PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        Some((name, fs::read_to_string(&path).ok()?.trim().to_owned()))
    };
    Some(files.filter_map(|f| read(f.ok()?.path())).collect())
}

/// None on a CPU that does not have it.
fn msr(index: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/cpu/0/msr").ok()?.read_exact_at(&mut bytes, index).ok()?;
    Some(u64::from_le_bytes(bytes))
}
