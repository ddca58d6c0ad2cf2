//! The guest's console: COM1, its output printed line by line with a prefix.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial, SerialState};
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

/// State of the console: the UART's registers, and the line that is not complete yet.
#[derive(Serialize, Deserialize)]
pub struct ConsoleState {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
    line: Vec<u8>,
}

impl ConsoleState {
    /// Reads it.
    pub fn save(console: &Console) -> ConsoleState {
        let uart = console.state();
        ConsoleState {
            baud_divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line_control: uart.line_control,
            line_status: uart.line_status,
            modem_control: uart.modem_control,
            modem_status: uart.modem_status,
            scratch: uart.scratch,
            in_buffer: uart.in_buffer,
            line: console.writer().line.clone(),
        }
    }

    /// Replaces the console by one in this state.
    pub fn load(&self, console: &mut Console) -> anyhow::Result<()> {
        let uart = SerialState {
            baud_divisor_low: self.baud_divisor[0],
            baud_divisor_high: self.baud_divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.in_buffer.clone(),
        };
        let irq = Interrupt(console.interrupt_evt().0.try_clone()?);
        let out = LineWriter { prefix: console.writer().prefix.clone(), line: self.line.clone() };
        *console = Serial::from_state(&uart, irq, NoEvents, out)
            .map_err(|error| anyhow::anyhow!("console: {error}"))?;
        Ok(())
    }
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
