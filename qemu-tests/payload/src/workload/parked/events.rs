//! The events. User-mode faults sleep killable, faults inside of system calls do not; neither can be stopped, traced or frozen
//! before its page is there. So what ends a task ends it at once, and everything else happens when the page comes.

use anyhow::{Result, ensure};

use super::cgroup::Cgroup;
use super::crowd;
use super::party::Party;
use super::touch::{self, EXEC, EXIT, JOIN};
use super::{cpu, memslot};
use crate::process::{self, EXEC_CODE, Status, Trace};
use crate::sys;

type Script = fn(&mut Party<'_>) -> Result<()>;

/// All of them.
pub(super) const ALL: [(&str, Script); 27] = [
    ("touched", touched),
    ("killed", killed),
    ("killed_in_kernel", killed_in_kernel),
    ("stopped", stopped),
    ("continued", continued),
    ("attached", attached),
    ("seized", seized),
    ("frozen", frozen),
    ("thawed", thawed),
    ("cgroup_killed", cgroup_killed),
    ("oom_killed", oom_killed),
    ("group_killed", group_killed),
    ("exit_group", exit_group),
    ("exec", exec),
    ("vfork", vfork),
    ("migrated", migrated),
    ("beside", beside),
    ("crowded", crowd::crowded),
    ("expired", crowd::expired),
    ("offlined", cpu::offlined),
    ("offlined_in_kernel", cpu::offlined_in_kernel),
    ("ring_off", cpu::ring_off),
    ("ring_again", cpu::ring_again),
    ("remade", memslot::remade),
    ("moved", memslot::moved),
    ("protected", memslot::protected),
    ("read_only", memslot::read_only),
];

/// The one of this name.
pub(super) fn find(name: &str) -> Option<Script> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, script)| *script)
}

const KILLED: Status = Status::Killed(libc::SIGKILL);
const DONE: Status = Status::Exited(0);

/// Nothing happens but that the pages come.
pub(super) fn touched(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", DONE)
}

fn killed(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    p.signal(libc::SIGKILL)?;
    p.all("killed_us", KILLED)?;
    p.come()
}

fn killed_in_kernel(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::write_to_pipe)?;
    p.signal(libc::SIGKILL)?;
    p.quiet()?;
    p.come()?;
    p.all("killed_after_page_us", KILLED)
}

fn stopped(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    p.signal(libc::SIGSTOP)?;
    p.quiet()?;
    p.come()?;
    p.all("stopped_after_page_us", Status::Stopped(libc::SIGSTOP, 0))?;
    p.quiet()?;
    p.signal(libc::SIGCONT)?;
    p.all("ended_us", DONE)
}

fn continued(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    p.signal(libc::SIGSTOP)?;
    p.signal(libc::SIGCONT)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", DONE)
}

fn trace_all(p: &mut Party<'_>, what: &str, requests: &[Trace]) -> Result<()> {
    let children = p.children.clone();
    p.timed(what, || {
        for child in children {
            requests.iter().try_for_each(|request| process::trace(child, *request))?;
        }
        Ok(())
    })
}

fn attached(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    trace_all(p, "attach_us", &[Trace::Attach])?;
    p.quiet()?;
    p.come()?;
    p.all("stopped_after_page_us", Status::Stopped(libc::SIGSTOP, 0))?;
    trace_all(p, "detach_us", &[Trace::Detach])?;
    p.all("ended_us", DONE)
}

fn seized(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    trace_all(p, "interrupt_us", &[Trace::Seize, Trace::Interrupt])?;
    p.quiet()?;
    p.come()?;
    let trap = Status::Stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP);
    p.all("stopped_after_page_us", trap)?;
    trace_all(p, "detach_us", &[Trace::Detach])?;
    p.all("ended_us", DONE)
}

fn frozen(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    let cgroup = Cgroup::new(&p.children)?;
    cgroup.set("cgroup.freeze", "1")?;
    p.quiet()?;
    ensure!(
        p.outstanding == 0 || cgroup.get("cgroup.events", "frozen")? == 0,
        "frozen without the page"
    );
    p.come()?;
    p.until("frozen_after_page_us", || Ok(cgroup.get("cgroup.events", "frozen")? == 1))?;
    p.quiet()?;
    cgroup.set("cgroup.freeze", "0")?;
    p.all("ended_us", DONE)?;
    cgroup.remove()
}

