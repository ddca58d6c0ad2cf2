//! What is no failure, under Debian's QEMU, whose memory is swapped out: signals to the thread that runs L2's vCPU, a thousand in a
//! second, and a limit that leaves no memory for the pages that L2 waits for.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::walked::{Story, Vm};
use super::{cgroup, conclude, kvm_stats};

/// How long the signals come.
const STORM: Duration = Duration::from_secs(5);
/// How long there is no memory.
const SHORT: Duration = Duration::from_secs(3);

/// Runs it.
pub fn run(device: &str, append: &str) -> Result<()> {
    cgroup::swap_to(device)?;
    let mut vm = Vm::start("pressed", append, &[])?;
    let pid = vm.qemu.pid();
    // Who cannot have memory is told so, instead of being killed.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000").context("oom_score_adj")?;
    let mut story = Story::default();
    story.begun(&mut vm)?;
    story.all_run(&mut vm)?;

    let count = |name| kvm_stats::read(pid, name);
    let before = count("signal_exits")?;
    let (sent, moments) = storm(&mut vm, &mut story)?;
    let signal_exits = count("signal_exits")? - before;

    let out_of_memory = vm.cgroup.out_of_memory()?;
    vm.swap_out()?;
    vm.cgroup.grow(false)?;
    std::thread::sleep(SHORT);
    let refused = vm.cgroup.out_of_memory()? - out_of_memory;
    vm.cgroup.grow(true)?;
    story.all_run(&mut vm)?;
    let status = vm.qmp.run("query-status", json!({}))?["status"].clone();
    let failed = count("ve_apf_failed")?;
    let (walk, mut more) = story.end(&mut vm)?;
    for (name, value) in [
        ("signals", json!(sent)),
        ("signal_exits", json!(signal_exits)),
        ("swapped_under_signals", json!(moments)),
        ("refused", json!(refused)),
        ("failed_by_kvm", json!(failed)),
        ("status", status),
    ] {
        more[name] = value;
    }
    conclude("pressed", &walk, more)
}

/// Signals the vCPU's thread while L2 is swapped out again and again; how many signals, and how often.
fn storm(vm: &mut Vm, story: &mut Story) -> Result<(u64, u64)> {
    let cpus = vm.qmp.run("query-cpus-fast", json!({}))?;
    let thread = cpus[0]["thread-id"].as_i64().context("query-cpus-fast: no thread-id")?;
    let (process, over) = (vm.qemu.pid(), AtomicBool::new(false));
    let signal = || {
        let mut sent = 0;
        while !over.load(Relaxed) {
            // QEMU's own signal to take a vCPU out of KVM_RUN.
            // SAFETY: takes plain integers; a thread that is gone gives ESRCH.
            let rc = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
            sent += u64::from(rc == 0);
            std::thread::sleep(Duration::from_millis(1));
        }
        sent
    };
    std::thread::scope(|scope| {
        let signals = scope.spawn(signal);
        let began = Instant::now();
        let (mut moments, mut result) = (0, Ok(()));
        while result.is_ok() && began.elapsed() < STORM {
            moments += 1;
            result = vm.swap_out().and_then(|()| story.all_run(vm));
        }
        over.store(true, Relaxed);
        // A panic ends the program, so joining does not fail.
        let sent = signals.join().unwrap_or(0);
        result.map(|()| (sent, moments))
    })
}
