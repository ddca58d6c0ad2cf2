//! A second copy of every number. A test that fails here says that the ABI changed.
//!
//! ABI v1, once frozen, never changes: see section 3 of docs/architecture.md and docs/abi.md. The answer to a
//! failure is to take the change back, or a new feature bit, or bytes of the reserved ones; not
//! to edit the number here.

use ve_apf_abi::hypercall::*;
use ve_apf_abi::msr::*;
use ve_apf_abi::ring::*;
use ve_apf_abi::ve_info::*;
use ve_apf_abi::vm::*;
use ve_apf_abi::word::*;

const READ: &str = "the ABI changed: read docs/abi.md, \"How it may change\", before anything else";

macro_rules! tripwire {
    ($($name:ident = $value:literal),+ $(,)?) => {
        $(assert_eq!(i128::from($name), $value, "{}: {READ}", stringify!($name)));+
    };
}

#[test]
fn msrs() {
    tripwire! {
        VE_APF_MSR_EN = 0x4b56_4d02,
        VE_APF_MSR_INT = 0x4b56_4d06,
        VE_APF_MSR_CAPS = 0x4b56_4de0,
        VE_APF_MSR_VEINFO = 0x4b56_4de1,
        VE_APF_VEINFO_ENABLE = 1,
        VE_APF_VEINFO_PAGE_MASK = 0xffff_ffff_ffff_f000,
        VE_APF_EN_ENABLE = 0x01,
        VE_APF_EN_KERNEL = 0x02,
        VE_APF_EN_INTERRUPT = 0x08,
        VE_APF_EN_SELECT = 0x10,
        VE_APF_EN_VERSION_SHIFT = 8,
        VE_APF_EN_VERSION_MASK = 0xf00,
        VE_APF_EN_RING_MASK = 0xffff_ffff_ffff_f000,
        VE_APF_EN_RESERVED = 0xe4,
        VE_APF_ABI_VERSION = 1,
        VE_APF_CAPS_SIGNATURE = 0x5665_4146,
        VE_APF_CAPS_INJECTED = 1,
        VE_APF_CAPS_HARDWARE = 2,
        VE_APF_VECTOR_MIN = 32,
        VE_APF_VE_VECTOR = 20,
    }
}

#[test]
fn hypercall() {
    tripwire! {
        VE_APF_HYPERCALL = 0x5645,
        VE_APF_OP_SUBMIT = 1,
        VE_APF_OP_SUSPEND = 2,
        VE_APF_OP_STATUS = 3,
        VE_APF_OP_RANGE = 4,
        VE_APF_RANGE_WITHDRAW = 1,
        VE_APF_QUEUED = 1,
        VE_APF_RESOLVED = 2,
        VE_APF_FAIL = 3,
        VE_APF_UNKNOWN = 4,
        VE_APF_ENOSYS = 1000,
        VE_APF_EINVAL = 22,
        VE_APF_E2BIG = 7,
    }
}

#[test]
fn vm() {
    tripwire! {
        VE_APF_VM_CAP = 0x5645,
        VE_APF_VM_FAIL_POISON = 1,
        VE_APF_VM_KNOWN = 0x4000_0000,
        VE_APF_VM_DEADLINE_MAX_NS = 3_600_000_000_000,
    }
}

#[test]
fn ring() {
    tripwire! {
        VE_APF_SLOTS = 62,
        VE_APF_SLOT_MASK = 0x3fff_ffff_ffff_ffff,
        VE_APF_RING_SIZE = 4096,
        VE_APF_HOST_POLLING = 1,
        VE_APF_SLOT_HARDWARE = 1,
        VE_APF_SLOT_GLA_VALID = 2,
        VE_APF_CAUSE_NONE = 0,
        VE_APF_CAUSE_GONE = 1,
        VE_APF_CAUSE_POISON = 2,
        VE_APF_CAUSE_DEADLINE = 3,
        VE_APF_QUAL_READ = 1,
        VE_APF_QUAL_WRITE = 2,
        VE_APF_QUAL_FETCH = 4,
        VE_APF_QUAL_GLA_VALID = 0x80,
        VE_APF_VE_BUSY = 0xffff_ffff,
        VE_APF_REASON_EPT_VIOLATION = 48,
        VE_APF_STATE_NONE = 0,
        VE_APF_STATE_CAN_CONTINUE = 1,
        VE_APF_STATE_SUSPEND_ME = 2,
        VE_APF_STATE_RESOLVED = 3,
        VE_APF_STATE_FAIL = 4,
        VE_APF_GENERATIONS = 0x0100_0000,
    }
}

