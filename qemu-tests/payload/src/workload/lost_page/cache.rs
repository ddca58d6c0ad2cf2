//! Page cache whose memory is lost: reading, writing, mapping it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;

use super::site::{Acted, Make, Plan, differences, failed, result};
use crate::sys::{PAGE, Pages};
use crate::system;

pub(super) const SITES: [(&str, Make); 9] = [
    ("cache_read", || read("/tmp")),
    ("cache_write", || write("/tmp")),
    ("cache_map", || map("/tmp")),
    ("cache_cow", || copy_on_write("/tmp")),
    ("cache_splice", || splice("/tmp")),
    ("ramfs_read", || read(ramfs()?)),
    ("ramfs_map", || map(ramfs()?)),
    ("ramfs_cow", || copy_on_write(ramfs()?)),
    ("ramfs_splice", || splice(ramfs()?)),
];

/// Where the kernel copies page cache for nobody's buffer, or tries again whatever becomes of the page.
pub(super) const PLAIN: [(&str, Make); 3] = [
    ("cache_sendfile", || sendfile("/tmp")),
    ("ramfs_write", || write(ramfs()?)),
    ("ramfs_sendfile", || sendfile(ramfs()?)),
];

/// Where the kernel clears a part of a page.
pub(super) const CUT: [(&str, Make); 2] =
    [("cache_truncate", || truncate("/tmp")), ("ramfs_truncate", || truncate(ramfs()?))];

/// Pages of a file; the second is lost.
const COUNT: usize = 3;

fn ramfs() -> io::Result<&'static str> {
    let path = "/ramfs";
    if std::fs::create_dir(path).is_ok() {
        system::mount(path, "ramfs", "")?;
    }
    Ok(path)
}

/// A file of its own, all of which is in the page cache and nowhere else, and the frames it is in.
pub(super) fn file(path: &str, content: &[u8]) -> io::Result<Vec<u64>> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(content, 0)?;
    let count = content.len().div_ceil(PAGE);
    let pages = Pages::of_file(&file, count)?;
    let frames = pages.frames()?;
    // SAFETY: the mapping was just made, and nothing refers to it.
    if unsafe { libc::munmap(pages.page(0).cast(), count * PAGE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(frames)
}

fn content() -> Vec<u8> {
    (0..COUNT * PAGE).map(|i| (i * 7 + i / PAGE) as u8).collect()
}

/// The file, open, and the frame of its second page.
fn open(directory: &str) -> io::Result<(i32, u64)> {
    let path = format!("{directory}/lost{}", std::process::id());
    let frames = file(&path, &content())?;
    let file = File::options().read(true).write(true).open(path)?;
    Ok((file.into_raw_fd(), frames[1]))
}

/// What the file holds at its second page, `written` bytes of it changed.
fn wrong(fd: i32, written: &[u8]) -> io::Result<u64> {
    let mut copy = vec![0; PAGE];
    // SAFETY: `copy` has PAGE bytes.
    let n = unsafe { libc::pread(fd, copy.as_mut_ptr().cast(), PAGE, PAGE as libc::off_t) };
    if n != PAGE as isize {
        return Err(io::Error::last_os_error());
    }
    let mut expected = content()[PAGE..2 * PAGE].to_vec();
    expected[..written.len()].copy_from_slice(written);
    Ok(differences(&copy, &expected))
}

fn plan(fd: i32, frame: u64, written: &'static [u8], act: impl FnMut() -> Acted + 'static) -> Plan {
    let check = move || wrong(fd, written);
    Plan { frames: vec![frame], at: 0, act: Box::new(act), check: Box::new(check) }
}

fn read(directory: &str) -> io::Result<Plan> {
    let (fd, frame) = open(directory)?;
    let mut copy = vec![0u8; PAGE];
    Ok(plan(fd, frame, &[], move || {
        // SAFETY: `copy` has PAGE bytes.
        let n = unsafe { libc::pread(fd, copy.as_mut_ptr().cast(), PAGE, PAGE as libc::off_t) };
        result(n as i64, PAGE)
    }))
}

/// A part of the page, so that the rest has to be there.
fn write(directory: &str) -> io::Result<Plan> {
    const TEXT: &[u8] = b"written while it was lost";
    let (fd, frame) = open(directory)?;
    Ok(plan(fd, frame, TEXT, move || {
        // SAFETY: the text has that many bytes.
        let n = unsafe { libc::pwrite(fd, TEXT.as_ptr().cast(), TEXT.len(), PAGE as libc::off_t) };
        result(n as i64, TEXT.len())
    }))
}

/// The file mapped with these flags: the address of its second page.
fn mapped(fd: i32, prot: i32, flags: i32) -> io::Result<usize> {
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), COUNT * PAGE, prot, flags, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at as usize + PAGE)
}

