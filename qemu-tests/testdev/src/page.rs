//! The command page's fields.

use crate::{DATA_SIZE, HEADER_SIZE, LABEL_SIZE, MAGIC, PAGE_SIZE};

/// What the device is asked to do. `args` are the page's four 64-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Returns args: version, memory in MiB, number of vCPUs.
    Hello = 1,
    /// Data: runs. These frames may be evicted from now on. The first call hands guest memory to the pager.
    Declare = 2,
    /// Data: runs (none: the default of all frames). Args: see [`PolicyArgs`].
    SetPolicy = 3,
    /// Data: runs. args\[0\]: pattern round; args\[1\]: 0 the pattern comes back, 1 the present content.
    Evict = 4,
    /// Data: runs (none: all). Missing pages are delivered now, asked for or not. Returns args\[0\]: pages delivered.
    Restore = 5,
    /// Label. Takes a snapshot of all counters under this label.
    StatsBegin = 6,
    /// Label. Takes the difference, keeps it for the report with this label, and returns it as JSON in the data area
    /// (cut off at the end of the page if it is longer).
    StatsEnd = 7,
    /// Label, data: JSON text, args\[0\] bit 0: last chunk. Printed as one `@ve-apf` line, joined with the label's counters.
    Report = 8,
    /// args\[0\]: the guest's CLOCK_MONOTONIC in ns. Returns the VMM's in args\[0\].
    SyncClock = 9,
    /// args\[0\]: exit code. Does not return.
    Exit = 10,
    /// Returns args: pages waiting for delivery, pages missing, faults so far, pages delivered so far.
    PagerState = 11,
    /// args\[0\]: 1 starts recording the vCPU threads' scheduling on the VMM's side, 0 stops and prints it.
    Trace = 12,
    /// Data: missing frames in the order in which they were asked for since the last such command, one word each (the
    /// first ones, if they do not fit). Returns args\[0\]: how many.
    FaultLog = 13,
    /// NMIs to the vCPU args\[1\], by args\[0\], see [`Nmi`]. Returns args\[0\]: how many were sent since the last start.
    Nmi = 14,
    /// args\[0\]: one of [`crate::Mmu`], with its args and data. The VM's MMU is walked before and after, all entries of
    /// it. Returns JSON in the data area: these walks, `before` and `after`, and what the operation counts.
    Mmu = 15,
    /// Data: runs. args\[0\]: a [`crate::Loss`], what becomes of these frames.
    Lose = 16,
    /// args\[0\]: 0 the pager dies, and its userfaultfd stays open; 1 a new one takes over, with what is outstanding.
    PagerRun = 17,
    /// Returns args: snapshots that the machine went on from, those that are still to be taken, ns since it went on from the
    /// last one, and pages that came from it.
    Snapshots = 18,
    /// Data: runs. args\[0\]: one of [`crate::Mark`]: was memory written that is nobody's?
    Mark = 19,
}

/// What [`Op::Nmi`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Nmi {
    /// One now: it is pending when the vCPU that asks enters the guest again.
    Once = 0,
    /// From now on one about every args\[2\] microseconds, whatever becomes of them.
    Storm = 1,
    /// As [`Nmi::Storm`], but each only when the 64-bit word at guest-physical address args\[3\] counts all before it.
    Paced = 2,
    /// No more.
    Stop = 3,
}

impl Nmi {
    /// The one with this number.
    pub fn from_u64(value: u64) -> Option<Nmi> {
        [Nmi::Once, Nmi::Storm, Nmi::Paced, Nmi::Stop].into_iter().find(|one| *one as u64 == value)
    }
}

impl Op {
    /// The operation with this number.
    pub fn from_u32(value: u32) -> Option<Op> {
        const ALL: [Op; 19] = [
            Op::Hello,
            Op::Declare,
            Op::SetPolicy,
            Op::Evict,
            Op::Restore,
            Op::StatsBegin,
            Op::StatsEnd,
            Op::Report,
            Op::SyncClock,
            Op::Exit,
            Op::PagerState,
            Op::Trace,
            Op::FaultLog,
            Op::Nmi,
            Op::Mmu,
            Op::Lose,
            Op::PagerRun,
            Op::Snapshots,
            Op::Mark,
        ];
        ALL.into_iter().find(|op| *op as u32 == value)
    }
}

