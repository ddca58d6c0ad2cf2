//! A guest that breaks its own ring: the host must stop this VM, saying what it found, and nothing else may happen.
//!
//! The program makes a page of its own the ring of the CPU it runs on, puts a slot into it whose state no version of the
//! protocol knows, and has the kernel submit the slot. Option: `state` (9).

use std::os::unix::fs::FileExt;

use anyhow::{Result, bail};

use super::msr;
use crate::arena::Arena;
use crate::device::Device;
use crate::options::Options;
use crate::{selftest, sys};

/// Version 1, selected, interrupt, kernel mode, enabled.
const EN_BITS: u64 = 0x11b;
/// Of the first slot, in words.
const SLOT: usize = 0x80 / 8;

/// `break_ring`.
pub(super) fn run(_: &str, options: &Options, device: &Device) -> Result<()> {
    let state = options.number("state", 9)?;
    sys::pin_to(0)?;
    let arena = Arena::anonymous(device, 1)?;
    let slice = arena.slices(1).remove(0);
    slice.write(0, 0, 1);
    // Reason 48 in the low half, generation 5 and the state in the high one.
    slice.write(0, SLOT, (5 << 8 | state) << 32 | 48);
    let en = slice.frames()[0] << 12 | EN_BITS;
    msr::open(0)?.write_all_at(&en.to_le_bytes(), msr::EN)?;
    let answer = selftest::hypercall("0x5645 1 0")?;
    bail!("the host answered {answer} to a slot in state {state}");
}
