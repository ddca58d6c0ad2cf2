//! A child that does one thing to the file, and says through a pipe what came of it: it may never.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::file::{DaxFile, content, page_content};
use crate::sys::PAGE;

/// Somewhere in the page: the address in a signal must be exactly this one's.
const WORD: usize = 101;

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Touch,
    Store,
    Read,
    Write,
    Sync,
}

impl Action {
    /// By the name of its command.
    pub(super) fn named(name: &str) -> Option<Action> {
        Some(match name {
            "touch" => Action::Touch,
            "store" => Action::Store,
            "read" => Action::Read,
            "write" => Action::Write,
            "sync" => Action::Sync,
            _ => return None,
        })
    }
}

/// What the child says: which of these, and three numbers.
const DONE: u64 = 1;
const SIGBUS: u64 = 2;
type Message = [u64; 4];
/// The pipe, in the child.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// A running child.
pub(super) struct Task {
    action: Action,
    page: usize,
    /// The address it may fail at.
    at: usize,
    pid: libc::pid_t,
    pipe: File,
    began: Instant,
}

impl Task {
    /// Starts it.
    pub(super) fn start(action: Action, file: &DaxFile, page: usize) -> Result<Task> {
        ensure!(page < file.pages, "page {page} of {}", file.pages);
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        let began = Instant::now();
        // In memory of its own before the fork: the child allocates nothing.
        let mut buffer = page_content(page);
        if action == Action::Read {
            buffer.fill(0);
        }
        // SAFETY: the child makes only system calls that are safe after fork(), accesses memory, and ends by _exit.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error().into()),
            0 => {
                PIPE.store(ends[1], Relaxed);
                on_sigbus(tell_sigbus);
                tell(act(action, file, page, &mut buffer));
                // SAFETY: ends the process without running anything of the parent's.
                unsafe { libc::_exit(0) }
            }
            pid => {
                // SAFETY: the child's end, not used here.
                unsafe { libc::close(ends[1]) };
                // SAFETY: ours alone from here on.
                let pipe = unsafe { File::from_raw_fd(ends[0]) };
                let at = file.at(page, WORD) as usize;
                Ok(Task { action, page, at, pid, pipe, began })
            }
        }
    }

    /// What came of it, or `pending` if it takes longer than `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<Value> {
        let mut poll = libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives through the call.
        let ready = unsafe { libc::poll(&mut poll, 1, i32::try_from(patience.as_millis())?) };
        let mut record = json!({"page": self.page});
        if ready <= 0 {
            record["state"] = json!("pending");
            record["stat"] = json!(stat(self.pid));
            return Ok(record);
        }
        record["ms"] = json!(u64::try_from(self.began.elapsed().as_millis())?);
        let mut bytes = [0; size_of::<Message>()];
        if self.pipe.read_exact(&mut bytes).is_err() {
            record["state"] = json!("died");
        } else {
            let word = |i: usize| -> u64 {
                bytes[i * 8..i * 8 + 8]
                    .iter()
                    .rev()
                    .fold(0, |word, byte| word << 8 | u64::from(*byte))
            };
            self.describe([word(0), word(1), word(2), word(3)], &mut record);
        }
        let mut status = 0;
        // SAFETY: `status` lives through the call; the child is ours, and has closed its pipe or is about to end.
        unsafe { libc::waitpid(self.pid, &mut status, 0) };
        record["status"] = json!(status);
        Ok(record)
    }

    fn describe(&self, [what, a, b, c]: Message, record: &mut Value) {
        if what == SIGBUS {
            record["state"] = json!("sigbus");
            record["code"] = json!(match i32::try_from(a) {
                Ok(libc::BUS_ADRERR) => "BUS_ADRERR".to_owned(),
                Ok(libc::BUS_MCEERR_AR) => "BUS_MCEERR_AR".to_owned(),
                Ok(libc::BUS_MCEERR_AO) => "BUS_MCEERR_AO".to_owned(),
                _ => a.to_string(),
            });
            record["addr_ok"] = json!(b == self.at as u64);
            record["addr_off"] = json!(b.wrapping_sub(self.at as u64).cast_signed());
            return;
        }
        record["state"] = json!("done");
        record["result"] = json!(a.cast_signed());
        record["errno"] = json!(b);
        record["right"] = json!(match self.action {
            Action::Touch | Action::Store => c == content(self.page, WORD),
            Action::Read => c == 1,
            Action::Write | Action::Sync => true,
        });
    }
}

/// In the child.
fn act(action: Action, file: &DaxFile, page: usize, buffer: &mut [u8]) -> Message {
    let (fd, offset) = (file.file.as_raw_fd(), (page * PAGE) as libc::off_t);
    let result = match action {
        Action::Touch => return [DONE, 0, 0, file.load(page, WORD)],
        Action::Store => {
            let right = content(page, WORD);
            file.store(page, WORD, right);
            return [DONE, 0, 0, right];
        }
        // SAFETY: the buffer is as long as the call is told.
        Action::Read => unsafe { libc::pread(fd, buffer.as_mut_ptr().cast(), PAGE, offset) },
        // SAFETY: as above.
        Action::Write => unsafe { libc::pwrite(fd, buffer.as_ptr().cast(), PAGE, offset) },
        // SAFETY: takes a descriptor.
        Action::Sync => unsafe { libc::fdatasync(fd) as isize },
    };
    let errno = if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(0) } else { 0 };
    let words = buffer.chunks_exact(8).enumerate();
    let right = words.filter(|(word, bytes)| content(page, *word).to_le_bytes()[..] == **bytes);
    [DONE, result as u64, errno as u64, u64::from(right.count() == PAGE / 8)]
}

fn tell(message: Message) {
    // SAFETY: the message lives through the call; write() is safe in a signal handler.
    unsafe { libc::write(PIPE.load(Relaxed), message.as_ptr().cast(), size_of::<Message>()) };
}

extern "C" fn tell_sigbus(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, of a SIGBUS, which has an address.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    tell([SIGBUS, code as u64, at, 0]);
    // SAFETY: safe in a signal handler, and ends the process.
    unsafe { libc::_exit(0) }
}

/// A handler as `SA_SIGINFO` wants it.
pub(super) type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Sets this process's handler of SIGBUS.
pub(super) fn on_sigbus(handler: Handler) {
    // SAFETY: all zero is a valid sigaction, and the handler has the signature that SA_SIGINFO wants.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// Scheduler state, minor faults, and ticks of user and system time of a process that goes on and on.
fn stat(pid: libc::pid_t) -> Value {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |i: usize| fields.get(i).copied().unwrap_or("?");
    json!({"state": field(0), "minor_faults": field(7), "utime": field(11), "stime": field(12)})
}
