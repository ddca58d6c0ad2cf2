//! Accesses from user mode.

use std::arch::asm;
use std::io;

use super::site::{Acted, Filled, Make, Plan};
use crate::sys::PAGE;

pub(super) const SITES: [(&str, Make); 7] = [
    ("user_read", read),
    ("user_write", write),
    ("movs_from", movs_from),
    ("movs_to", movs_to),
    ("crossing", crossing),
    ("fetch", fetch),
    ("stack", stack),
];

fn read() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let same = page.clone();
    Ok(page.plan(0, 0, move || {
        if same.pages.read(0, 7) == same.word(0, 7) { Acted::All } else { Acted::Part }
    }))
}

fn write() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    let pages = page.pages;
    Ok(page.plan(0, 1, move || {
        pages.write(0, 0, 0x1234);
        Acted::All
    }))
}

/// `rep movsb` of a page.
fn movs(to: *mut u8, from: *const u8) {
    // SAFETY: both are mapped pages of ours, and nothing in Rust refers to what they hold.
    unsafe {
        asm!(
            "rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") PAGE => _,
            options(nostack, preserves_flags)
        );
    }
}

fn movs_from() -> io::Result<Plan> {
    let (page, copy) = (Filled::anonymous(1)?, Filled::anonymous(1)?);
    let same = page.clone();
    let (to, from) = (copy.pages, page.pages);
    let mut plan = page.plan(0, 0, move || {
        movs(to.page(0), from.page(0));
        Acted::All
    });
    plan.check = Box::new(move || {
        let words = 0..PAGE / 8;
        let differ = |word: &usize| copy.pages.read(0, *word) != same.word(0, *word);
        Ok(words.filter(differ).count() as u64 * 8)
    });
    Ok(plan)
}

fn movs_to() -> io::Result<Plan> {
    let (page, source) = (Filled::anonymous(1)?, Filled::anonymous(1)?);
    let (to, from) = (page.pages, source.clone());
    let mut plan = page.plan(0, 0, move || {
        movs(to.page(0), source.at(0));
        Acted::All
    });
    plan.check = Box::new(move || {
        let words = 0..PAGE / 8;
        let differ = |word: &usize| to.read(0, *word) != from.word(0, *word);
        Ok(words.filter(differ).count() as u64 * 8)
    });
    Ok(plan)
}

/// Half of a word is on the page before.
fn crossing() -> io::Result<Plan> {
    let pages = Filled::anonymous(2)?;
    let same = pages.clone();
    Ok(pages.plan(1, 0, move || {
        let at = same.at(0).wrapping_add(PAGE - 4).cast::<u64>();
        // SAFETY: eight bytes of two neighbouring pages of ours.
        let word = unsafe { at.read_unaligned() };
        let expected = same.word(0, PAGE / 8 - 1) >> 32 | same.word(1, 0) << 32;
        if std::hint::black_box(word) == expected { Acted::All } else { Acted::Part }
    }))
}

/// `mov eax, 0x2a; ret`.
const CODE: [u8; 6] = [0xb8, 0x2a, 0, 0, 0, 0xc3];

fn fetch() -> io::Result<Plan> {
    let page = Filled::anonymous(1)?;
    for (i, byte) in CODE.iter().enumerate() {
        // SAFETY: inside of a page of ours.
        unsafe { page.at(0).add(i).write_volatile(*byte) };
    }
    let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: the page is ours; what it holds stays.
    if unsafe { libc::mprotect(page.at(0).cast(), PAGE, prot) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let at = page.at(0);
    Ok(page.plan(0, 1, move || {
        // SAFETY: the page starts with a function of this signature, which touches only EAX.
        let function = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> i32>(at) };
        if function() == 0x2a { Acted::All } else { Acted::Part }
    }))
}

/// A push to a stack that is lost. The handler has one of its own.
fn stack() -> io::Result<Plan> {
    const PAGES: usize = 4;
    let (page, handler) = (Filled::anonymous(1)?, Filled::anonymous(PAGES)?);
    let alternate =
        libc::stack_t { ss_sp: handler.at(0).cast(), ss_flags: 0, ss_size: PAGES * PAGE };
    // SAFETY: the handler's stack is ours and stays.
    if unsafe { libc::sigaltstack(&alternate, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let pages = page.pages;
    Ok(page.plan(0, 1, move || {
        let top = pages.page(0).wrapping_add(8);
        // SAFETY: one word of a page of ours is pushed and popped; the stack pointer is then as it was. A handler in
        // between runs on the stack that it was given.
        unsafe {
            asm!(
                "xchg rsp, {top}", "push 5", "pop {word}", "xchg rsp, {top}",
                top = inout(reg) top => _, word = out(reg) _,
            );
        }
        if pages.read(0, 0) == 5 { Acted::All } else { Acted::Part }
    }))
}
