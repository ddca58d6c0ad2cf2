//! Watches a process touch a lost page, brings the page back, and says what came of it.

use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use ve_apf_testdev::{Order, PolicyArgs};

use super::child;
use super::shared::{Shared, done, order, stage};
use super::site::Make;
use super::way::Way;
use crate::device::Device;
use crate::sys::PAGE;

/// What came of one site.
pub(super) struct Found {
    /// For the record.
    pub(super) value: Value,
    /// It waited for longer than it may, or did not die.
    pub(super) stuck: bool,
    /// Bytes that were wrong when the page was back.
    pub(super) wrong_bytes: u64,
}

/// How to go about it.
pub(super) struct Watch<'a> {
    pub(super) device: &'a Device,
    pub(super) way: Way,
    /// The page is missing at first, and lost only when the process waits for it.
    pub(super) waiting: bool,
    /// What takes longer is a hang.
    pub(super) limit: Duration,
}

/// How long a page stays missing that is to be lost while somebody waits for it.
const MISSING: PolicyArgs = PolicyArgs {
    min_us: 500_000,
    max_us: 500_000,
    order: Order::Fifo,
    never: false,
    burst: 0,
    hold_us: 0,
};

/// One site, from making its pages to the death of its process.
pub(super) fn site(watch: &Watch<'_>, make: Make) -> Result<Found> {
    let Watch { device, way, limit, .. } = *watch;
    let shared = Shared::new()?;
    // SAFETY: the child uses nothing that another thread could hold, and ends by _exit.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error().into()),
        // SAFETY: ends the process without running anything of the parent's.
        0 => unsafe { libc::_exit(child::body(shared, make)) },
        pid => pid,
    };
    let mut child = Child { pid, status: None };
    child.wait(Duration::from_secs(20), || shared.stage.load(SeqCst) != 0)?;
    if shared.stage.load(SeqCst) != stage::READY {
        child.end()?;
        let errno = shared.errno.load(SeqCst);
        let is = format!("not ready: {}", io::Error::from_raw_os_error(errno));
        return Ok(Found {
            value: json!({"is": is, "errno": errno}),
            stuck: false,
            wrong_bytes: 0,
        });
    }
    let count = shared.count.load(SeqCst) as usize;
    let frames: Vec<u64> = shared.frames[..count].iter().map(|frame| frame.load(SeqCst)).collect();
    ensure!(!frames.is_empty(), "a site without a frame");
    device.declare(&frames)?;
    let began = if watch.waiting {
        device.set_policy(&frames, MISSING)?;
        device.evict_keep(&frames)?;
        shared.order.store(order::ACT, SeqCst);
        child.wait(limit, || {
            let waits = device.pager_state().is_ok_and(|state| state.pending > 0);
            waits || shared.stage.load(SeqCst) > stage::READY
        })?;
        let began = Instant::now();
        way.lose(device, &frames)?;
        // Where the page's loss is found out only when it comes.
        device.restore_all()?;
        began
    } else {
        way.lose(device, &frames)?;
        shared.order.store(order::ACT, SeqCst);
        Instant::now()
    };
    let over = child.wait(limit, || shared.stage.load(SeqCst) > stage::READY)?;
    let ms = began.elapsed().as_millis() as u64;
    let mut value = first(shared, over, child.status);
    way.bring_back(device, &frames)?;
    shared.order.store(order::CHECK, SeqCst);
    child.wait(limit.max(Duration::from_secs(5)), || false)?;
    let ended = child.status.is_some();
    let died = child.end()?;
    let again = again(shared, ended);
    value["is"] = json!(format!("{}; again {again}", value["is"].as_str().unwrap_or("")));
    value["again"] = json!(again);
    value["ms"] = json!(ms);
    let wrong_bytes = shared.wrong_bytes.load(SeqCst);
    Ok(Found { value, stuck: !over || !ended || !died, wrong_bytes })
}

