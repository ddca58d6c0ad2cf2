//! What do vCPUs execute for a missing page? Tasks work for a while, touch the next missing page of their vCPU, and so on;
//! there are enough of them to keep every vCPU busy while pages are on their way, until its last page.
//!
//! Both are done in system calls: whoever interrupts a vCPU interrupts its kernel. QEMU may deliver an interrupt twice (docs/notes/0004),
//! which a kernel survives there, but not on its way in from user mode.
//!
//! First on one vCPU, the others idle, then with as many tasks on each of two, and so on. Options: `tasks` (on each vCPU), `pages` (of a vCPU,
//! for each of its tasks), `work` (random bytes that the kernel makes before each touch).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;

use super::kernel_io::{source_file, whole};
use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::compute::{own_ns, pin};
use crate::device::Device;
use crate::options::Options;
use crate::section::Section;
use crate::sys;
use crate::tally::{From, Tally};

/// What the kernel writes into a missing page.
const WORD: usize = 8;

/// `rate`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 4)?, options.count("pages", 48)?);
    let bytes = options.count("work", 4096)?;
    let file = Arc::new(source_file("/tmp/source", 1)?);
    let policy = options.policy()?;
    let vcpus = sys::cpu_count();
    device.set_policy(&[], policy)?;
    let arena = Arena::anonymous(device, vcpus * tasks * pages)?;
    let mut random = vec![0; bytes];
    work(&mut random)?;
    let work_us = own_ns(|_| drop(work(&mut random))) / 1000;
    for busy in 1..=vcpus {
        let pools: Vec<Pool> = arena.slices(vcpus).into_iter().take(busy).map(Pool::new).collect();
        let frames: Vec<u64> = pools.iter().flat_map(|pool| pool.slice.frames()).copied().collect();
        device.evict(&frames, 0)?;
        let file = file.clone();
        let team = Team::new(busy * tasks, "rate", None, move |i, tally| {
            pin(Some(i % busy));
            if let Err(error) = pools[i % busy].take(&file, bytes, tally) {
                // Who stops early leaves pages to others, or untouched.
                tally.wrong_bytes += 1;
                println!("l2-init: task {i}: {error}");
            }
        })?;
        // Whatever standard output holds must not be written inside the section.
        io::stdout().flush()?;
        let section = Section::begin(device, options, name)?;
        team.go();
        let tally = team.join();
        let measured = section.end()?;
        let more = json!({
            "busy_vcpus": busy, "pages": pages, "work_us": work_us,
        });
        measured.report(device, name, busy * tasks, policy.max_us, &tally, more);
    }
    Ok(())
}

/// The pages of a vCPU, for whichever of its tasks comes next: none of them is left alone with the last ones.
struct Pool {
    slice: Slice,
    order: Vec<usize>,
    next: AtomicUsize,
}

impl Pool {
    fn new(slice: Slice) -> Self {
        let order = shuffled(slice.count, 0);
        Self { slice, order, next: AtomicUsize::new(0) }
    }

    fn take(&self, file: &File, bytes: usize, tally: &mut Tally) -> io::Result<()> {
        let mut random = vec![0; bytes];
        while let Some(&index) = self.order.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            work(&mut random)?;
            let (fd, to) = (file.as_raw_fd(), self.slice.page(index));
            // SAFETY: `to` is the start of a mapped page of more than WORD bytes that no Rust reference points into.
            let n = tally.touch(From::Kernel, || unsafe { libc::pread(fd, to.cast(), WORD, 0) });
            whole(n, WORD)?;
            tally.wrong_bytes += self.slice.wrong_bytes(index, 0, 1..2);
        }
        Ok(())
    }
}

/// Has the kernel fill `buffer`, which is there.
fn work(buffer: &mut [u8]) -> io::Result<()> {
    // SAFETY: the buffer is writable for its length; the kernel keeps no reference to it.
    let n =
        unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), libc::GRND_INSECURE) };
    whole(n, buffer.len())
}
