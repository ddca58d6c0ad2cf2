//! Builds the machine, runs it, and says how it ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::args::Args;
use crate::bus::Bus;
use crate::counters::Counters;
use crate::memory::Ram;
use crate::pager::Pager;
use crate::report::Reporter;
use crate::snapshot::campaign::{Campaign, Times};
use crate::snapshot::driver::{Driver, Parts};
use crate::snapshot::file::SnapshotFile;
use crate::snapshot::{Shape, gate, vcpu as vcpu_state};
use crate::stats::Stats;
use crate::testdev::TestDevice;
use crate::vcpu::{End, VcpuThread, set_boot_state};
use crate::{acpi, bare, boot, cpuid, serial, sys};

/// How the machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest's exit code.
    Guest(u8),
    /// KVM gave up.
    InternalError,
    /// Triple fault.
    Shutdown,
    /// Reboot or panic.
    Reset,
    /// It took too long.
    Timeout,
}

impl Outcome {
    /// Of the process.
    pub fn exit_code(self) -> i32 {
        match self {
            Outcome::Guest(0) => 0,
            Outcome::Guest(code) => 10 + i32::from(code),
            Outcome::InternalError => 3,
            Outcome::Shutdown => 4,
            Outcome::Reset => 5,
            Outcome::Timeout => 6,
        }
    }
}

/// TSS and identity map pages that KVM needs on Intel: below the BIOS, above any memory.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// Runs a guest to its end.
pub fn run(args: Args) -> Result<Outcome> {
    let loaded = args.restore.as_deref().map(SnapshotFile::open).transpose()?;
    if let Some((file, state)) = &loaded {
        state.check(&args, file.memory_len())?;
    }
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = Arc::new(create_vm(&kvm, &args)?);
    let ram = Arc::new(Ram::new(args.mem_mib, args.slots, args.thp)?);
    ram.register(&vm)?;
    let entry = match (&loaded, args.bare) {
        (Some(_), _) => None,
        (None, true) => Some(bare::load(&ram.mem, &args)?),
        (None, false) => Some(boot::load(&ram.mem, &args, acpi::write(&ram.mem, args.vcpus)?)?),
    };

    let counters = Arc::new(Counters::default());
    counters.set_vm(Stats::open(&*vm).context("KVM_GET_STATS_FD")?);
    let pager = Arc::new(Pager::new(ram.clone(), args.restore_us)?);
    let reporter = Reporter::new(&args.mode_label, args.vcpus);
    let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    vm.register_irqfd(&irq, serial::COM1_GSI).context("KVM_IRQFD")?;
    let console = serial::console(irq, args.serial_prefix.clone());
    let device = TestDevice::new(
        vm.clone(),
        ram.clone(),
        pager.clone(),
        counters.clone(),
        reporter.clone(),
        args.mem_mib,
        args.vcpus,
    );
    let bus = Arc::new(Bus::new(console, device));

    // Whoever loads state may need missing memory.
    if let Some((file, state)) = &loaded {
        pager.load(&state.pager, file.pages())?;
        bus.load(&state.bus)?;
        counters.load(&state.counters);
    }
    start_pager(pager.clone(), args.pin)?;

    let stop = Arc::new(AtomicBool::new(false));
    let (keeper, gates) = gate::gates(args.vcpus, vcpu_state::msr_list(&kvm)?);
    let mut vcpus = Vec::new();
    for (id, gate) in (0..args.vcpus).zip(gates) {
        let fd = create_vcpu(&kvm, &vm, id, args.vcpus)?;
        if let Some(entry) = entry {
            if id == 0 || args.bare {
                set_boot_state(&fd, entry)?;
            }
            if args.bare {
                bare::set_start(&fd, id, args.vcpus)?;
            }
        }
        counters.add_vcpu(Stats::open(&fd).context("KVM_GET_STATS_FD")?);
        let cpu = args.pin.then(|| vcpu_cpu(id));
        let (bus, counters, stop) = (bus.clone(), counters.clone(), stop.clone());
        vcpus.push(VcpuThread { id, fd, bus, counters, stop, gate, cpu });
    }
    let shape = Shape::of(&args);
    let parts = Parts { vm: vm.clone(), ram, pager: pager.clone(), bus: bus.clone(), counters };
    let (campaign, file) = match loaded {
        Some((file, state)) => {
            for (vcpu, state) in vcpus.iter().zip(&state.vcpus) {
                state.load(&vcpu.fd)?;
            }
            state.vm.load(&vm)?;
            (state.campaign, Some(file))
        }
        None => (new_campaign(&args), None),
    };
    let ends_ns = campaign.ends_ns;
    let mut snapshots = Driver::new(parts, shape, keeper, campaign, file);
    sys::install_kick_signal()
        .map_err(|e| anyhow::anyhow!("cannot install the kick signal: {e}"))?;
    let limit = Duration::from_nanos(ends_ns.saturating_sub(sys::now_ns()));
    let outcome = run_vcpus(vcpus, &stop, &reporter, limit, &mut snapshots)?;
    if let Some(record) = snapshots.record() {
        reporter.print_value("snapshots", record);
    }
    bus.finish();
    // Nobody may be left waiting for a page inside the kernel when the process ends.
    pager.finish()?;
    Ok(outcome)
}

