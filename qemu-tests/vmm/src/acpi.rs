//! ACPI tables: just enough for Linux to find the vCPUs and the IO-APIC.

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use anyhow::Result;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// First port of the fixed event and control blocks; the bus answers reads with "ACPI mode is on".
pub const PM1_EVENT: u16 = 0x600;
/// Control block.
pub const PM1_CONTROL: u16 = 0x604;
const AREA: u64 = 0xe_0000;
const OEM: [u8; 6] = *b"VEAPF ";
const TABLE: [u8; 8] = *b"VEAPFVMM";
const LAPIC_BASE: u32 = 0xfee0_0000;
const IOAPIC_BASE: u32 = 0xfec0_0000;
/// FADT IAPC_BOOT_ARCH: no VGA (2), no CMOS RTC (5). The 8042 is left unsaid: Linux resets through it.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// MADT: there is a PIC too.
const PCAT_COMPAT: u8 = 1;

/// Writes the tables; returns the RSDP's address.
pub fn write(mem: &GuestMemoryMmap, vcpus: u8) -> Result<u64> {
    let rsdp_at = AREA;
    let mut at = AREA + 0x40;
    let mut put = |bytes: &[u8]| -> Result<u64> {
        let here = at;
        mem.write_slice(bytes, GuestAddress(here))?;
        at = (at + bytes.len() as u64 + 63) & !63;
        Ok(here)
    };

    let facs = put(&aml(&FACS::new()))?;
    // A header alone: no devices are described.
    let dsdt = put(Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1).as_slice())?;
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_32(u32::try_from(dsdt)?)
        .firmware_ctrl_32(u32::try_from(facs)?);
    // No buttons behind the event block.
    fadt = fadt.flag(Flags::PwrButton).flag(Flags::SlpButton);
    fadt.sci_int = 9.into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let fadt = put(&aml(&fadt.finalize()))?;

    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LAPIC_BASE));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IOAPIC_BASE, 0));
    let madt = put(&with_pcat(aml(&madt)))?;

    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&aml(&xsdt))?;
    mem.write_slice(&aml(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp_at))?;
    Ok(rsdp_at)
}

fn aml(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Sets the flag the crate has no setter for, and corrects the checksum (byte 9).
fn with_pcat(mut madt: Vec<u8>) -> Vec<u8> {
    madt[40] |= PCAT_COMPAT;
    madt[9] = 0;
    let sum = madt.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    madt[9] = sum.wrapping_neg();
    madt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums() -> Result<()> {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)])?;
        let rsdp = write(&mem, 4)?;
        let mut head = [0u8; 36];
        mem.read_slice(&mut head, GuestAddress(rsdp))?;
        assert_eq!(&head[..8], b"RSD PTR ");
        let xsdt = u64::from_le_bytes(head[24..32].try_into()?);
        let mut entries = [0u8; 16];
        mem.read_slice(&mut entries, GuestAddress(xsdt + 36))?;
        for at in [
            xsdt,
            u64::from_le_bytes(entries[..8].try_into()?),
            u64::from_le_bytes(entries[8..].try_into()?),
        ] {
            let len: u32 = mem.read_obj(GuestAddress(at + 4))?;
            let mut table = vec![0u8; len as usize];
            mem.read_slice(&mut table, GuestAddress(at))?;
            assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        Ok(())
    }
}
