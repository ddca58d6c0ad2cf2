//! Memory that comes online movable is declared to the host, and withdrawn before it goes offline.
//!
//! Options: `at` (MiB, where the guest's own memory ends because of `mem=`: the VMM has more), `pages`. `ranges` are the
//! declared pages before the block was online, while it was, and after; faults are taken in between.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;
use ve_apf_testdev::PAGE_WORDS;

use crate::arena::Arena;
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::selftest;
use crate::tally::{From, Tally};

const MEMORY: &str = "/sys/devices/system/memory";

/// `memory_hotplug`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let at = options.number("at", 256)? << 20;
    let block = block_size()?;
    anyhow::ensure!(at % block == 0, "veapf.at: not a multiple of {} MiB", block >> 20);

    let before = declared_pages()?;
    fs::write(format!("{MEMORY}/probe"), format!("{at:#x}")).context("CONFIG_ARCH_MEMORY_PROBE")?;
    let state = format!("{MEMORY}/memory{}/state", at / block);
    fs::write(&state, "online_movable").with_context(|| format!("{state}: online_movable"))?;
    let online = declared_pages()?;

    let pages = options.count("pages", 64)?;
    let policy = options.policy()?;
    let arena = Arena::anonymous(device, pages)?;
    let inside = |frame: &&u64| (at..at + block).contains(&(**frame << 12));
    let in_block = arena.frames.iter().filter(inside).count();
    device.set_policy(&[], policy)?;
    device.evict(&arena.frames, 0)?;
    let section = Section::begin(device, options, name)?;
    let mut tally = Tally::default();
    for slice in arena.slices(1) {
        for index in 0..pages {
            let touch = || slice.wrong_bytes(index, 0, 0..PAGE_WORDS);
            let wrong = tally.touch(From::User, touch);
            tally.wrong_bytes += wrong;
        }
    }
    let measured = section.end()?;

    // The arena's pages move to other memory.
    fs::write(&state, "offline").with_context(|| format!("{state}: offline"))?;
    let after = declared_pages()?;
    let more = json!({
        "block_pages": block >> 12, "in_block": in_block,
        "ranges": { "before": before, "online": online, "after": after },
    });
    measured.report(device, name, 1, policy.max_us, &tally, more);
    Ok(())
}

fn block_size() -> Result<u64> {
    let path = format!("{MEMORY}/block_size_bytes");
    let text = fs::read_to_string(&path).context("CONFIG_MEMORY_HOTPLUG")?;
    u64::from_str_radix(text.trim(), 16).context(path)
}

fn declared_pages() -> Result<u64> {
    Ok(selftest::ranges()?.iter().map(|frames| frames.end - frames.start).sum())
}
