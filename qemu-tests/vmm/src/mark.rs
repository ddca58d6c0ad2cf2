//! Marks frames of guest memory that nobody should write any more, and finds out whether somebody did.

use std::sync::{Arc, Mutex};

use ve_apf_testdev::{Mark, PAGE_SIZE, Run};
use vm_memory::{Bytes, GuestAddress};

use crate::counters::lock;
use crate::memory::Ram;

/// Every word of a marked frame.
const WORD: [u8; 8] = *b"not you!";

/// The frames.
pub struct Marks {
    ram: Arc<Ram>,
    runs: Mutex<Vec<Run>>,
}

impl Marks {
    /// None yet.
    pub fn new(ram: Arc<Ram>) -> Marks {
        Marks { ram, runs: Mutex::default() }
    }

    /// Carries out [`ve_apf_testdev::Op::Mark`]; returns its results.
    pub fn command(&self, what: u64, runs: &[Run]) -> Result<[u64; 4], i32> {
        match Mark::from_u64(what).ok_or(libc::EINVAL)? {
            Mark::Remember => lock(&self.runs).extend(runs),
            Mark::Fill => drop(self.fill()?),
            Mark::Check => return self.check(),
        }
        Ok([0; 4])
    }

    /// Fills all of them; returns which those are.
    pub fn fill(&self) -> Result<Vec<Run>, i32> {
        let runs = lock(&self.runs).clone();
        let page = WORD.repeat(PAGE_SIZE / WORD.len());
        for at in frames(&runs) {
            self.ram.mem.write_slice(&page, at).map_err(|_| libc::EFAULT)?;
        }
        Ok(runs)
    }

    fn check(&self) -> Result<[u64; 4], i32> {
        let runs = lock(&self.runs);
        let mut changed = 0;
        let mut page = [0; PAGE_SIZE];
        for at in frames(&runs) {
            self.ram.mem.read_slice(&mut page, at).map_err(|_| libc::EFAULT)?;
            let wrong = page.iter().zip(WORD.iter().cycle()).filter(|(is, was)| is != was);
            changed += wrong.count() as u64;
        }
        Ok([changed, runs.iter().map(|run| run.count).sum(), 0, 0])
    }
}

fn frames(runs: &[Run]) -> impl Iterator<Item = GuestAddress> + use<'_> {
    runs.iter().flat_map(|run| run.frames()).map(|gfn| GuestAddress(gfn * PAGE_SIZE as u64))
}
