//! execve() of what is lost, and a core dump of a process that has a lost page.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use super::cache;
use super::site::{Acted, Filled, Make, Plan, failed, in_child};
use crate::sys::{PAGE, Pages};

pub(super) const SITES: [(&str, Make); 4] = [
    ("exec_header", exec_header),
    ("exec_text", exec_text),
    ("exec_argv", exec_argv),
    ("core_dump", core_dump),
];

/// Exit code of the program.
const SEVEN: i32 = 7;

/// An ELF program of two pages: headers, and `mov eax, 60; mov edi, 7; syscall`, which is exit(7).
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: [u8; 12] = [0xb8, 60, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05];
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let put = |file: &mut Vec<u8>, size: usize, value: u64| {
        file.extend_from_slice(&value.to_le_bytes()[..size]);
    };
    let (code, len) = (BASE + PAGE as u64, 2 * PAGE as u64);
    // ET_EXEC, EM_X86_64, version, entry, program headers at 64, no sections, flags, sizes and counts.
    for (size, value) in [
        (2, 2),
        (2, 62),
        (4, 1),
        (8, code),
        (8, 64),
        (8, 0),
        (4, 0),
        (2, 64),
        (2, 56),
        (2, 1),
        (2, 64),
        (2, 0),
        (2, 0),
        // PT_LOAD, read and execute, offset, both addresses, both sizes, alignment.
        (4, 1),
        (4, 5),
        (8, 0),
        (8, BASE),
        (8, BASE),
        (8, len),
        (8, len),
        (8, PAGE as u64),
    ] {
        put(&mut file, size, value);
    }
    file.resize(PAGE, 0);
    file.extend_from_slice(&CODE);
    file.resize(2 * PAGE, 0);
    file
}

/// Runs the program; `argument` is its second word.
fn run(path: &CString, argument: *const libc::c_char) -> Acted {
    let argv = [path.as_ptr(), argument, std::ptr::null()];
    let env = [std::ptr::null()];
    let status = in_child(|| {
        // SAFETY: both end with a null pointer; `path` is a C string, and the kernel checks the argument.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        100 + io::Error::last_os_error().raw_os_error().unwrap_or(0)
    });
    match status {
        Ok(status) if libc::WIFEXITED(status) => match libc::WEXITSTATUS(status) {
            SEVEN => Acted::All,
            code => Acted::Failed(code - 100),
        },
        // As a shell says it.
        Ok(status) => Acted::Failed(128 + libc::WTERMSIG(status)),
        Err(_) => failed(),
    }
}

fn make() -> io::Result<(CString, Vec<u64>)> {
    let path = format!("/tmp/program{}", std::process::id());
    let frames = cache::file(&path, &program())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((CString::new(path)?, frames))
}

fn exec(lost: usize) -> io::Result<Plan> {
    let (path, frames) = make()?;
    let file = path.to_string_lossy().into_owned();
    Ok(Plan {
        frames: vec![frames[lost]],
        at: 0,
        act: Box::new(move || run(&path, c"x".as_ptr())),
        check: Box::new(move || Ok(super::site::differences(&fs::read(&file)?, &program()))),
    })
}

fn exec_header() -> io::Result<Plan> {
    exec(0)
}

/// The program runs, and dies at its first instruction.
fn exec_text() -> io::Result<Plan> {
    exec(1)
}

fn exec_argv() -> io::Result<Plan> {
    let (path, _) = make()?;
    let page = Filled::anonymous(1)?;
    page.pages.write(0, 0, u64::from_le_bytes(*b"--help\0\0"));
    let at = page.at(0);
    Ok(page.plan(0, 1, move || run(&path, at.cast())))
}

/// A process with three pages dumps core; of the lost one the file has nothing, of those before it everything.
fn core_dump() -> io::Result<Plan> {
    const CORE: &str = "/tmp/core";
    fs::write("/proc/sys/kernel/core_pattern", CORE)?;
    // Shared, so that the process that dies does not free the frame.
    let path = format!("/tmp/dumped{}", std::process::id());
    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(3 * PAGE as u64)?;
    let pages = Filled::fill(Pages::of_file(&file, 3)?)?;
    let dumped = pages.clone();
    Ok(pages.plan(1, 0, move || {
        let _ = fs::remove_file(CORE);
        let status = in_child(|| {
            let limit =
                libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            // Private and shared memory, of files too.
            let filter = fs::write("/proc/self/coredump_filter", "0x3f");
            // SAFETY: the limit lives through the call; the signal ends this process.
            unsafe {
                libc::setrlimit(libc::RLIMIT_CORE, &limit);
                libc::signal(libc::SIGABRT, libc::SIG_DFL);
                libc::kill(libc::getpid(), libc::SIGABRT);
            }
            i32::from(filter.is_err())
        });
        let Ok(status) = status else { return failed() };
        if !libc::WIFSIGNALED(status) || !libc::WCOREDUMP(status) {
            return Acted::Failed(libc::ENOENT);
        }
        let Ok(core) = fs::read(CORE) else { return failed() };
        let has = |page: usize| {
            let bytes = dumped.bytes(page);
            core.chunks_exact(PAGE).any(|chunk| chunk == bytes)
        };
        match [has(0), has(1), has(2)] {
            [true, true, true] => Acted::All,
            [true, false, true] => Acted::Part,
            // It ends there.
            [true, false, false] => Acted::Failed(libc::ENODATA),
            _ => Acted::Failed(libc::ENOENT),
        }
    }))
}
