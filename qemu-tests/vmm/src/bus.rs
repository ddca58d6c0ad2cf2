//! Ports of the machine.

use std::sync::Mutex;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::acpi::{PM1_CONTROL, PM1_EVENT};
use crate::counters::lock;
use crate::serial::{COM1, Console, ConsoleState};
use crate::testdev::{DeviceState, Next, TestDevice};

/// What the vCPU does after a port write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Enters the guest again.
    Resume,
    /// The guest is done, with this code.
    Exit(u8),
    /// The guest asked for a reset: a reboot, or a panic.
    Reset,
}

/// State of everything that answers at a port.
#[derive(Serialize, Deserialize)]
pub struct BusState {
    pm1_enable: [u8; 2],
    console: ConsoleState,
    device: DeviceState,
}

/// Everything that answers at a port.
pub struct Bus {
    /// ACPI's event enable register: nothing ever happens, but it must hold what is written.
    pm1_enable: Mutex<[u8; 2]>,
    console: Mutex<Console>,
    device: TestDevice,
}

const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
const RESET_CONTROL: u16 = 0xcf9;
const PM1_ENABLE: u16 = PM1_EVENT + 2;
const COM1_END: u16 = COM1 + 8;

impl Bus {
    /// A bus with these two.
    pub fn new(console: Console, device: TestDevice) -> Bus {
        Bus { pm1_enable: Mutex::default(), console: Mutex::new(console), device }
    }

    /// The test device.
    pub fn device(&self) -> &TestDevice {
        &self.device
    }

    /// `IN`.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        // Nothing there reads as ones, except where that would mean "busy".
        data.fill(0xff);
        match port {
            COM1..COM1_END => data.fill(lock(&self.console).read((port - COM1) as u8)),
            // Status of the 8042, CMOS, and ACPI's event status: nothing set.
            I8042_COMMAND | 0x60 | 0x61 | 0x70 | 0x71 | PM1_EVENT..PM1_ENABLE => data.fill(0),
            PM1_ENABLE..PM1_CONTROL => {
                let held = lock(&self.pm1_enable);
                data.iter_mut()
                    .zip(&held[usize::from(port - PM1_ENABLE)..])
                    .for_each(|(to, from)| *to = *from);
            }
            PM1_CONTROL => {
                data.fill(0);
                // SCI_EN: ACPI mode is on.
                data[0] = 1;
            }
            _ => {}
        }
    }

    /// `OUT`.
    pub fn write(&self, port: u16, data: &[u8]) -> After {
        match (port, data) {
            (COM1..COM1_END, [byte]) => {
                // Only the interrupt can fail, and the driver polls too.
                let _ = lock(&self.console).write((port - COM1) as u8, *byte);
            }
            (ve_apf_testdev::PORT, [a, b, c, d]) => {
                if let Next::Exit(code) = self.device.command(u32::from_le_bytes([*a, *b, *c, *d]))
                {
                    return After::Exit(code);
                }
            }
            (PM1_ENABLE..PM1_CONTROL, data) => {
                let mut held = lock(&self.pm1_enable);
                held[usize::from(port - PM1_ENABLE)..]
                    .iter_mut()
                    .zip(data)
                    .for_each(|(to, from)| *to = *from);
            }
            (I8042_COMMAND, [I8042_RESET]) => return After::Reset,
            (RESET_CONTROL, [byte]) if byte & 4 != 0 => return After::Reset,
            _ => {}
        }
        After::Resume
    }

    /// Reads the state of all.
    pub fn save(&self) -> Result<BusState> {
        Ok(BusState {
            pm1_enable: *lock(&self.pm1_enable),
            console: ConsoleState::save(&lock(&self.console)),
            device: self.device.save()?,
        })
    }

    /// Puts it back.
    pub fn load(&self, state: &BusState) -> Result<()> {
        *lock(&self.pm1_enable) = state.pm1_enable;
        state.console.load(&mut lock(&self.console))?;
        self.device.load(&state.device);
        Ok(())
    }

    /// Prints an unfinished console line.
    pub fn finish(&self) {
        lock(&self.console).writer_mut().finish();
    }
}
