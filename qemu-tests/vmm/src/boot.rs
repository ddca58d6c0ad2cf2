//! Loads a kernel for its 64-bit boot protocol (Documentation/arch/x86/boot.rst): a bzImage, or a vmlinux, which spares
//! the guest the decompression.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use linux_loader::bootparam::{boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{KernelLoader, load_cmdline};
use ve_apf_testdev::Run;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::args::Args;

/// Global descriptor table of the boot CPU.
pub const GDT: u64 = 0x500;
/// Boot parameters ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the page tables that map the first 4 GiB to themselves.
pub const PML4: u64 = 0x9000;
/// Initial stack.
pub const STACK: u64 = 0x8ff0;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
pub(crate) const CMDLINE: u64 = 0x2_0000;
pub(crate) const CMDLINE_MAX: usize = 4096;
const EBDA: u64 = 0x9_fc00;
pub(crate) const HIMEM: u64 = 0x10_0000;
const ENTRY_64: u64 = 0x200;
/// "HdrS".
const HDRS: u32 = 0x5372_6448;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Before the user's text: console, no devices we do not have, and a panic that ends the VM.
const BASE_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 pci=off";

/// What a boot after a reset is told.
#[derive(Debug, Default)]
pub struct Again {
    /// Resets so far; the guest finds it as `veapf.boot`.
    pub number: u32,
    /// Memory that is not the guest's.
    pub reserved: Vec<Run>,
}

/// Puts kernel, initial RAM disk, command line, boot parameters, page tables and GDT into memory; returns the entry.
pub fn load(mem: &GuestMemoryMmap, args: &Args, rsdp: u64, again: &Again) -> Result<u64> {
    let mem_size = u64::from(args.mem_mib) << 20;
    let (entry, header) = load_kernel(mem, &args.kernel)?;
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    params.hdr.type_of_loader = 0xff;
    params.acpi_rsdp_addr = rsdp;
    load_initrd(mem, args, mem_size, &mut params)?;
    let mut text = format!("{BASE_CMDLINE} {}", args.cmdline);
    if again.number > 0 {
        text.push_str(&format!(" veapf.boot={}", again.number));
    }
    let mut cmdline = linux_loader::cmdline::Cmdline::new(CMDLINE_MAX)?;
    cmdline.insert_str(text.trim()).context("--cmdline")?;
    load_cmdline(mem, GuestAddress(CMDLINE), &cmdline)?;
    params.hdr.cmd_line_ptr = u32::try_from(CMDLINE)?;
    params.hdr.cmdline_size = u32::try_from(text.len() + 1)?;

    let map = [
        (0, EBDA, E820_RAM),
        (EBDA, HIMEM - EBDA, E820_RESERVED),
        (HIMEM, mem_size - HIMEM, E820_RAM),
    ];
    // Of entries that overlap, Linux takes the one that is not RAM.
    let reserved =
        again.reserved.iter().map(|run| (run.first << 12, run.count << 12, E820_RESERVED));
    let map: Vec<_> = map.into_iter().chain(reserved).collect();
    anyhow::ensure!(map.len() <= params.e820_table.len(), "too many reserved ranges");
    for (entry, (addr, size, kind)) in params.e820_table.iter_mut().zip(&map) {
        entry.addr = *addr;
        entry.size = *size;
        entry.r#type = *kind;
    }
    params.e820_entries = u8::try_from(map.len())?;
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(ZERO_PAGE)),
        mem,
    )?;

    write_page_tables(mem)?;
    write_gdt(mem)?;
    Ok(entry)
}

/// Puts the kernel into memory; returns its entry and its setup header.
fn load_kernel(mem: &GuestMemoryMmap, path: &Path) -> Result<(u64, setup_header)> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let himem = Some(GuestAddress(HIMEM));
    let name = path.display();
    let mut magic = [0; 4];
    file.read_exact(&mut magic).with_context(|| format!("cannot read {name}"))?;
    if magic == *b"\x7fELF" {
        let loaded = Elf::load(mem, None, &mut file, himem)
            .map_err(|e| anyhow::anyhow!("{name}: not a vmlinux: {e}"))?;
        let header = setup_header {
            boot_flag: 0xaa55,
            header: HDRS,
            kernel_alignment: 0x20_0000,
            ..setup_header::default()
        };
        return Ok((loaded.kernel_load.raw_value(), header));
    }
    let loaded = BzImage::load(mem, None, &mut file, himem)
        .map_err(|e| anyhow::anyhow!("{name}: not a bzImage: {e}"))?;
    match loaded.setup_header {
        Some(header) if header.xloadflags & 1 != 0 => {
            Ok((loaded.kernel_load.raw_value() + ENTRY_64, header))
        }
        _ => bail!("{name}: no 64-bit entry point"),
    }
}

fn load_initrd(
    mem: &GuestMemoryMmap,
    args: &Args,
    mem_size: u64,
    params: &mut boot_params,
) -> Result<()> {
    let Some(path) = &args.initrd else { return Ok(()) };
    let image = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let len = image.len() as u64;
    // Below it the kernel unpacks itself; half of memory is plenty for both.
    if len > mem_size / 2 {
        bail!("{}: {len} bytes do not fit into half of {} MiB", path.display(), args.mem_mib);
    }
    let start = (mem_size - len) & !0xfff;
    mem.write_slice(&image, GuestAddress(start))?;
    params.hdr.ramdisk_image = u32::try_from(start)?;
    params.hdr.ramdisk_size = u32::try_from(len)?;
    Ok(())
}

pub(crate) fn write_page_tables(mem: &GuestMemoryMmap) -> Result<()> {
    const PRESENT_RW: u64 = 3;
    const LARGE: u64 = 0x80;
    mem.write_obj(PDPT | PRESENT_RW, GuestAddress(PML4))?;
    for gib in 0..4 {
        mem.write_obj((PD + gib * 0x1000) | PRESENT_RW, GuestAddress(PDPT + gib * 8))?;
        for i in 0..512 {
            let page = gib << 30 | i << 21;
            mem.write_obj(page | PRESENT_RW | LARGE, GuestAddress(PD + gib * 0x1000 + i * 8))?;
        }
    }
    Ok(())
}

/// Selectors of the boot protocol: 0x10 code, 0x18 data; 0x20 is a TSS, which VMX wants to be there.
pub(crate) fn write_gdt(mem: &GuestMemoryMmap) -> Result<()> {
    let table: [u64; 5] =
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
    for (i, descriptor) in (0u64..).zip(table) {
        mem.write_obj(descriptor, GuestAddress(GDT + i * 8))?;
    }
    Ok(())
}