/// What the two values look like that both sides compute from the numbers.
#[test]
fn composed() {
    let en = EnValue::new(0x1234_5000, true);
    assert_eq!(en.bits(), 0x1234_511b, "{READ}");
    assert_eq!(EnValue::new(0x1234_5000, false).bits(), 0x1234_5119, "{READ}");
    assert_eq!(EnValue::parse(en.bits()), Ok(Some(en)), "{READ}");
    assert_eq!(caps_value(Caps::INJECTED), 0x5665_4146_0000_0001, "{READ}");
    let word = SlotWord::new(Generation::new(0x00ab_cdef), State::RESOLVED);
    assert_eq!(word.0, 0xabcd_ef03, "{READ}");
}

/// A filled ring, byte for byte.
#[test]
fn golden_bytes() {
    let empty = Slot {
        reason: 0,
        word: 0,
        qualification: 0,
        gla: 0,
        gpa: 0,
        eptp_index: 0,
        flags: 0,
        cause: 0,
        reserved: [0; 26],
    };
    let filled = |index: u32| Slot {
        reason: VE_APF_REASON_EPT_VIOLATION,
        word: SlotWord::new(Generation::new(0x01_0203 + index), State::FAIL).0,
        qualification: VE_APF_QUAL_WRITE,
        gla: 0x7fff_1122_3344,
        gpa: 0x1_8877_6655,
        eptp_index: 0x0102,
        flags: VE_APF_SLOT_GLA_VALID,
        cause: VE_APF_CAUSE_POISON,
        reserved: [0; 26],
    };
    let mut ring = Ring {
        active: 0x2000_0000_0000_0001,
        submitted: 0x0203_0405_0607_0809,
        reserved_guest: [0; 48],
        completed: 0x1011_1213_1415_1617,
        injected: injected_value(SlotIndex::new(61).expect("below 62")),
        host_flags: VE_APF_HOST_POLLING,
        epoch: 0xa1a2_a3a4,
        reserved_host: [0; 44],
        slots: [empty; 62],
    };
    ring.slots[0] = filled(0);
    ring.slots[61] = filled(61);

    let mut golden = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| golden[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &[0x01, 0, 0, 0, 0, 0, 0, 0x20]);
    put(0x08, &[0x09, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02]);
    put(0x40, &[0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x10]);
    put(0x48, &[62, 0, 0, 0, 1, 0, 0, 0, 0xa4, 0xa3, 0xa2, 0xa1]);
    for (at, generation) in [(0x080, 0x03), (0xfc0, 0x40)] {
        put(at, &[48, 0, 0, 0, 4, generation, 0x02, 0x01]);
        put(at + 8, &[2, 0, 0, 0, 0, 0, 0, 0]);
        put(at + 16, &[0x44, 0x33, 0x22, 0x11, 0xff, 0x7f, 0, 0]);
        put(at + 24, &[0x55, 0x66, 0x77, 0x88, 0x01, 0, 0, 0]);
        put(at + 32, &[0x02, 0x01, 2, 0, 2, 0]);
    }
    let bytes = bytes_of(&ring);
    let wrong = bytes.iter().zip(&golden).position(|(is, was)| is != was);
    assert_eq!(wrong, None, "first byte that differs; {READ}");
}

#[expect(unsafe_code, reason = "a layout can only be seen as bytes")]
fn bytes_of(ring: &Ring) -> &[u8] {
    // SAFETY: a Ring is 4096 bytes without padding, as the crate asserts of size and offsets, and
    // the slice lives no longer than the reference.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(ring).cast(), size_of::<Ring>()) }
}
