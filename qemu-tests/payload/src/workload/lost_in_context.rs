//! The kernel touches a lost page where no exception table helps, in a context of the test's choice (CONFIG_VE_APF_SELFTEST).
//! Where nothing can be delivered to the guest, this ends the VM; else it ends the task, or the copy.
//!
//! Options: `contexts` (separated by commas), `loss` as for `lost_page`, `limit_ms` (3000). Reports under `contexts`, by name:
//! `is`, `again`. An oops of a task that the test made is counted in `oopses`, not in `bad`.

use std::io;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Map, json};
use ve_apf_testdev::{PAGE_WORDS, PolicyArgs};

use super::lost_page::Way;
use crate::arena::{Arena, Slice};
use crate::device::Device;
use crate::guest_counters::GuestCounters;
use crate::options::Options;
use crate::{dmesg, selftest};

/// `lost_in_context`.
pub(super) fn run(name: &str, options: &Options, device: &Device) -> Result<()> {
    let way = Way::named(options.text("loss", "no_access"))?;
    let limit = Duration::from_millis(options.number("limit_ms", 3000)?);
    let names: Vec<&str> = options.text("contexts", "sleepable").split(',').collect();
    device.set_policy(&[], PolicyArgs::fixed(1000))?;
    let before = GuestCounters::read();
    // Each its own page: what an oops leaves behind must not disturb the next.
    let arena = Arena::anonymous(device, names.len())?;
    device.evict(&arena.frames, 0)?;
    let slices = arena.slices(names.len());
    let mut contexts = Map::new();
    let (mut stuck, mut wrong_bytes) = (0, 0);
    for (context, slice) in names.iter().zip(&slices) {
        // Make it present.
        wrong_bytes += slice.wrong_bytes(0, 0, 0..PAGE_WORDS);
        way.lose(device, slice.frames())?;
        let is = touch(context, slice, limit)?;
        stuck += u64::from(is == "hang");
        way.bring_back(device, slice.frames())?;
        wrong_bytes += slice.wrong_bytes(0, 0, 0..PAGE_WORDS);
        contexts.insert((*context).to_owned(), json!({"is": is}));
    }
    let (oopses, bad): (Vec<String>, Vec<String>) =
        dmesg::bad_lines().into_iter().partition(|line| line.contains("Oops"));
    let mut record = json!({
        "kind": "result", "workload": name, "contexts": contexts, "stuck": stuck, "wrong_bytes": wrong_bytes,
        "oopses": oopses.len(), "oops_lines": oopses, "bad": bad.len(), "bad_lines": bad,
        "log": dmesg::lines_with("ve-apf: the host lost"),
    });
    if let Some(record) = record.as_object_mut() {
        record.extend(GuestCounters::read().since(&before));
    }
    device.report("", &record);
    Ok(())
}

/// What became of a process that has the kernel touch the page.
fn touch(context: &str, slice: &Slice, limit: Duration) -> Result<String> {
    // SAFETY: the child uses nothing that another thread could hold, and ends by _exit.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error().into()),
        0 => {
            let code = match selftest::touch(context, slice.page(0)) {
                Ok(_) => 0,
                Err(error) => {
                    let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
                    errno.unwrap_or(255)
                }
            };
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
        child => child,
    };
    let began = Instant::now();
    let mut status = 0;
    loop {
        // SAFETY: `status` lives through the call; the child is ours and not reaped yet.
        match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
            0 if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(1)),
            0 => return Ok("hang".into()),
            pid if pid == child => break,
            _ => return Err(io::Error::last_os_error().into()),
        }
    }
    if libc::WIFSIGNALED(status) {
        return Ok(match libc::WTERMSIG(status) {
            libc::SIGSEGV => "killed by SIGSEGV".into(),
            signal => format!("killed by {signal}"),
        });
    }
    Ok(match libc::WEXITSTATUS(status) {
        0 => "all".into(),
        libc::EFAULT => "EFAULT".into(),
        errno => format!("errno {errno}"),
    })
}
