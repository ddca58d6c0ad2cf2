//! The kernel's own pages, by name, for tests that take them away.

use core::fmt::{self, Display};
use core::mem::offset_of;
use core::ops::Range;

use ve_apf_metal::cpu::{Cpu, all};
use ve_apf_metal::sched::STACK as TASK_STACK;
use ve_apf_metal::tables::IST_STACK;

use x86_64::PhysAddr;
use x86_64::structures::paging::{PageTable, PageTableFlags};

use crate::start::{STACK, STACKS};

/// The VMM's page tables: PML4, PDPT, and a directory for each of 4 GiB.
pub(crate) const PAGE_TABLES: Range<u64> = 0x9..0xf;

/// How much further up memory is mapped a second time; see [`map_again`].
pub(crate) const SECOND: u64 = 1 << 30;
/// The page directory of that mapping, which nothing else needs.
pub(crate) const SECOND_DIRECTORY: u64 = PAGE_TABLES.start + 3;

/// Maps the first 64 MiB a second time, through a page directory that is not the first one's.
pub(crate) fn map_again() {
    let table =
        core::ptr::with_exposed_provenance_mut::<PageTable>(SECOND_DIRECTORY as usize * 4096);
    // SAFETY: the VMM put a page directory there. What its entries mapped, memory that does not exist, nobody touches.
    let table = unsafe { &mut *table };
    let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::HUGE_PAGE;
    for (i, entry) in table.iter_mut().take(32).enumerate() {
        entry.set_addr(PhysAddr::new((i as u64) << 21), flags);
    }
}

#[cfg(target_os = "none")]
mod symbols {
    unsafe extern "C" {
        pub(super) static __image_start: u8;
        pub(super) static __entry_start: u8;
        pub(super) static __entry_end: u8;
        pub(super) static __probe_start: u8;
        pub(super) static __probe_end: u8;
        pub(super) static __text_end: u8;
        pub(super) static __rodata_end: u8;
        pub(super) static __data_end: u8;
        pub(super) static __keep_start: u8;
        pub(super) static __keep_end: u8;
        pub(super) static __image_end: u8;
    }
}
/// What the linker script would supply.
#[cfg(not(target_os = "none"))]
#[expect(non_upper_case_globals, reason = "as the linker names them")]
mod symbols {
    pub(super) static __image_start: u8 = 0;
    pub(super) static __entry_start: u8 = 0;
    pub(super) static __entry_end: u8 = 0;
    pub(super) static __probe_start: u8 = 0;
    pub(super) static __probe_end: u8 = 0;
    pub(super) static __text_end: u8 = 0;
    pub(super) static __rodata_end: u8 = 0;
    pub(super) static __data_end: u8 = 0;
    pub(super) static __keep_start: u8 = 0;
    pub(super) static __keep_end: u8 = 0;
    pub(super) static __image_end: u8 = 0;
}
use symbols::*;

macro_rules! frames {
    ($start:ident, $end:ident) => {
        (&raw const $start).addr() as u64 / 4096..(&raw const $end).addr() as u64 / 4096
    };
}

/// Every page of the kernel that may be taken away.
pub(crate) fn own_frames() -> [Range<u64>; 3] {
    [PAGE_TABLES, frames!(__image_start, __keep_start), frames!(__keep_end, __image_end)]
}

/// The first page of the exceptions' entry code.
pub(crate) fn entry_frame() -> u64 {
    frames!(__entry_start, __entry_end).start
}

/// A page's name.
pub(crate) struct Name(pub(crate) u64);

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gpa = self.0 * 4096;
        for (i, cpu) in all().iter().enumerate() {
            if let Some((name, at)) = part_of(cpu, gpa) {
                return write!(f, "cpu{i} {name}+{at:#x}");
            }
        }
        for (i, stack) in STACKS.iter().enumerate() {
            if let Some(at) = inside(gpa, stack.address(), STACK) {
                return write!(f, "cpu{i} stack+{at:#x}");
            }
        }
        for (cpu, task) in
            (0..all().len()).flat_map(|c| (0..ve_apf_metal::sched::TASKS).map(move |t| (c, t)))
        {
            let start = all().first().and_then(|one| one.sched.stack_of(cpu, task)).unwrap_or(0);
            if let Some(at) = inside(gpa, start, TASK_STACK) {
                return write!(f, "cpu{cpu} stack of task {task}+{at:#x}");
            }
        }
        let sections = [
            ("page tables", PAGE_TABLES),
            ("entry", frames!(__entry_start, __entry_end)),
            ("probe", frames!(__probe_start, __probe_end)),
            ("text", frames!(__image_start, __text_end)),
            ("rodata", frames!(__text_end, __rodata_end)),
            ("data", frames!(__rodata_end, __data_end)),
            ("bss", frames!(__keep_end, __image_end)),
        ];
        match sections.iter().find(|(_, frames)| frames.contains(&self.0)) {
            Some((name, frames)) => write!(f, "{name}+{:#x}", (self.0 - frames.start) * 4096),
            None => write!(f, "{gpa:#x}"),
        }
    }
}

fn inside(gpa: u64, start: u64, length: usize) -> Option<u64> {
    gpa.checked_sub(start).filter(|at| *at < length as u64)
}

fn part_of(cpu: &Cpu, gpa: u64) -> Option<(&'static str, u64)> {
    let tables = &cpu.tables;
    let parts = [
        ("gdt", tables.gdt.address(), 4096),
        ("tss", tables.tss.address(), 4096),
        ("idt", tables.idt.address(), 4096),
        ("fault stack", tables.fault_stack.address(), IST_STACK),
        ("own stack", tables.own_stack.address(), IST_STACK),
        ("ring", cpu.ring.address(), 4096),
        ("ve info", cpu.info[0].address(), 2 * 4096),
        ("data", (&raw const cpu.sched).addr() as u64, size_of::<Cpu>() - offset_of!(Cpu, sched)),
    ];
    parts.into_iter().find_map(|(name, start, length)| Some((name, inside(gpa, start, length)?)))
}
