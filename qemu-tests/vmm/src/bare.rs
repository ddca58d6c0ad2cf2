//! Boots an ELF program on the bare machine, with no operating system's boot protocol: every vCPU enters it at once, in
//! 64-bit mode, interrupts off, the first 4 GiB mapped to themselves.
//!
//! RDI is the vCPU's number, RSI where the command line is (it ends with a zero byte), RDX the number of vCPUs. There is
//! no stack.

use std::fs::File;

use anyhow::{Context, Result};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use crate::args::Args;
use crate::boot::{CMDLINE, CMDLINE_MAX, HIMEM, write_gdt, write_page_tables};

/// Puts the program, its command line, page tables and GDT into memory; returns the entry.
pub fn load(mem: &GuestMemoryMmap, args: &Args) -> Result<u64> {
    let name = args.kernel.display();
    let mut file = File::open(&args.kernel).with_context(|| format!("cannot open {name}"))?;
    let loaded = Elf::load(mem, None, &mut file, Some(GuestAddress(HIMEM)))
        .map_err(|e| anyhow::anyhow!("{name}: not an ELF program: {e}"))?;
    let mut cmdline = linux_loader::cmdline::Cmdline::new(CMDLINE_MAX)?;
    cmdline.insert_str(args.cmdline.trim()).context("--cmdline")?;
    load_cmdline(mem, GuestAddress(CMDLINE), &cmdline)?;
    write_page_tables(mem)?;
    write_gdt(mem)?;
    Ok(loaded.kernel_load.raw_value())
}

/// Makes vCPU `id` of `count` ready to run; its other registers are those of a boot CPU already.
pub fn set_start(fd: &VcpuFd, id: u8, count: u8) -> Result<()> {
    let mut regs = fd.get_regs().context("KVM_GET_REGS")?;
    (regs.rdi, regs.rsi, regs.rdx) = (id.into(), CMDLINE, count.into());
    fd.set_regs(&regs).context("KVM_SET_REGS")?;
    fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).context("KVM_SET_MP_STATE")
}