fn thawed(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    let cgroup = Cgroup::new(&p.children)?;
    cgroup.set("cgroup.freeze", "1")?;
    cgroup.set("cgroup.freeze", "0")?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", DONE)?;
    cgroup.remove()
}

fn cgroup_killed(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::read)?;
    let cgroup = Cgroup::new(&p.children)?;
    cgroup.set("cgroup.freeze", "1")?;
    cgroup.set("cgroup.kill", "1")?;
    p.all("killed_us", KILLED)?;
    cgroup.remove()?;
    p.come()
}

/// Another task of the cgroup takes too much memory, and the kernel kills all of them.
fn oom_killed(p: &mut Party<'_>) -> Result<()> {
    const LIMIT: usize = 8 << 20;
    p.park(touch::read)?;
    let cgroup = Cgroup::new(&p.children)?;
    cgroup.set("memory.oom.group", "1")?;
    cgroup.set("memory.max", &LIMIT.to_string())?;
    let hog = process::fork(|| {
        if cgroup.set("cgroup.procs", "0").is_err() {
            return 1;
        }
        // Does not return if the kernel does what it should.
        sys::Pages::anonymous(2 * LIMIT / sys::PAGE).map_or(2, |pages| pages.len() as i32)
    })?;
    p.children.push(hog);
    p.all("killed_us", KILLED)?;
    ensure!(cgroup.get("memory.events", "oom_group_kill")? == 1, "killed by something else");
    cgroup.remove()?;
    p.come()
}

fn group_killed(p: &mut Party<'_>) -> Result<()> {
    let to = p.park_group()?;
    p.signal(libc::SIGKILL)?;
    p.all("killed_us", KILLED)?;
    process::close(&[to]);
    p.come()
}

fn exit_group(p: &mut Party<'_>) -> Result<()> {
    let to = p.park_group()?;
    process::put_byte(to, &EXIT)?;
    p.all("ended_us", DONE)?;
    process::close(&[to]);
    p.come()
}

fn exec(p: &mut Party<'_>) -> Result<()> {
    let to = p.park_group()?;
    process::put_byte(to, &EXEC)?;
    p.all("executed_us", Status::Exited(EXEC_CODE))?;
    process::close(&[to]);
    p.come()
}

fn vfork(p: &mut Party<'_>) -> Result<()> {
    p.park(touch::vfork)?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", DONE)
}

/// To another CPU, from whose ring they do not come.
fn migrated(p: &mut Party<'_>) -> Result<()> {
    ensure!(sys::cpus_online() > 1, "needs two CPUs");
    p.park(touch::read_and_move)?;
    let children = p.children.clone();
    p.timed("moved_us", || {
        children.into_iter().try_for_each(|child| Ok(process::move_to(child, 1)?))
    })?;
    p.quiet()?;
    p.come()?;
    p.all("ended_us", DONE)
}

/// Threads of one group that wait for each other, for a pipe and for a futex are not held up by those that are parked.
fn beside(p: &mut Party<'_>) -> Result<()> {
    let to = p.park_group()?;
    let (there, back, word) = (process::pipe()?, process::pipe()?, process::shared_word()?);
    let waiter = process::fork(|| {
        let got = process::get_byte(there[0]).and_then(|_| process::put_byte(back[1], &JOIN));
        process::futex_wait(word);
        i32::from(got.is_err() || process::put_byte(back[1], &JOIN).is_err())
    })?;
    p.timed("pipe_us", || {
        process::put_byte(there[1], &JOIN)?;
        Ok(process::get_byte(back[0]).map(drop)?)
    })?;
    p.timed("futex_us", || {
        process::futex_set(word);
        Ok(process::get_byte(back[0]).map(drop)?)
    })?;
    p.quiet()?;
    p.children.push(waiter);
    process::put_byte(to, &JOIN)?;
    p.come()?;
    p.all("ended_us", DONE)?;
    process::close(&[to, there[0], there[1], back[0], back[1]]);
    Ok(())
}
