//! Builds the machine, runs it, and says how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_X86_DISABLE_EXITS_HLT, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde_json::json;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::args::{Args, Leave};
use crate::boot::Again;
use crate::bus::Bus;
use crate::counters::Counters;
use crate::cpuid::{self, Offered};
use crate::memory::Ram;
use crate::pager::{Pager, PagerThread};
use crate::report::Reporter;
use crate::reset::PowerOn;
use crate::snapshot::campaign::{Campaign, Times};
use crate::snapshot::driver::{Driver, Parts};
use crate::snapshot::file::SnapshotFile;
use crate::snapshot::{Shape, gate, vcpu as vcpu_state};
use crate::stats::Stats;
use crate::testdev::TestDevice;
use crate::vcpu::{VcpuThread, set_boot_state};
use crate::{acpi, bare, boot, end, serial, sigbus, sys, vm_cap};

mod running;

use running::Run;

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
    /// A page is lost, and KVM could not tell the guest.
    MemoryFault,
    /// Memory is poisoned, and KVM told us instead of the guest.
    Poison,
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
            Outcome::MemoryFault => 7,
            Outcome::Poison => 8,
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
    if args.pin {
        let above = 1 + usize::from(args.vcpus)..sys::cpu_count();
        sys::pin_to_any(std::iter::once(sys::REST_CPU).chain(above)).context("pinning")?;
    }
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let vm = Arc::new(create_vm(&kvm, &args)?);
    vm_cap::enable(&vm, args.deadline_ms, args.fail_poison)?;
    let ram = Arc::new(Ram::new(args.mem_mib, args.slots, args.thp)?);
    ram.register(&vm)?;
    let entry = match (&loaded, args.bare) {
        (Some(_), _) => None,
        (None, true) => Some(bare::load(&ram.mem, &args)?),
        (None, false) => {
            let rsdp = acpi::write(&ram.mem, args.vcpus)?;
            Some(boot::load(&ram.mem, &args, rsdp, &Again::default())?)
        }
    };

    let counters = Arc::new(Counters::default());
    counters.set_vm(Stats::open(&*vm).context("KVM_GET_STATS_FD")?);
    let pager = Arc::new(Pager::new(ram.clone(), args.restore_us, args.restore_mib_s)?);
    let pager_thread = Arc::new(PagerThread::new(pager.clone(), args.pin));
    let reporter = Reporter::new(&args.mode_label, args.vcpus);
    let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    vm.register_irqfd(&irq, serial::COM1_GSI).context("KVM_IRQFD")?;
    let console = serial::console(irq, args.serial_prefix.clone());
    let device = TestDevice::new(
        vm.clone(),
        ram.clone(),
        pager_thread.clone(),
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
    pager_thread.start()?;

    let stop = Arc::new(AtomicBool::new(false));
    let msrs = vcpu_state::msr_list(&kvm)?;
    let (keeper, gates) = gate::gates(args.vcpus, msrs, args.snapshot_forgets);
    let mut vcpus = Vec::new();
    for (id, gate) in (0..args.vcpus).zip(gates) {
        let fd = create_vcpu(&kvm, &vm, id, &args)?;
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
    let power_on = match args.reboots {
        0 => None,
        _ => {
            let fds = vcpus.iter().map(|vcpu| &vcpu.fd);
            Some(PowerOn::save(&vm, fds, vcpu_state::msr_list(&kvm)?)?)
        }
    };
    if args.hold_fds {
        ram.keep_from_children()?;
        let pid =
            end::hold_descriptors().context("cannot make the process that holds descriptors")?;
        reporter.print_value("holder", json!({"pid": pid}));
    }
    let shape = Shape::of(&args);
    let parts = Parts {
        vm: vm.clone(),
        ram: ram.clone(),
        pager: pager.clone(),
        bus: bus.clone(),
        counters,
    };
    let (campaign, file) = match loaded {
        Some((file, state)) => {
            for (vcpu, state) in vcpus.iter().zip(&state.vcpus) {
                state.without(args.snapshot_forgets).load(&vcpu.fd)?;
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
    sigbus::install().map_err(|e| anyhow::anyhow!("cannot handle SIGBUS: {e}"))?;
    let mut again = Again::default();
    let outcome = loop {
        let power_on = power_on.as_ref().filter(|_| again.number < args.reboots);
        let limit = Duration::from_nanos(ends_ns.saturating_sub(sys::now_ns()));
        let may_reset = power_on.is_some();
        let run = running::vcpus(vcpus, &stop, &reporter, limit, may_reset, &mut snapshots)?;
        vcpus = match run {
            Run::Ended(outcome) => break outcome,
            Run::Reset(back) => back,
        };
        if let Some(power_on) = power_on {
            let en = power_on.restore(&vm, vcpus.iter().map(|vcpu| &vcpu.fd))?;
            again.number += 1;
            again.reserved = bus.device().reset()?;
            boot::load(&ram.mem, &args, acpi::write(&ram.mem, args.vcpus)?, &again)?;
            reporter.print_value("rebooted", json!({"number": again.number, "en": en}));
        }
        stop.store(false, Ordering::Release);
    };
    if let Some(record) = snapshots.record() {
        reporter.print_value("snapshots", record);
    }
    bus.finish();
    report_sigbus(&reporter, &ram);
    match args.leave {
        Leave::Finish => {}
        Leave::Exit => return Ok(outcome),
        Leave::Close => {
            end::close(&pager, &reporter)?;
            std::process::exit(outcome.exit_code());
        }
    }
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

fn create_vcpu(kvm: &Kvm, vm: &VmFd, id: u8, args: &Args) -> Result<kvm_ioctls::VcpuFd> {
    let fd = vm.create_vcpu(id.into()).with_context(|| format!("KVM_CREATE_VCPU {id}"))?;
    // 0: the host's frequency as it is known now. KVM's default is the frequency it saw when it was loaded; if the host
    // has refined that by more than 250 ppm since and cannot scale TSCs, 6.12 leaves the vCPU with a scaling ratio of 0,
    // takes the guest's TSC for 0, and TSC deadline timers expire far too late.
    fd.set_tsc_khz(0).context("KVM_SET_TSC_KHZ")?;
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let offered =
        Offered { tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer), pv_eoi: args.pv_eoi };
    fd.set_cpuid2(&cpuid::for_vcpu(&supported, id, args.vcpus, offered))
        .context("KVM_SET_CPUID2")?;
    Ok(fd)
}

/// vCPUs share all CPUs but [`sys::REST_CPU`], if there are others.
fn vcpu_cpu(id: u8) -> usize {
    match sys::cpu_count() {
        1 => sys::REST_CPU,
        count => 1 + usize::from(id) % (count - 1),
    }
}

/// SIGBUS for poisoned memory, if there was any.
fn report_sigbus(reporter: &Reporter, ram: &Ram) {
    let count = sigbus::count();
    if count != sigbus::Count::default() {
        let gpa = ram.gfn(count.last_hva).map(|gfn| gfn << 12);
        let record = json!({"met": count.met, "injected": count.injected, "last_gpa": gpa});
        reporter.print_value("sigbus", record);
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
