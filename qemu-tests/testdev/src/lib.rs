//! Layout of the paravirtual test device, shared by the VMM (device side) and the payloads (driver side).
//!
//! The guest fills one 4 KiB page of its own, the *command page*, and writes the page's frame number to
//! [`PORT`] with a 32-bit `OUT`. The vCPU leaves KVM, the VMM carries the command out before it enters again, and the
//! page then holds the status and the results. So a command is synchronous, costs one exit, and needs no interrupt.
//!
//! All words are little endian. The data area holds runs of frames, JSON text or nothing, as each [`Op`] says.
#![no_std]
#![forbid(unsafe_code)]

mod loss;
mod mark;
mod mmu;
mod page;
mod pattern;
mod runs;

pub use loss::Loss;
pub use mark::Mark;
pub use mmu::Mmu;
pub use page::{CommandPage, Nmi, Op, Order, PolicyArgs};
pub use pattern::{PAGE_WORDS, pattern_base, pattern_word};
pub use runs::{MAX_RUN, Run, RunIter, push_run};

/// I/O port of the device. A 32-bit write hands over a command page's frame number.
pub const PORT: u16 = 0x510;
/// Value of the command page's first word.
pub const MAGIC: u32 = 0x4650_4156;
/// Version of this layout; [`Op::Hello`] returns the VMM's.
pub const VERSION: u64 = 1;
/// Size of a guest page in bytes.
pub const PAGE_SIZE: usize = 4096;
/// Bytes before the data area.
pub const HEADER_SIZE: usize = 96;
/// Bytes in the data area.
pub const DATA_SIZE: usize = PAGE_SIZE - HEADER_SIZE;
/// Longest label, in bytes.
pub const LABEL_SIZE: usize = 32;