fn create_vm(kvm: &Kvm, args: &Args) -> Result<VmFd> {
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    vm.set_identity_map_address(IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(TSS).context("KVM_SET_TSS_ADDR")?;
    if args.hlt_in_guest {
        let mut cap =
            kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..kvm_enable_cap::default() };
        cap.args[0] = KVM_X86_DISABLE_EXITS_HLT.into();
        vm.enable_cap(&cap).context("KVM_CAP_X86_DISABLE_EXITS")?;
    }
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
    Ok(vm)
}

fn create_vcpu(kvm: &Kvm, vm: &VmFd, id: u8, count: u8) -> Result<kvm_ioctls::VcpuFd> {
    let fd = vm.create_vcpu(id.into()).with_context(|| format!("KVM_CREATE_VCPU {id}"))?;
    // 0: the host's frequency as it is known now. KVM's default is the frequency it saw when it was loaded; if the host
    // has refined that by more than 250 ppm since and cannot scale TSCs, 6.12 leaves the vCPU with a scaling ratio of 0,
    // takes the guest's TSC for 0, and TSC deadline timers expire far too late.
    fd.set_tsc_khz(0).context("KVM_SET_TSC_KHZ")?;
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    fd.set_cpuid2(&cpuid::for_vcpu(&supported, id, count, tsc_deadline))
        .context("KVM_SET_CPUID2")?;
    Ok(fd)
}

/// vCPUs share all CPUs but the last, which is the pager's.
fn vcpu_cpu(id: u8) -> usize {
    usize::from(id) % (sys::cpu_count() - 1).max(1)
}

fn start_pager(pager: Arc<Pager>, pin: bool) -> Result<()> {
    let body = move || {
        if pin {
            if let Err(error) = sys::pin_to(sys::cpu_count() - 1) {
                eprintln!("ve-apf-vmm: cannot pin the pager: {error}");
            }
        }
        if let Err(error) = pager.run() {
            // Without a pager the guest hangs, so say why now.
            eprintln!("ve-apf-vmm: pager: {error:#}");
            std::process::exit(1);
        }
    };
    thread::Builder::new().name("pager".into()).spawn(body).context("cannot start the pager")?;
    Ok(())
}

