use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use super::dsdt::dsdt;
use super::fadt::fadt;
use super::madt::madt;
use super::platform::{AcpiError, Platform};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// The tables as they stand in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Where `bytes` belong.
    pub base: u64,
    /// All tables, in one piece.
    pub bytes: Vec<u8>,
    /// The address of the RSDP, for `boot_params.acpi_rsdp_addr` or PVH's
    /// `rsdp_paddr`. It is `base`, and found by a search too if `base` is in
    /// 0xe0000 to 0xfffff.
    pub rsdp: u64,
}

/// Each table begins at a multiple of it: the RSDP must.
const ALIGNMENT: u64 = 16;

impl Platform {
    /// The tables, to be placed at guest address `base`.
    ///
    /// ```text
    /// base: RSDP -> XSDT -> FADT -> DSDT
    ///                    -> MADT
    ///                    -> MCFG
    /// ```
    ///
    /// # Errors
    /// See [`AcpiError`].
    pub fn build(&self, base: u64) -> Result<Tables, AcpiError> {
        self.check()?;
        let mut area = Area::new(base)?;
        // Overwritten at the end, when the XSDT's address is known.
        area.append(&Rsdp::new(OEM_ID, 0))?;
        let dsdt = area.append(&dsdt(self))?;
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(area.append(&fadt(self, dsdt))?);
        xsdt.add_entry(area.append(&madt(self))?);
        xsdt.add_entry(area.append(&self.mcfg())?);
        let xsdt = area.append(&xsdt)?;
        let mut rsdp = Vec::new();
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        area.bytes.splice(..rsdp.len(), rsdp);
        Ok(Tables {
            base,
            bytes: area.bytes,
            rsdp: base,
        })
    }

    /// Where memory-mapped config space is (PCI Firmware 3.3 §4.1.2).
    fn mcfg(&self) -> MCFG {
        let mut table = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        table.add_ecam(self.ecam, 0, 0, self.last_bus);
        table
    }
}

/// Memory that fills up from its start.
struct Area {
    base: u64,
    bytes: Vec<u8>,
}

impl Area {
    fn new(base: u64) -> Result<Self, AcpiError> {
        if !base.is_multiple_of(ALIGNMENT) {
            return Err(AcpiError::Base(base));
        }
        Ok(Self {
            base,
            bytes: Vec::new(),
        })
    }

    /// Puts a table behind the last one and returns its address.
    fn append(&mut self, table: &dyn Aml) -> Result<u64, AcpiError> {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT as usize);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        let error = AcpiError::Base(self.base);
        // Neither its first byte nor its last may be past the end.
        self.base
            .checked_add(self.bytes.len() as u64)
            .ok_or(error)?;
        Ok(self.base + offset as u64)
    }
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;
