//! Hypercalls with arguments of the test's choice, by the guest's kernel.
//!
//! Options: `calls`: a list like `0x5645:99,0x5645:1:62`, number and arguments. Reports RAX of each under `answers`.

use anyhow::Result;
use serde_json::json;

use crate::device::Device;
use crate::options::Options;
use crate::{dmesg, selftest};

/// `hypercall`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let calls = options.text("calls", "");
    let answers = calls
        .split(',')
        .filter(|call| !call.is_empty())
        .map(|call| selftest::hypercall(&call.replace(':', " ")))
        .collect::<Result<Vec<i64>>>()?;
    let bad = dmesg::bad_lines();
    let record = json!({
        "kind": "result", "workload": name, "answers": answers, "bad": bad.len(), "bad_lines": bad,
    });
    device.report("", &record);
    Ok(())
}
