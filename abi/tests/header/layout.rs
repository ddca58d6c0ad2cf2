//! A C file of assertions, made from the Rust layouts and numbers, compiled against the header.

use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;
use std::process::Command;
use ve_apf_abi::hypercall::*;
use ve_apf_abi::msr::*;
use ve_apf_abi::ring::*;
use ve_apf_abi::ve_info::*;
use ve_apf_abi::vm::*;
use ve_apf_abi::word::*;

macro_rules! layout {
    ($out:ident, $rust:ident, $c:literal, $($field:ident),+) => {
        let c = concat!("struct ", $c);
        assert_c($out, &format!("sizeof({c}) == {}", size_of::<$rust>()));
        assert_c($out, &format!("_Alignof({c}) == {}", align_of::<$rust>()));
        $(assert_c($out, &format!(
            "__builtin_offsetof({c}, {}) == {}", stringify!($field), offset_of!($rust, $field)
        ));)+
    };
}

macro_rules! numbers {
    ($out:ident, $($name:ident),+ $(,)?) => {
        $(assert_c($out, &format!("{} == {}", stringify!($name), c_literal($name.into()))));+
    };
}

fn c_literal(value: i128) -> String {
    format!("{value}{}", if value > i128::from(i64::MAX) { "ULL" } else { "LL" })
}

fn assert_c(out: &mut String, condition: &str) {
    writeln!(out, "_Static_assert({condition}, \"{condition}\");").expect("a String");
}

fn assertions(out: &mut String) {
    layout! {
        out, Ring, "ve_apf_ring", active, submitted, reserved_guest, completed, injected,
        host_flags, epoch, reserved_host, slots
    }
    layout! {
        out, Slot, "ve_apf_slot", reason, word, qualification, gla, gpa, eptp_index, flags, cause,
        reserved
    }
    layout! {
        out, VeInfo, "ve_apf_ve_info", reason, busy, qualification, gla, gpa, eptp_index, reserved
    }
    numbers! {
        out,
        VE_APF_MSR_EN, VE_APF_MSR_INT, VE_APF_MSR_CAPS, VE_APF_MSR_VEINFO,
        VE_APF_VEINFO_ENABLE, VE_APF_VEINFO_PAGE_MASK,
        VE_APF_EN_ENABLE, VE_APF_EN_KERNEL, VE_APF_EN_INTERRUPT, VE_APF_EN_SELECT,
        VE_APF_EN_VERSION_SHIFT, VE_APF_EN_VERSION_MASK, VE_APF_EN_RING_MASK, VE_APF_EN_RESERVED,
        VE_APF_ABI_VERSION, VE_APF_CAPS_SIGNATURE, VE_APF_VECTOR_MIN, VE_APF_VE_VECTOR,
        VE_APF_CAPS_INJECTED, VE_APF_CAPS_HARDWARE,
        VE_APF_HYPERCALL, VE_APF_OP_SUBMIT, VE_APF_OP_SUSPEND, VE_APF_OP_STATUS, VE_APF_OP_RANGE,
        VE_APF_RANGE_WITHDRAW,
        VE_APF_QUEUED, VE_APF_RESOLVED, VE_APF_FAIL, VE_APF_UNKNOWN, VE_APF_ENOSYS, VE_APF_EINVAL,
        VE_APF_E2BIG,
        VE_APF_SLOTS, VE_APF_SLOT_MASK, VE_APF_RING_SIZE, VE_APF_HOST_POLLING,
        VE_APF_SLOT_HARDWARE, VE_APF_SLOT_GLA_VALID,
        VE_APF_CAUSE_NONE, VE_APF_CAUSE_GONE, VE_APF_CAUSE_POISON, VE_APF_CAUSE_DEADLINE,
        VE_APF_QUAL_READ, VE_APF_QUAL_WRITE, VE_APF_QUAL_FETCH, VE_APF_QUAL_GLA_VALID,
        VE_APF_VE_BUSY, VE_APF_REASON_EPT_VIOLATION,
        VE_APF_STATE_NONE, VE_APF_STATE_CAN_CONTINUE, VE_APF_STATE_SUSPEND_ME,
        VE_APF_STATE_RESOLVED, VE_APF_STATE_FAIL, VE_APF_GENERATIONS,
        VE_APF_VM_CAP, VE_APF_VM_FAIL_POISON, VE_APF_VM_KNOWN, VE_APF_VM_DEADLINE_MAX_NS,
    }
}

/// Every `#define` of the header must be among the numbers above, or a new one goes unasserted.
fn all_asserted(header: &str, source: &str) {
    for line in header.lines() {
        let Some(name) = line.strip_prefix("#define VE_APF_") else { continue };
        let name = name.split([' ', '(']).next().unwrap_or_default();
        if name == "ALIGNED" {
            continue;
        }
        let assertion = format!("_Static_assert(VE_APF_{name} ==");
        assert!(source.contains(&assertion), "VE_APF_{name}: add it to tests/header/layout.rs");
    }
}

pub(crate) fn check(header: &str) {
    let mut source = header.to_owned();
    assertions(&mut source);
    all_asserted(header, &source);

    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout.c");
    std::fs::write(&file, &source).expect("the target directory can be written");
    for standard in ["-std=c11", "-std=gnu11"] {
        let output = Command::new("cc")
            .args([standard, "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
            .arg(&file)
            .output()
            .expect("a C compiler: install gcc");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "C and Rust disagree:\n{messages}");
    }
}