/// Which of the pending pages is delivered when a delivery is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// The one that has waited longest.
    Fifo = 0,
    /// Any.
    Random = 1,
    /// The one that came last.
    Lifo = 2,
}

/// Arguments of [`Op::SetPolicy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyArgs {
    /// Shortest time from request to delivery, in us.
    pub min_us: u32,
    /// Longest time; each request's is drawn uniformly.
    pub max_us: u32,
    /// Which page goes first.
    pub order: Order,
    /// Not delivered before [`Op::Restore`] asks for it.
    pub never: bool,
    /// Requests are held until there are so many, then all delivered together. 0 and 1: off.
    pub burst: u32,
    /// Longest time a request is held for its burst to fill, in us.
    pub hold_us: u32,
}

impl PolicyArgs {
    /// Every request is answered `us` microseconds after it came.
    pub fn fixed(us: u32) -> PolicyArgs {
        PolicyArgs {
            min_us: us,
            max_us: us,
            order: Order::Fifo,
            never: false,
            burst: 0,
            hold_us: 0,
        }
    }

    /// As words of the command page.
    pub fn to_args(self) -> [u64; 4] {
        [
            u64::from(self.min_us) | u64::from(self.max_us) << 32,
            u64::from(self.order as u8) | u64::from(self.never) << 8,
            u64::from(self.burst),
            u64::from(self.hold_us),
        ]
    }

    /// From words of the command page; `None` if one of them is out of range.
    pub fn from_args(args: [u64; 4]) -> Option<PolicyArgs> {
        let [latency, how, burst, hold] = args;
        let min_us = u32::try_from(latency & 0xffff_ffff).ok()?;
        let max_us = u32::try_from(latency >> 32).ok()?;
        let order = match how & 0xff {
            0 => Order::Fifo,
            1 => Order::Random,
            2 => Order::Lifo,
            _ => return None,
        };
        if min_us > max_us || how >> 9 != 0 {
            return None;
        }
        let never = how & 0x100 != 0;
        Some(PolicyArgs {
            min_us,
            max_us,
            order,
            never,
            burst: burst.try_into().ok()?,
            hold_us: hold.try_into().ok()?,
        })
    }
}

/// One command page. It is a copy: either side reads and writes the shared page as a whole.
#[derive(Clone)]
pub struct CommandPage {
    bytes: [u8; PAGE_SIZE],
}

impl CommandPage {
    /// A page that asks for `op`.
    pub fn new(op: Op) -> CommandPage {
        let mut page = CommandPage { bytes: [0; PAGE_SIZE] };
        page.put_u32(0, MAGIC);
        page.put_u32(4, op as u32);
        page
    }

    /// A page as the other side left it.
    pub fn from_bytes(bytes: [u8; PAGE_SIZE]) -> CommandPage {
        CommandPage { bytes }
    }

    /// The whole page.
    pub fn as_bytes(&self) -> &[u8; PAGE_SIZE] {
        &self.bytes
    }

    /// The operation, if magic and number are known.
    pub fn op(&self) -> Option<Op> {
        if self.get_u32(0) == MAGIC { Op::from_u32(self.get_u32(4)) } else { None }
    }

    /// 0 before the device answered, 1 after success, a negative errno after failure.
    pub fn status(&self) -> i32 {
        i32::from_ne_bytes(self.get_u32(8).to_ne_bytes())
    }

    /// Written by the device.
    pub fn set_status(&mut self, status: i32) {
        self.put_u32(8, u32::from_ne_bytes(status.to_ne_bytes()));
    }

    /// The four argument words.
    pub fn args(&self) -> [u64; 4] {
        [self.get_u64(16), self.get_u64(24), self.get_u64(32), self.get_u64(40)]
    }