fn run_vcpus(
    vcpus: Vec<VcpuThread>,
    stop: &AtomicBool,
    reporter: &Reporter,
    limit: Duration,
    snapshots: &mut Driver,
) -> Result<Outcome> {
    let started = Arc::new(Barrier::new(vcpus.len()));
    let (tid_tx, tid_rx) = channel();
    let (done_tx, done_rx) = channel();
    let count = vcpus.len();
    for vcpu in vcpus {
        let (started, tids, done) = (started.clone(), tid_tx.clone(), done_tx.clone());
        let name = format!("vcpu{}", vcpu.id);
        let body = move || vcpu.run(&started, &tids, &done);
        thread::Builder::new().name(name).spawn(body).context("cannot start a vCPU thread")?;
    }
    let tids: BTreeMap<u8, i32> = tid_rx.iter().take(count).collect();
    let (outcome, record) = match wait(&done_rx, limit, snapshots, &tids)? {
        Ok((_, End::Guest(code))) => return Ok(Outcome::Guest(code)),
        Ok((_, End::Internal(what))) => (Outcome::InternalError, ("internal_error", what)),
        Ok((id, End::Shutdown)) => (Outcome::Shutdown, ("shutdown", json!({"vcpu": id}))),
        Ok((id, End::Reset)) => (Outcome::Reset, ("reset", json!({"vcpu": id}))),
        Ok((_, End::Stopped(at))) => (Outcome::Timeout, ("timeout", at)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let threads = sys::threads();
            reporter.print_value("hung", json!({"threads": threads, "pager": snapshots.pager()}));
            let at = stop_all(&tids, stop, &done_rx);
            (
                Outcome::Timeout,
                (
                    "timeout",
                    json!({"after_s": limit.as_millis().div_ceil(1000) as u64, "vcpus": at}),
                ),
            )
        }
    };
    reporter.print_value(record.0, record.1);
    Ok(outcome)
}

/// Waits for a vCPU's end, and takes snapshots meanwhile.
fn wait(
    done: &Receiver<(u8, End)>,
    limit: Duration,
    snapshots: &mut Driver,
    tids: &BTreeMap<u8, i32>,
) -> Result<Result<(u8, End), RecvTimeoutError>> {
    let end = Instant::now() + limit;
    loop {
        let until = snapshots.due().map_or(end, |next| next.min(end));
        match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => snapshots.step(tids)?,
            other => return Ok(other),
        }
    }
}

/// What the command line asks for; says how to have the same again.
fn new_campaign(args: &Args) -> Campaign {
    let ends_ns = sys::now_ns().saturating_add(args.timeout_s.saturating_mul(1_000_000_000));
    let (into, count) = (args.snapshot_into, args.snapshots);
    let seed = args.snapshot_seed.unwrap_or_else(sys::now_ns);
    if count != 0 {
        println!("ve-apf-vmm: {count} snapshots into {}, --snapshot-seed {seed}", into.name());
    }
    let times = Times { interval_ms: args.snapshot_ms, early: args.snapshot_early };
    Campaign::new(into, count, times, seed, ends_ns)
}

/// Takes all vCPUs out of the guest and collects where they were. One that waits for a page may not come.
fn stop_all(tids: &BTreeMap<u8, i32>, stop: &AtomicBool, done: &Receiver<(u8, End)>) -> Vec<Value> {
    stop.store(true, Ordering::Release);
    let give_up = Instant::now() + Duration::from_secs(2);
    let mut at = BTreeMap::new();
    while at.len() < tids.len() && Instant::now() < give_up {
        // Again and again: a signal just before KVM_RUN is lost.
        for tid in tids.iter().filter(|(id, _)| !at.contains_key(*id)).map(|(_, tid)| *tid) {
            sys::kick(tid);
        }
        if let Ok((id, end)) = done.recv_timeout(Duration::from_millis(20)) {
            let place = match end {
                End::Stopped(place) => place,
                other => json!({"vcpu": id, "ended": format!("{other:?}")}),
            };
            at.insert(id, place);
        }
    }
    for id in tids.keys() {
        at.entry(*id).or_insert_with(|| json!({"vcpu": id, "stuck": true}));
    }
    at.into_values().collect()
}
