//! A vCPU: its state at boot, and its thread.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};

use anyhow::{Context, Result};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde_json::json;

use crate::boot;
use crate::bus::{After, Bus};
use crate::counters::Counters;
use crate::snapshot::gate::Gate;
use crate::{sigbus, sys};

/// How a vCPU's run ended.
#[derive(Debug)]
pub enum End {
    /// The guest said so.
    Guest(u8),
    /// KVM_EXIT_INTERNAL_ERROR, or KVM_RUN failed.
    Internal(serde_json::Value),
    /// KVM_EXIT_MEMORY_FAULT: a page is lost, and the guest can not be told.
    MemoryFault(serde_json::Value),
    /// KVM signalled that memory is poisoned.
    Poison(serde_json::Value),
    /// Triple fault.
    Shutdown,
    /// Reset line: a reboot, or a panic.
    Reset,
    /// Asked to stop: where it was.
    Stopped(serde_json::Value),
}

/// Registers for the 64-bit boot protocol; for the boot CPU only, the others wait for INIT and SIPI.
pub fn set_boot_state(fd: &VcpuFd, entry: u64) -> Result<()> {
    const CR0_PE_MP_ET_NE_WP_AM_PG: u64 = 0x8005_0033;
    const CR4_PAE: u64 = 0x20;
    const EFER_LME_LMA: u64 = 0x500;
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        selector: 0x18,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = fd.get_sregs().context("KVM_GET_SREGS")?;
    sregs.cs = kvm_segment { selector: 0x10, type_: 11, db: 0, l: 1, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat;
    }
    sregs.tr = kvm_segment { selector: 0x20, type_: 11, s: 0, db: 0, ..flat };
    sregs.gdt.base = boot::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.limit = 0;
    sregs.cr3 = boot::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE_MP_ET_NE_WP_AM_PG;
    sregs.efer = EFER_LME_LMA;
    fd.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let regs = kvm_regs {
        rip: entry,
        rsi: boot::ZERO_PAGE,
        rsp: boot::STACK,
        rflags: 2,
        ..kvm_regs::default()
    };
    fd.set_regs(&regs).context("KVM_SET_REGS")
}

/// What a vCPU's thread needs.
pub struct VcpuThread {
    /// Its number.
    pub id: u8,
    /// Its file descriptor.
    pub fd: VcpuFd,
    /// Ports.
    pub bus: Arc<Bus>,
    /// Counts exits to user space.
    pub counters: Arc<Counters>,
    /// Set when all are to stop.
    pub stop: Arc<AtomicBool>,
    /// Where it stops for a snapshot.
    pub gate: Gate,
    /// The CPU to run on.
    pub cpu: Option<usize>,
}

impl VcpuThread {
    /// Runs the vCPU until something ends it, and tells `done`.
    pub fn run(&mut self, started: &Barrier, tids: &Sender<(u8, i32)>, done: &Sender<(u8, End)>) {
        let tid = sys::gettid();
        self.bus.device().recorder().add_thread(tid);
        if let Some(cpu) = self.cpu {
            if let Err(error) = sys::pin_to(cpu) {
                eprintln!("ve-apf-vmm: cannot pin vCPU {} to CPU {cpu}: {error}", self.id);
            }
        }
        // The machine listens until the end; if it is gone there is nobody to tell.
        let _ = tids.send((self.id, tid));
        started.wait();
        let end = self.run_to_end();
        self.gate.end();
        let _ = done.send((self.id, end));
    }

