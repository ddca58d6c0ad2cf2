//! The guest's console: COM1, its output printed line by line with a prefix.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// Its interrupt.
pub const COM1_GSI: u32 = 4;

/// Raises the interrupt through KVM's irqfd.
pub struct Interrupt(pub EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// COM1 with its output.
pub type Console = Serial<Interrupt, NoEvents, LineWriter>;

/// A console whose lines start with `prefix`.
pub fn console(irq: EventFd, prefix: String) -> Console {
    Serial::new(Interrupt(irq), LineWriter { prefix, line: Vec::new() })
}

/// Collects a line and prints it in one piece, so that it does not mix with records.
pub struct LineWriter {
    prefix: String,
    line: Vec<u8>,
}

impl LineWriter {
    /// Prints what there is of an unfinished line.
    pub fn finish(&mut self) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            self.print();
        }
    }

    fn print(&mut self) {
        let mut out = io::stdout().lock();
        // Nobody to tell if our own standard output is gone.
        let _ = out
            .write_all(self.prefix.as_bytes())
            .and_then(|()| out.write_all(&self.line))
            .and_then(|()| out.flush());
        self.line.clear();
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes.iter().filter(|byte| **byte != b'\r') {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= 1024 {
                self.print();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
