//! A cgroup of its own for the children.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const ROOT: &str = "/sys/fs/cgroup";
const DIR: &str = "/sys/fs/cgroup/parked";

/// Removed when dropped.
pub(super) struct Cgroup;

impl Cgroup {
    /// With these processes in it; they may be asleep.
    pub(super) fn new(members: &[i32]) -> Result<Cgroup> {
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory")
            .context("cgroup: +memory")?;
        fs::create_dir_all(DIR).context(DIR)?;
        let cgroup = Cgroup;
        for pid in members {
            cgroup.set("cgroup.procs", &pid.to_string())?;
        }
        Ok(cgroup)
    }

    /// Writes a file.
    pub(super) fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = format!("{DIR}/{file}");
        fs::write(&path, value).with_context(|| format!("{path}: {value}"))
    }

    /// A field of a file of lines `KEY VALUE`.
    pub(super) fn get(&self, file: &str, key: &str) -> Result<u64> {
        let path = format!("{DIR}/{file}");
        let text = fs::read_to_string(&path).context(path.clone())?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
        value.with_context(|| format!("{path}: no {key}"))
    }

    /// Removes it; whoever was in it has ended.
    pub(super) fn remove(self) -> Result<()> {
        let began = Instant::now();
        // The last task may still be on its way out.
        while let Err(error) = fs::remove_dir(DIR) {
            if began.elapsed() > Duration::from_secs(2) {
                bail!("{DIR}: {error}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}