/// The kernel maps the page without touching it; the program does.
fn map(directory: &str) -> io::Result<Plan> {
    let (fd, frame) = open(directory)?;
    let page = mapped(fd, libc::PROT_READ, libc::MAP_SHARED)?;
    let mut plan = plan(fd, frame, &[], move || {
        // SAFETY: a byte of the mapping just made.
        let byte = unsafe { (page as *const u8).add(5).read_volatile() };
        if byte == content()[PAGE + 5] { Acted::All } else { Acted::Part }
    });
    plan.at = page;
    Ok(plan)
}

/// A write to a private mapping, for which the kernel copies the page.
fn copy_on_write(directory: &str) -> io::Result<Plan> {
    let (fd, frame) = open(directory)?;
    let page = mapped(fd, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)?;
    let mut plan = plan(fd, frame, &[], move || {
        // SAFETY: two bytes of the mapping just made, which nothing in Rust refers to.
        let byte = unsafe {
            (page as *mut u8).write_volatile(0xaa);
            (page as *const u8).add(5).read_volatile()
        };
        if byte == content()[PAGE + 5] { Acted::All } else { Acted::Part }
    });
    plan.at = page;
    Ok(plan)
}

/// The file ends within the page, whose rest the kernel fills with zeroes.
fn truncate(directory: &str) -> io::Result<Plan> {
    const LEFT: usize = PAGE / 2;
    let (fd, frame) = open(directory)?;
    let mut plan = plan(fd, frame, &[], move || {
        // SAFETY: takes plain integers.
        result(unsafe { libc::ftruncate(fd, (PAGE + LEFT) as libc::off_t) }.into(), 0)
    });
    plan.check = Box::new(move || {
        // SAFETY: takes plain integers.
        if unsafe { libc::ftruncate(fd, 2 * PAGE as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut copy = vec![0; PAGE];
        // SAFETY: `copy` has PAGE bytes.
        let n = unsafe { libc::pread(fd, copy.as_mut_ptr().cast(), PAGE, PAGE as libc::off_t) };
        if n != PAGE as isize {
            return Err(io::Error::last_os_error());
        }
        let mut expected = content()[PAGE..2 * PAGE].to_vec();
        expected[LEFT..].fill(0);
        Ok(differences(&copy, &expected))
    });
    Ok(plan)
}

/// The page goes into a pipe as it is, and is read there.
fn splice(directory: &str) -> io::Result<Plan> {
    let (fd, frame) = open(directory)?;
    Ok(plan(fd, frame, &[], move || {
        let Ok((reader, writer)) = io::pipe() else { return failed() };
        let mut at = PAGE as libc::off64_t;
        let (to, null) = (writer.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: `at` lives through the call.
        let n = unsafe { libc::splice(fd, &mut at, to, null, PAGE, 0) };
        if n != PAGE as isize {
            return result(n as i64, PAGE);
        }
        let mut copy = vec![0u8; PAGE];
        // SAFETY: `copy` has PAGE bytes.
        let n = unsafe { libc::read(reader.as_raw_fd(), copy.as_mut_ptr().cast(), PAGE) };
        result(n as i64, PAGE)
    }))
}

/// The kernel copies the page into another file, with nothing of the program's in between.
fn sendfile(directory: &str) -> io::Result<Plan> {
    let (fd, frame) = open(directory)?;
    let path = format!("{directory}/sent{}", std::process::id());
    let to = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    let copied = to.try_clone()?;
    let mut plan = plan(fd, frame, &[], move || {
        let mut at = PAGE as libc::off64_t;
        // SAFETY: takes plain integers.
        unsafe { libc::lseek(to.as_raw_fd(), 0, libc::SEEK_SET) };
        // SAFETY: `at` lives through the call.
        result(unsafe { libc::sendfile(to.as_raw_fd(), fd, &mut at, PAGE) } as i64, PAGE)
    });
    plan.check = Box::new(move || {
        let mut copy = vec![0; PAGE];
        copied.read_exact_at(&mut copy, 0)?;
        Ok(differences(&copy, &content()[PAGE..2 * PAGE]))
    });
    Ok(plan)
}
