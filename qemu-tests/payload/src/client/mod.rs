//! Runs in L1: Debian's own, unmodified QEMU boots L2, whose memory is really missing at times.
//!
//! * [`swap`]: QEMU lives in a memory cgroup smaller than its guest, with a swap device.
//! * [`postcopy`]: L2 moves from one QEMU to another while it runs, its memory after it.
//! * [`snapshots`], [`migrations`], [`resets`]: the same, while L2 is saved and restored, moves, or is reset, over and over.
//! * [`pressed`]: the same, while QEMU is signalled all the time, or gets no more memory.
//! * [`dax`]: L2's persistent memory is a file, which is truncated while L2 uses what is on it.
//! * [`refused`]: L2 cannot move, and stays where it is.
//!
//! In all but `dax` L2 runs the workload `walk`, which verifies every page it touches.

mod backing;
mod cgroup;
pub mod dax;
mod kvm_stats;
mod migration;
pub mod migrations;
pub mod postcopy;
pub mod pressed;
pub mod qemu;
pub mod qmp;
pub mod refused;
pub mod resets;
pub mod snapshots;
pub mod swap;
mod walked;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::plan;

/// What L2's `walk` said at the end, checked for what every client must show, and printed as this client's result.
///
/// `more` is added to the record.
fn conclude(client: &str, walk: &Value, more: Value) -> Result<()> {
    let mut record = json!({"kind": "client", "client": client});
    for source in [walk, &more] {
        let (Some(record), Some(fields)) = (record.as_object_mut(), source.as_object()) else {
            bail!("{client}: {source}: not an object");
        };
        let fields = fields.iter().filter(|(key, _)| *key != "kind");
        record.extend(fields.map(|(key, value)| (key.clone(), value.clone())));
    }
    plan::print(&record);
    Ok(())
}
