//! System calls whose user buffer is missing: the kernel touches it, in code that may sleep.
//!
//! `kernel_read`: read() of a file that is present into a missing page. `kernel_write`: write() from a missing page into
//! a pipe, or with `to=file` into a file. Options: `tasks`, `pages` (of each task), `rounds`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use ve_apf_testdev::{PAGE_WORDS, pattern_base, pattern_word};

use super::team::Team;
use crate::arena::{Arena, Slice, shuffled};
use crate::compute::own_ns;
use crate::device::Device;
use crate::options::Options;
use crate::section::{Section, pinned};
use crate::sys::PAGE;
use crate::tally::{From, Tally};

const HALF: usize = PAGE / 2;
/// "Frame" of the pattern in files, which no guest frame has.
const FILE: u64 = u64::MAX;

/// `kernel_read`.
pub(super) fn run_read(name: &str, options: &Options, device: &Device) -> Result<()> {
    let pages = options.count("pages", 32)?;
    let file = Arc::new(source_file("/tmp/source", pages)?);
    go(name, options, device, "read", move |_, slice, index, round, tally| {
        read_into(&file, slice, index, round, tally)
    })
}

/// `kernel_write`.
pub(super) fn run_write(name: &str, options: &Options, device: &Device) -> Result<()> {
    if options.text("to", "pipe") == "file" {
        return go(name, options, device, "write", |task, slice, index, round, tally| {
            let path = format!("/tmp/sink{task}");
            let file =
                File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            write_to_file(&file, slice, index, round, tally)
        });
    }
    go(name, options, device, "write", |_, slice, index, round, tally| {
        write_to_pipe(slice, index, round, tally)
    })
}

/// A tmpfs file of `pages` pages with a known content; all of it is in the page cache.
pub(super) fn source_file(path: &str, pages: usize) -> Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    for page in 0..pages {
        let base = pattern_base(FILE, page as u64);
        let bytes: Vec<u8> =
            (0..PAGE_WORDS).flat_map(|i| pattern_word(base, i).to_le_bytes()).collect();
        file.write_all_at(&bytes, (page * PAGE) as u64).context(path.to_owned())?;
    }
    Ok(file)
}

/// Reads half a page, so that the other half still shows what the pager delivered.
pub(super) fn read_into(
    file: &File,
    slice: &Slice,
    index: usize,
    round: u64,
    tally: &mut Tally,
) -> io::Result<()> {
    let (fd, to, at) = (file.as_raw_fd(), slice.page(index), (index * PAGE) as libc::off_t);
    // SAFETY: `to` is the start of a mapped page of PAGE > HALF bytes that no Rust reference points into.
    let n = tally.touch(From::Kernel, || unsafe { libc::pread(fd, to.cast(), HALF, at) });
    whole(n, HALF)?;
    let base = pattern_base(FILE, index as u64);
    let wrong = (0..HALF / 8).filter(|i| slice.read(index, *i) != pattern_word(base, *i)).count()
        as u64
        * 8;
    tally.wrong_bytes += wrong + slice.wrong_bytes(index, round, HALF / 8..PAGE_WORDS);
    Ok(())
}

/// Writes a page into a pipe and checks what comes out.
pub(super) fn write_to_pipe(
    slice: &Slice,
    index: usize,
    round: u64,
    tally: &mut Tally,
) -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let (fd, from) = (writer.as_raw_fd(), slice.page(index));
    // SAFETY: `from` is the start of a mapped page of PAGE bytes that no Rust reference points into.
    let n = tally.touch(From::Kernel, || unsafe { libc::write(fd, from.cast(), PAGE) });
    whole(n, PAGE)?;
    let mut copy = vec![0; PAGE];
    reader.read_exact(&mut copy)?;
    tally.wrong_bytes += slice.wrong_in_copy(index, round, &copy);
    Ok(())
}

fn write_to_file(
    file: &File,
    slice: &Slice,
    index: usize,
    round: u64,
    tally: &mut Tally,
) -> io::Result<()> {
    let (fd, from) = (file.as_raw_fd(), slice.page(index));
    // SAFETY: `from` is the start of a mapped page of PAGE bytes that no Rust reference points into.
    let n = tally.touch(From::Kernel, || unsafe { libc::pwrite(fd, from.cast(), PAGE, 0) });
    whole(n, PAGE)?;
    let mut copy = vec![0; PAGE];
    file.read_exact_at(&mut copy, 0)?;
    tally.wrong_bytes += slice.wrong_in_copy(index, round, &copy);
    Ok(())
}

/// The system call moved all of it.
pub(super) fn whole(n: isize, expected: usize) -> io::Result<()> {
    match usize::try_from(n) {
        Ok(n) if n == expected => Ok(()),
        Ok(n) => Err(io::Error::other(format!("{n} bytes instead of {expected}"))),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Runs `one` for each page of each task.
pub(super) fn go<F>(
    name: &str,
    options: &Options,
    device: &Device,
    prefix: &str,
    one: F,
) -> Result<()>
where
    F: Fn(usize, &Slice, usize, u64, &mut Tally) -> io::Result<()> + Send + Sync + 'static,
{
    let (tasks, pages) = (options.count("tasks", 8)?, options.count("pages", 32)?);
    let rounds = options.number("rounds", 1)?;
    let policy = options.policy()?;
    let arena = Arena::anonymous(device, tasks * pages)?;
    let slices = arena.slices(tasks);
    // What these pages hold is not the pager's yet, so what is said of that does not count.
    let own_ns = own_ns(|i| {
        let _ = slices.first().map(|slice| one(0, slice, i % pages, 0, &mut Tally::default()));
    });
    device.set_policy(&[], policy)?;
    device.evict(&arena.frames, 0)?;
    let again = device.clone();
    let team = Team::new(tasks, prefix, pinned(options)?, move |i, tally| {
        let slice = &slices[i];
        for round in 0..rounds {
            if round > 0 {
                if let Err(error) = again.evict(slice.frames(), round) {
                    println!("l2-init: evict: {error:#}");
                    return;
                }
            }
            for index in shuffled(slice.count, i as u64 + round * 1000) {
                if let Err(error) = one(i, slice, index, round, tally) {
                    // A page that was not moved is a page of wrong bytes.
                    tally.wrong_bytes += PAGE as u64;
                    println!("l2-init: task {i}, page {index}: {error}");
                }
            }
        }
    })?;
    // Whatever standard output holds must not be written inside the section.
    io::stdout().flush()?;
    let section = Section::begin(device, options, name)?;
    team.go();
    let mut tally = team.join();
    let measured = section.end()?;
    tally.own_ns = own_ns * tally.kernel_faults;
    let more = json!({"pages": pages, "rounds": rounds, "to": options.text("to", "pipe")});
    measured.report(device, name, tasks, policy.max_us, &tally, more);
    Ok(())
}
