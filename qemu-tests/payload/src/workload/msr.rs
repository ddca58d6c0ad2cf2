//! Reads and writes MSRs through the kernel's msr device, and tells which were refused.
//!
//! Options: `msrs`: a list like `0x4b564d02,0x4b564d02:0x13,0x4b564d02`, where `:VALUE` writes; `cpu` (0).

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::device::Device;
use crate::options::Options;
use crate::{dmesg, plan};

/// MSR_KVM_ASYNC_PF_EN.
pub(super) const EN: u64 = 0x4b56_4d02;

/// One access.
#[derive(Debug, PartialEq, Eq)]
struct Access {
    msr: u32,
    write: Option<u64>,
}

/// `msr`.
pub(super) fn run(options: &Options, device: Option<&Device>) -> Result<()> {
    let accesses = parse(options.text("msrs", ""))?;
    let cpu = options.number("cpu", 0)?;
    let file = open(cpu)?;
    let done: Vec<Value> = accesses.iter().map(|access| perform(&file, access)).collect();
    let refused = done.iter().filter(|access| !access["errno"].is_null()).count();
    let bad = dmesg::bad_lines();
    let record = json!({
        "kind": "result", "workload": "msr", "cpu": cpu, "accesses": done, "refused": refused,
        "bad": bad.len(), "bad_lines": bad,
    });
    match device {
        Some(device) => device.report("", &record),
        None => plan::print(&record),
    }
    Ok(())
}

pub(super) fn open(cpu: u64) -> Result<File> {
    const MSR_MAJOR: u32 = 202;
    let path = std::ffi::CString::new(format!("/tmp/msr{cpu}"))?;
    let dev = libc::makedev(MSR_MAJOR, u32::try_from(cpu)?);
    // SAFETY: the path is NUL-terminated and lives through the call. If it exists already, so much the better.
    unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, dev) };
    let path = path.to_str()?;
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("{path} (CONFIG_X86_MSR)"))
}

/// What enables asynchronous page faults on `cpu`: for ve-apf, the address of its ring and flags.
pub(super) fn en(cpu: u64) -> Result<u64> {
    let mut raw = [0; 8];
    open(cpu)?.read_exact_at(&mut raw, EN)?;
    Ok(u64::from_le_bytes(raw))
}

fn perform(file: &File, access: &Access) -> Value {
    let at = access.msr.into();
    let (value, result) = match access.write {
        Some(value) => (Some(value), file.write_all_at(&value.to_le_bytes(), at)),
        None => {
            let mut raw = [0; 8];
            let result = file.read_exact_at(&mut raw, at);
            (result.is_ok().then_some(u64::from_le_bytes(raw)), result)
        }
    };
    json!({
        "msr": format!("{:#x}", access.msr),
        "op": if access.write.is_some() { "write" } else { "read" },
        "value": value.map(|value| format!("{value:#x}")),
        "errno": result.err().map(|error| error.raw_os_error().unwrap_or(-1)),
    })
}

fn parse(list: &str) -> Result<Vec<Access>> {
    list.split(',').filter(|word| !word.is_empty()).map(parse_one).collect()
}

fn parse_one(word: &str) -> Result<Access> {
    let (msr, value) = word.split_once(':').map_or((word, None), |(msr, value)| (msr, Some(value)));
    let write = value.map(number).transpose()?;
    let msr = u32::try_from(number(msr)?).with_context(|| format!("veapf.msrs: {word}"))?;
    Ok(Access { msr, write })
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("veapf.msrs: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list() -> Result<()> {
        let expected =
            [Access { msr: 0x4b56_4d02, write: None }, Access { msr: 16, write: Some(0x13) }];
        assert_eq!(parse("0x4b564d02,16:0x13")?, expected);
        for bad in ["x", "1:y", "0x100000000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