    /// Sets the four argument words.
    pub fn set_args(&mut self, args: [u64; 4]) {
        for (i, value) in args.into_iter().enumerate() {
            self.put_u64(16 + 8 * i, value);
        }
    }

    /// The label: printable ASCII, anything else ends it.
    pub fn label(&self) -> &str {
        let raw = &self.bytes[64..64 + LABEL_SIZE];
        let end = raw.iter().position(|b| !b.is_ascii_graphic()).unwrap_or(LABEL_SIZE);
        core::str::from_utf8(&raw[..end]).unwrap_or("")
    }

    /// Sets the label, cut to [`LABEL_SIZE`] bytes.
    pub fn set_label(&mut self, label: &str) {
        let n = label.len().min(LABEL_SIZE);
        self.bytes[64..64 + LABEL_SIZE].fill(0);
        self.bytes[64..64 + n].copy_from_slice(&label.as_bytes()[..n]);
    }

    /// The data area's used part; a length the other side got wrong is cut to the page.
    pub fn data(&self) -> &[u8] {
        let len = (self.get_u32(12) as usize).min(DATA_SIZE);
        &self.bytes[HEADER_SIZE..HEADER_SIZE + len]
    }

    /// Sets the data area, cut to [`DATA_SIZE`] bytes; returns how many went in.
    pub fn set_data(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(DATA_SIZE);
        self.bytes[HEADER_SIZE..HEADER_SIZE + n].copy_from_slice(&data[..n]);
        self.put_u32(12, n as u32);
        n
    }

    fn get_u32(&self, at: usize) -> u32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_le_bytes(raw)
    }

    fn get_u64(&self, at: usize) -> u64 {
        let mut raw = [0; 8];
        raw.copy_from_slice(&self.bytes[at..at + 8]);
        u64::from_le_bytes(raw)
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_round_trip() {
        let mut page = CommandPage::new(Op::Report);
        page.set_args([1, 2, 3, u64::MAX]);
        page.set_label("burst16");
        assert_eq!(page.set_data(b"{}"), 2);
        page.set_status(-22);
        let back = CommandPage::from_bytes(*page.as_bytes());
        assert_eq!(back.op(), Some(Op::Report));
        assert_eq!(back.args(), [1, 2, 3, u64::MAX]);
        assert_eq!(back.label(), "burst16");
        assert_eq!(back.data(), b"{}");
        assert_eq!(back.status(), -22);
    }

    #[test]
    fn every_op_has_its_number() {
        for n in 1..=19 {
            assert_eq!(Op::from_u32(n).map(|op| op as u32), Some(n));
        }
        assert_eq!(Op::from_u32(0), None);
        assert_eq!(Op::from_u32(20), None);
    }

    #[test]
    fn hostile_page_is_harmless() {
        let page = CommandPage::from_bytes([0xff; PAGE_SIZE]);
        assert_eq!(page.op(), None);
        assert_eq!(page.data().len(), DATA_SIZE);
        assert_eq!(page.label(), "");
        assert_eq!(PolicyArgs::from_args(page.args()), None);
    }

    #[test]
    fn policy_round_trip() {
        let policy = PolicyArgs {
            min_us: 5,
            max_us: 9,
            order: Order::Lifo,
            never: true,
            burst: 16,
            hold_us: 1000,
        };
        assert_eq!(PolicyArgs::from_args(policy.to_args()), Some(policy));
        let inverted = PolicyArgs { min_us: 9, max_us: 5, ..policy };
        assert_eq!(PolicyArgs::from_args(inverted.to_args()), None);
    }

    #[test]
    fn long_label_and_data_are_cut() {
        let mut page = CommandPage::new(Op::Hello);
        page.set_label("0123456789012345678901234567890123456789");
        assert_eq!(page.label().len(), LABEL_SIZE);
        assert_eq!(page.set_data(&[7; PAGE_SIZE]), DATA_SIZE);
    }
}
