//! What the kernel has in which of its pages.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h).
const FLAGS: [(u32, &str); 4] = [(26, "page_tables"), (7, "slab"), (12, "anonymous"), (10, "free")];

/// Looks it up.
pub(super) struct Kinds {
    /// Of the kernel's image, by their names in /proc/iomem.
    image: Vec<(String, Range<u64>)>,
    flags: File,
}

impl Kinds {
    pub(super) fn new() -> Result<Kinds> {
        let text = std::fs::read_to_string("/proc/iomem")?;
        let part = |line: &str| {
            let (range, name) = line.trim().split_once(" : Kernel ")?;
            Some((name.to_owned(), super::parse_ram(range)?))
        };
        let image = text.lines().filter_map(part).collect();
        let flags = File::open("/proc/kpageflags").context("CONFIG_PROC_PAGE_MONITOR")?;
        Ok(Kinds { image, flags })
    }

    /// How many there are of each kind.
    pub(super) fn count(&self, frames: &[u64]) -> Result<Value> {
        let mut counts = BTreeMap::<&str, usize>::new();
        for frame in frames {
            *counts.entry(self.of(*frame)?).or_default() += 1;
        }
        Ok(json!(counts))
    }

    fn of(&self, frame: u64) -> Result<&str> {
        if let Some((name, _)) = self.image.iter().find(|(_, frames)| frames.contains(&frame)) {
            return Ok(name);
        }
        let mut raw = [0; 8];
        self.flags.read_exact_at(&mut raw, frame * 8)?;
        let flags = u64::from_le_bytes(raw);
        let known = FLAGS.iter().find(|(bit, _)| flags >> bit & 1 != 0);
        // Stacks, per-CPU areas, what was there before the page allocator.
        Ok(known.map_or("other", |(_, name)| name))
    }
}
