//! What the children do. Each ends with 0 if the data was right.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ve_apf_testdev::PAGE_WORDS;

use crate::arena::Slice;
use crate::process;

/// Touches page `index`, missing, which holds the pattern of `round` when it is there.
pub(super) type Touch = fn(&Slice, usize, u64) -> i32;

/// What a child ends with that has found wrong data.
const WRONG: i32 = 1;
/// And one that is on the wrong CPU.
const ELSEWHERE: i32 = 2;

/// Reads it.
pub(super) fn read(slice: &Slice, index: usize, round: u64) -> i32 {
    if slice.wrong_bytes(index, round, 0..PAGE_WORDS) == 0 { 0 } else { WRONG }
}

/// Reads it, and must be on CPU 1 after that.
pub(super) fn read_and_move(slice: &Slice, index: usize, round: u64) -> i32 {
    let code = read(slice, index, round);
    if code == 0 && process::this_cpu() != 1 { ELSEWHERE } else { code }
}

/// Reads it on CPU 1, and may be anywhere after that.
pub(super) fn read_on_1(slice: &Slice, index: usize, round: u64) -> i32 {
    match process::move_to(0, 1) {
        Ok(()) => read(slice, index, round),
        Err(_) => ELSEWHERE,
    }
}

/// Has the kernel read it on CPU 1.
pub(super) fn write_on_1(slice: &Slice, index: usize, round: u64) -> i32 {
    match process::move_to(0, 1) {
        Ok(()) => write_to_pipe(slice, index, round),
        Err(_) => ELSEWHERE,
    }
}

/// Has the kernel read it.
pub(super) fn write_to_pipe(slice: &Slice, index: usize, round: u64) -> i32 {
    let Ok(ends) = process::pipe() else { return WRONG };
    match process::put_byte(ends[1], slice.page(index)) {
        Ok(()) => read(slice, index, round),
        Err(_) => WRONG,
    }
}

/// Has a child of its own, in the same memory, read it and then execute a program.
pub(super) fn vfork(slice: &Slice, index: usize, round: u64) -> i32 {
    extern "C" fn body(at: *mut libc::c_void) -> i32 {
        // SAFETY: the first word of a page of the arena.
        unsafe { at.cast::<u64>().read_volatile() };
        process::exec_exit()
    }
    let child = process::vfork(body, slice.page(index) as usize);
    match child.and_then(process::wait) {
        Ok(process::Status::Exited(process::EXEC_CODE)) => read(slice, index, round),
        _ => WRONG,
    }
}

/// The whole group ends.
pub(super) const EXIT: u8 = b'e';
/// One thread executes a program, so the others end.
pub(super) const EXEC: u8 = b'x';
/// Waits for the others.
pub(super) const JOIN: u8 = b'j';

/// A thread for each of the first `count` pages; this one does what the byte from `commands` says.
pub(super) fn group(slice: &Slice, count: usize, round: u64, commands: i32) -> i32 {
    static BAD: AtomicUsize = AtomicUsize::new(0);
    let threads: Vec<_> = (0..count)
        .map(|index| {
            let slice = slice.clone();
            let body = move || BAD.fetch_add(read(&slice, index, round) as usize, SeqCst);
            std::thread::Builder::new().stack_size(64 << 10).spawn(body)
        })
        .collect();
    match process::get_byte(commands) {
        // std's exit would run destructors; this is exit_group().
        // SAFETY: ends the process.
        Ok(EXIT) => unsafe { libc::_exit(0) },
        Ok(EXEC) => process::exec_exit(),
        Ok(JOIN) => {
            for thread in threads.into_iter().flatten() {
                // A panic ends the program.
                let _ = thread.join();
            }
            if BAD.load(SeqCst) == 0 { 0 } else { WRONG }
        }
        _ => WRONG,
    }
}