/// What the access came to while the page was lost.
fn first(shared: &Shared, over: bool, status: Option<i32>) -> Value {
    if !over {
        return json!({"outcome": "hang", "is": "hang"});
    }
    match shared.stage.load(SeqCst) {
        stage::SIGNALLED => {
            let (signal, code) = (shared.signal.load(SeqCst), shared.code.load(SeqCst));
            let page = |at: u64| at / PAGE as u64;
            let addr_ok = page(shared.signal_at.load(SeqCst)) == page(shared.at.load(SeqCst));
            let lsb = shared.lsb.load(SeqCst);
            let mut is = signal_name(signal, code);
            if signal == libc::SIGBUS && !addr_ok {
                is.push_str(" elsewhere");
            }
            if code == libc::BUS_MCEERR_AR && lsb != 12 {
                is.push_str(" of another size");
            }
            json!({
                "outcome": "signal", "signal": signal, "code": code, "addr_ok": addr_ok, "lsb": lsb, "is": is,
            })
        }
        stage::ACTED | stage::CHECKED => {
            let errno = shared.errno.load(SeqCst);
            match shared.done.load(SeqCst) {
                done::ALL => json!({"outcome": "all", "is": "all"}),
                done::PART => json!({"outcome": "part", "is": "part"}),
                _ => json!({"outcome": "error", "errno": errno, "is": errno_name(errno)}),
            }
        }
        _ => {
            let status = status.unwrap_or(0);
            let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
            let is = signal.map_or("exit".to_owned(), |signal| {
                format!("killed by {}", signal_name(signal, 0))
            });
            json!({"outcome": "killed", "signal": signal, "is": is})
        }
    }
}

/// What it came to when the page was back.
fn again(shared: &Shared, ended: bool) -> String {
    let signal = shared.again_signal.load(SeqCst);
    if signal != 0 {
        return signal_name(signal, shared.again_code.load(SeqCst));
    }
    match shared.again_done.load(SeqCst) {
        done::NOT if ended => "died".into(),
        done::NOT => "hang".into(),
        done::ALL if shared.wrong_bytes.load(SeqCst) == 0 => "right".into(),
        done::ALL => "wrong".into(),
        done::PART => "part".into(),
        _ => errno_name(shared.again_errno.load(SeqCst)),
    }
}

fn signal_name(signal: i32, code: i32) -> String {
    match (signal, code) {
        (libc::SIGBUS, libc::BUS_ADRERR) => "SIGBUS BUS_ADRERR".into(),
        (libc::SIGBUS, libc::BUS_MCEERR_AR) => "SIGBUS BUS_MCEERR_AR".into(),
        (libc::SIGBUS, 0) => "SIGBUS".into(),
        (libc::SIGBUS, code) => format!("SIGBUS {code}"),
        (libc::SIGSEGV, _) => "SIGSEGV".into(),
        (signal, _) => format!("signal {signal}"),
    }
}

fn errno_name(errno: i32) -> String {
    match errno {
        libc::EFAULT => "EFAULT".into(),
        libc::EIO => "EIO".into(),
        libc::EHWPOISON => "EHWPOISON".into(),
        libc::ENODATA => "ENODATA".into(),
        libc::ENOEXEC => "ENOEXEC".into(),
        libc::ENOSYS => "ENOSYS".into(),
        // A process that this one started, and waited for.
        status if status > 128 => format!("killed by {}", signal_name(status - 128, 0)),
        errno => format!("errno {errno}"),
    }
}

struct Child {
    pid: i32,
    status: Option<i32>,
}

impl Child {
    /// Until `until` holds or it is dead; false if neither was in time.
    fn wait(&mut self, limit: Duration, until: impl Fn() -> bool) -> io::Result<bool> {
        let began = Instant::now();
        loop {
            if until() {
                return Ok(true);
            }
            if self.is_dead()? {
                return Ok(true);
            }
            if began.elapsed() >= limit {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn is_dead(&mut self) -> io::Result<bool> {
        if self.status.is_none() {
            let mut status = 0;
            // SAFETY: `status` lives through the call; the child is ours and not reaped yet.
            match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
                0 => {}
                pid if pid == self.pid => self.status = Some(status),
                _ => return Err(io::Error::last_os_error()),
            }
        }
        Ok(self.status.is_some())
    }

    /// Kills it if it lives; false if it does not die.
    fn end(&mut self) -> io::Result<bool> {
        if !self.is_dead()? {
            // SAFETY: takes plain integers; the child is ours and not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        self.wait(Duration::from_secs(5), || false)
    }
}
