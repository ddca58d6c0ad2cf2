//! CPUID of a vCPU: what KVM supports, with its paravirtual features, without XSAVE, and a topology of one package of
//! single-threaded cores.
//!
//! Why no XSAVE: QEMU's TCG (7.2) lets a guest's XSETBV through without the exit that KVM asked for. KVM then believes
//! XCR0 is 1 and loads that at the next entry, so XSAVE in the guest silently leaves the SSE registers out.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1 ECX: TSC deadline timer. KVM leaves it to user space to offer it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const HTT: u32 = 1 << 28;

/// Leaf 1 ECX: FMA, XSAVE, OSXSAVE, AVX, F16C.
const XSAVE_1_ECX: u32 = 1 << 12 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
/// Leaf 7 EBX: AVX2, MPX, AVX-512.
const XSAVE_7_EBX: u32 = 1 << 5 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 0xd << 26 | 3 << 30;
/// Leaf 7 ECX: AVX-512, PKU, OSPKE, VAES, VPCLMULQDQ.
const XSAVE_7_ECX: u32 =
    1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
/// Leaf 7 EDX: AVX-512, AMX.
const XSAVE_7_EDX: u32 = 1 << 2 | 1 << 3 | 1 << 8 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25;
/// Leaf 0x8000_0001 ECX: XOP, FMA4.
const XSAVE_EXT_ECX: u32 = 1 << 11 | 1 << 16;

/// KVM's paravirtual features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Leaf 0x4000_0001 EAX: `KVM_FEATURE_PV_EOI`.
const PV_EOI: u32 = 1 << 6;

/// What a vCPU is offered or not.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// The local APIC's timer in TSC deadline mode.
    pub tsc_deadline: bool,
    /// The end of an interrupt in memory, without an exit.
    pub pv_eoi: bool,
}

/// Adapts the supported leaves to vCPU `id` of `count`.
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8, offered: Offered) -> CpuId {
    let mut cpuid = supported.clone();
    let id_bits = u32::from(count).next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | u32::from(count) << 16 | u32::from(id) << 24;
                entry.ecx |= X2APIC | HYPERVISOR;
                if offered.tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.ecx &= !XSAVE_1_ECX;
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Intel, deterministic caches: cores in the package, and no shared threads.
            0x4 if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | (u32::from(count) - 1) << 26;
            }
            0x7 if entry.index == 0 => {
                entry.ebx &= !XSAVE_7_EBX;
                entry.ecx &= !XSAVE_7_ECX;
                entry.edx &= !XSAVE_7_EDX;
            }
            0x7 | 0xd => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 => entry.ecx &= !XSAVE_EXT_ECX,
            0xb | 0x1f => topology(entry, id, count, id_bits),
            0x8000_0008 => entry.ecx = (u32::from(count) - 1) | (id_bits << 12),
            0x8000_001e => {
                entry.eax = id.into();
                entry.ebx = id.into();
                entry.ecx = 0;
            }
            KVM_FEATURES if !offered.pv_eoi => entry.eax &= !PV_EOI,
            _ => {}
        }
    }
    cpuid
}

/// Leaf 0xb: level 0 is the thread, level 1 the core.
fn topology(entry: &mut kvm_cpuid_entry2, id: u8, count: u8, id_bits: u32) {
    let (shift, logical, kind) = match entry.index {
        0 => (0, 1, 1),
        1 => (id_bits, count.into(), 2),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = logical;
    entry.ecx = entry.index | kind << 8;
    entry.edx = id.into();
}
