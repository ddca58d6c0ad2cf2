//! read() of a tmpfs file whose page cache is missing, into a buffer that is present.
//!
//! Options: `tasks`, `pages` (of each task), `rounds`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::kernel_io::whole;
use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::compute::own_ns;
use crate::device::Device;
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::sys::PAGE;
use crate::tally::{From, Tally};

/// `page_cache`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let (tasks, pages) = (options.count("tasks", 8)?, options.count("pages", 32)?);
    let rounds = options.number("rounds", 1)?;
    let policy = options.policy()?;
    let (arena, file) = Arena::page_cache(device, "/tmp/page_cache", tasks * pages)?;
    let slices = arena.slices(tasks);
    let file = Arc::new(file);
    // What these pages hold is not the pager's yet, so what is said of that does not count.
    let (mut copy, mut any) = (vec![1; PAGE], Tally::default());
    let own_ns = own_ns(|i| {
        if let Some(slice) = slices.first() {
            read_page(&file, slice, i % pages, i % pages, 0, &mut copy, &mut any);
        }
    });
    device.set_policy(&[], policy)?;
    device.evict(&arena.frames, 0)?;
    let again = device.clone();
    let team = Team::new(tasks, "cache", pinned(options)?, move |i, tally| {
        let slice = &slices[i];
        let mut copy = vec![1u8; PAGE];
        for round in 0..rounds {
            if round > 0 {
                if let Err(error) = again.evict(slice.frames(), round) {
                    println!("l2-init: evict: {error:#}");
                    return;
                }
            }
            for index in shuffled(slice.count, i as u64 + round * 1000) {
                read_page(&file, slice, i * pages + index, index, round, &mut copy, tally);
            }
        }
    })?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let mut tally = team.join();
    let measured = section.end()?;
    tally.own_ns = own_ns * tally.kernel_faults;
    measured.report(
        device,
        name,
        tasks,
        policy.max_us,
        &tally,
        json!({"pages": pages, "rounds": rounds}),
    );
    Ok(())
}

/// Reads page `at` of the file, which is page `index` of the slice, and compares it.
fn read_page(
    file: &File,
    slice: &Slice,
    at: usize,
    index: usize,
    round: u64,
    copy: &mut [u8],
    tally: &mut Tally,
) {
    let (fd, to, at_byte) = (file.as_raw_fd(), copy.as_mut_ptr(), (at * PAGE) as libc::off_t);
    // SAFETY: `copy` has PAGE bytes and is not used meanwhile.
    let n = tally.touch(From::Kernel, || unsafe { libc::pread(fd, to.cast(), PAGE, at_byte) });
    if let Err(error) = whole(n, PAGE) {
        println!("l2-init: page {at}: {error}");
        copy.fill(0);
    }
    tally.wrong_bytes += slice.wrong_in_copy(index, round, copy);
}
