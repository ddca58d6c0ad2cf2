//! KVM's binary statistics (KVM_GET_STATS_FD): read by name, whatever names there are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use numbers::KVM_GET_STATS_FD;
use vmm_sys_util::ioctl::ioctl;

use crate::sys;

mod numbers {
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(KVM_GET_STATS_FD, 0xae, 0xce);
}

const HEADER_LEN: usize = 24;
const DESC_LEN: usize = 16;

/// How a value changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cumulative,
    /// The current or the highest value: a difference says nothing.
    Level,
}

#[derive(Debug, PartialEq, Eq)]
struct Desc {
    name: String,
    kind: Kind,
    offset: u64,
}

/// The statistics file of a VM or a vCPU. Histograms are left out: they repeat sums that are there.
pub struct Stats {
    file: File,
    descs: Vec<Desc>,
}

impl Stats {
    /// Opens the statistics of a VM or vCPU file descriptor.
    pub fn open(fd: &impl AsRawFd) -> io::Result<Stats> {
        // SAFETY: the ioctl takes no argument; any descriptor is fine, a wrong one gives an error.
        let raw = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
        let file = unsafe { File::from_raw_fd(raw) };
        // KVM makes it without, and it keeps the VM.
        sys::close_on_exec(&file)?;
        let descs = read_descs(&file)?;
        Ok(Stats { file, descs })
    }

    /// Adds the counters to `into`, by name.
    pub fn add_to(&self, into: &mut BTreeMap<String, u64>) -> io::Result<()> {
        for desc in self.descs.iter().filter(|desc| desc.kind == Kind::Cumulative) {
            let mut raw = [0; 8];
            self.file.read_exact_at(&mut raw, desc.offset)?;
            *into.entry(desc.name.clone()).or_default() += u64::from_le_bytes(raw);
        }
        Ok(())
    }
}

fn read_descs(file: &impl FileExt) -> io::Result<Vec<Desc>> {
    let mut header = [0; HEADER_LEN];
    file.read_exact_at(&mut header, 0)?;
    let [_, name_size, count, _, desc_at, data_at] = words(&header);
    let step = DESC_LEN + name_size as usize;
    let mut raw = vec![0; step * count as usize];
    file.read_exact_at(&mut raw, desc_at.into())?;
    Ok(raw.chunks_exact(step).filter_map(|one| parse_desc(one, data_at)).collect())
}

fn words<const N: usize>(raw: &[u8]) -> [u32; N] {
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(raw.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    out
}

/// struct kvm_stats_desc: flags, exponent and size (16 bits each), offset, bucket size, name.
fn parse_desc(raw: &[u8], data_at: u32) -> Option<Desc> {
    let [flags, exponent_size, offset, _]: [u32; 4] = words(raw);
    let kind = match flags & 0xf {
        0 => Kind::Cumulative,
        1 | 2 => Kind::Level,
        _ => return None,
    };
    if exponent_size >> 16 != 1 {
        return None;
    }
    let name = raw.get(DESC_LEN..)?.split(|byte| *byte == 0).next()?;
    let offset = u64::from(data_at) + u64::from(offset);
    Some(Desc { name: String::from_utf8_lossy(name).into_owned(), kind, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desc(flags: u32, size: u32, offset: u32, name: &str) -> Vec<u8> {
        let mut raw: Vec<u8> =
            [flags, size << 16, offset, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        raw.extend_from_slice(name.as_bytes());
        raw.resize(DESC_LEN + 16, 0);
        raw
    }

    #[test]
    fn descriptors() {
        let exits = parse_desc(&desc(0, 1, 8, "exits"), 100);
        assert_eq!(exits, Some(Desc { name: "exits".into(), kind: Kind::Cumulative, offset: 108 }));
        assert_eq!(parse_desc(&desc(0x11, 1, 0, "blocking"), 0).map(|d| d.kind), Some(Kind::Level));
        assert_eq!(parse_desc(&desc(4, 32, 0, "halt_wait_hist"), 0), None);
    }
}