    fn run_to_end(&mut self) -> End {
        let count = |counter: &std::sync::atomic::AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        loop {
            if self.stop.load(Ordering::Acquire) {
                return End::Stopped(self.position());
            }
            let closed = self.gate.is_closed();
            self.fd.set_kvm_immediate_exit(closed.into());
            let exits = &self.counters.user_exits;
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    count(&exits.io);
                    self.bus.read(port, data);
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    count(&exits.io);
                    match self.bus.write(port, data) {
                        After::Resume => {}
                        After::Exit(code) => return End::Guest(code),
                        After::Reset => return End::Reset,
                    }
                }
                Ok(VcpuExit::MmioRead(_, data)) => {
                    count(&exits.mmio);
                    data.fill(0xff);
                }
                Ok(VcpuExit::MmioWrite(..)) => count(&exits.mmio),
                Ok(VcpuExit::Shutdown) => return End::Shutdown,
                Ok(VcpuExit::SystemEvent(..)) => return End::Reset,
                Ok(VcpuExit::Intr) => count(&exits.intr),
                Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                    count(&exits.other);
                    return End::MemoryFault(self.memory_fault(flags, gpa, size));
                }
                Ok(VcpuExit::InternalError) => return End::Internal(self.internal_error()),
                Ok(other) => {
                    count(&exits.other);
                    let exit = format!("{other:?}");
                    return End::Internal(json!({"exit": exit, "at": self.position()}));
                }
                // With `immediate_exit` this is the end of whatever exit came before.
                Err(error) if closed && error.errno() == libc::EINTR => self.gate.wait(&self.fd),
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                    count(&exits.intr);
                    // This VMM raises no machine checks; the guest would only come back for the page.
                    if sigbus::count().met > 0 {
                        return End::Poison(self.position());
                    }
                }
                Err(error) => {
                    let error = io::Error::from_raw_os_error(error.errno()).to_string();
                    return End::Internal(json!({"run_error": error, "at": self.position()}));
                }
            }
        }
    }

    fn memory_fault(&self, flags: u64, gpa: u64, size: u64) -> serde_json::Value {
        let at = self.position();
        json!({"vcpu": self.id, "flags": flags, "gpa": gpa, "size": size, "at": at})
    }

    fn internal_error(&mut self) -> serde_json::Value {
        // SAFETY: KVM_RUN just ended with KVM_EXIT_INTERNAL_ERROR, so this is the union's valid member.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let data: Vec<u64> = internal.data.iter().copied().take(internal.ndata as usize).collect();
        json!({"vcpu": self.id, "suberror": internal.suberror, "data": data, "at": self.position()})
    }

    fn position(&self) -> serde_json::Value {
        let regs = self.fd.get_regs().unwrap_or_default();
        let halted = self.fd.get_mp_state().map(|s| s.mp_state).unwrap_or_default();
        json!({
            "vcpu": self.id,
            "rip": format!("{:#x}", regs.rip),
            "rsp": format!("{:#x}", regs.rsp),
            "rflags": format!("{:#x}", regs.rflags),
            "mp_state": halted,
            "lapic": self.lapic(),
        })
    }

    /// Pending and in-service vectors, the timer's vector entry, and TSC and TSC deadline: why a vCPU does not go on.
    fn lapic(&self) -> serde_json::Value {
        const ISR: usize = 0x100;
        const IRR: usize = 0x200;
        const LVT_TIMER: usize = 0x320;
        const TSC: u32 = 0x10;
        const TSC_DEADLINE: u32 = 0x6e0;
        let Ok(state) = self.fd.get_lapic() else { return serde_json::Value::Null };
        let byte = |at: usize| state.regs.get(at).map_or(0, |byte| byte.to_ne_bytes()[0]);
        let word =
            |at: usize| u32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let vectors = |base: usize| -> Vec<usize> {
            (0..256)
                .filter(|vector| word(base + vector / 32 * 16) >> (vector % 32) & 1 != 0)
                .collect()
        };
        let msr = |index| {
            let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
            let mut msrs = Msrs::from_entries(&[entry]).ok()?;
            (self.fd.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice()[0].data)
        };
        json!({
            "isr": vectors(ISR),
            "irr": vectors(IRR),
            "lvt_timer": format!("{:#x}", word(LVT_TIMER)),
            "tsc": msr(TSC),
            "tsc_deadline": msr(TSC_DEADLINE),
        })
    }
}
