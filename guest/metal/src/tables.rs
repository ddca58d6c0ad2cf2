//! GDT, TSS and IDT, each on a page of its own, so that a host may take one away and leave the others.

use crate::cpu::{CPUS, Cpu};
use core::cell::UnsafeCell;
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// Null, code, data, and two for each CPU's TSS.
const GDT_ENTRIES: usize = 3 + 2 * CPUS;
/// Selector of the first CPU's TSS; the next one's is 16 higher.
pub(crate) const FIRST_TSS: u16 = 3 * 8;
/// Bytes of a stack that an interrupt switches to.
pub const IST_STACK: usize = 2 * 4096;

/// Something that starts on a page and has it for itself.
#[repr(C, align(4096))]
pub struct Page<T>(UnsafeCell<T>);

// SAFETY: what is inside is reached through `get` only, whose users say why nobody else is there.
unsafe impl<T> Sync for Page<T> {}

impl<T> Page<T> {
    /// With this content.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Where it is.
    pub const fn get(&self) -> *mut T {
        self.0.get()
    }

    /// Its guest-physical address: memory is mapped to itself.
    pub fn address(&self) -> u64 {
        self.get().addr() as u64
    }
}

/// What the CPU itself reads, of one CPU.
#[repr(C)]
pub struct Tables {
    /// Global descriptor table.
    pub gdt: Page<GlobalDescriptorTable<GDT_ENTRIES>>,
    /// Task state segment: where the stacks of [`Stack`] are.
    pub tss: Page<TaskStateSegment>,
    /// Interrupt descriptor table.
    pub idt: Page<InterruptDescriptorTable>,
    /// Stack of the double fault.
    pub fault_stack: Page<[u8; IST_STACK]>,
    /// Stack of those interrupts that ask for [`Stack::Own`].
    pub own_stack: Page<[u8; IST_STACK]>,
}

/// The stack that an interrupt runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// That of the interrupted code.
    Interrupted,
    /// [`Tables::own_stack`]: the CPU must then read its TSS.
    Own,
}

const FAULT_INDEX: u16 = 0;
const OWN_INDEX: u16 = 1;

impl Tables {
    /// Empty ones.
    pub const fn new() -> Self {
        Self {
            gdt: Page::new(GlobalDescriptorTable::empty()),
            tss: Page::new(TaskStateSegment::new()),
            idt: Page::new(InterruptDescriptorTable::new()),
            fault_stack: Page::new([0; IST_STACK]),
            own_stack: Page::new([0; IST_STACK]),
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// Fills the tables of CPU `index` and makes the running CPU use them.
///
/// # Safety
/// Once for each index, on that CPU, with interrupts off. `stubs` are the IDT entries' code, by vector.
pub(crate) unsafe fn load(
    cpus: &'static [Cpu; CPUS],
    index: usize,
    stubs: impl Iterator<Item = (u8, u64, Stack)>,
) {
    let Some(cpu) = cpus.get(index) else { return };
    let tables = &cpu.tables;
    let top = |stack: &Page<[u8; IST_STACK]>| VirtAddr::new(stack.address() + IST_STACK as u64);
    // SAFETY: the caller promises that this CPU's tables are not in use yet, and nobody else's business.
    let (gdt, tss, idt) =
        unsafe { (&mut *tables.gdt.get(), &mut *tables.tss.get(), &mut *tables.idt.get()) };
    tss.interrupt_stack_table[usize::from(FAULT_INDEX)] = top(&tables.fault_stack);
    tss.interrupt_stack_table[usize::from(OWN_INDEX)] = top(&tables.own_stack);
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    for other in cpus {
        // SAFETY: a TSS lives in a static, and is only pointed to.
        gdt.append(unsafe { Descriptor::tss_segment_unchecked(other.tables.tss.get()) });
    }
    // SAFETY: the table is static, and has the segments that are loaded from it: flat ones, and this CPU's TSS, not
    // loaded before.
    unsafe {
        gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(SegmentSelector(FIRST_TSS + 16 * u16::try_from(index).unwrap_or(0)));
    }
    for (vector, address, stack) in stubs {
        // SAFETY: the stub is an entry for this vector, and pushes an error code where the CPU does not.
        unsafe { set(idt, vector, VirtAddr::new(address), stack) };
    }
    // SAFETY: the table is static and filled.
    unsafe { idt.load_unsafe() };
}

/// Makes `address` the entry of #VE on this CPU; the entry until now.
///
/// # Safety
/// `address` goes on at the entry that this returns, with all registers as they were.
pub unsafe fn redirect_ve(cpu: &Cpu, address: u64) -> u64 {
    // SAFETY: the running CPU's table; it reads it by itself, but only a #VE would read this entry, and there is none here.
    let idt = unsafe { &mut *cpu.tables.idt.get() };
    let before = idt.virtualization.handler_addr().as_u64();
    // SAFETY: passed on to the caller.
    unsafe { set(idt, 20, VirtAddr::new(address), Stack::Interrupted) };
    before
}

/// # Safety
/// `address` is an entry for `vector` that never returns but by `IRETQ`.
unsafe fn set(idt: &mut InterruptDescriptorTable, vector: u8, address: VirtAddr, stack: Stack) {
    let stack = match (vector, stack) {
        (8, _) => Some(FAULT_INDEX),
        (_, Stack::Own) => Some(OWN_INDEX),
        (_, Stack::Interrupted) => None,
    };
    macro_rules! entry {
        ($gate:expr) => {{
            // SAFETY: as promised by the caller.
            let options = unsafe { $gate.set_handler_addr(address) };
            if let Some(index) = stack {
                // SAFETY: `load` puts that stack into the TSS; what runs on it does not nest.
                unsafe { options.set_stack_index(index) };
            }
        }};
    }
    match vector {
        1 => entry!(idt.debug),
        2 => entry!(idt.non_maskable_interrupt),
        3 => entry!(idt.breakpoint),
        6 => entry!(idt.invalid_opcode),
        8 => entry!(idt.double_fault),
        10 => entry!(idt.invalid_tss),
        11 => entry!(idt.segment_not_present),
        12 => entry!(idt.stack_segment_fault),
        13 => entry!(idt.general_protection_fault),
        14 => entry!(idt.page_fault),
        20 => entry!(idt.virtualization),
        32.. => entry!(idt[vector]),
        _ => {}
    }
}
