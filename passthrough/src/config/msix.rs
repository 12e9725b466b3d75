use devices::pci::{BarIndex, BarInfo, ConfigSpace};

use super::ConfigError;
use crate::vfio::RegionArea;

/// The message control register, from the capability's start.
pub(crate) const CONTROL: u16 = 2;
const TABLE: u16 = 4;
const PBA: u16 = 8;
const TABLE_SIZE: u32 = 0x7ff;

/// A range of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BarArea {
    pub(crate) bar: BarIndex,
    pub(crate) area: RegionArea,
}

/// Where a function keeps its MSI-X structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MsixCapability {
    /// The capability's offset in config space.
    pub(crate) offset: u16,
    /// How many vectors.
    pub(crate) vectors: u16,
    /// The table.
    pub(crate) table: BarArea,
    /// The pending bits; nothing when they lie outside of every BAR, as those
    /// of some virtual functions do.
    pub(crate) pba: Option<BarArea>,
}

impl MsixCapability {
    /// Reads the capability at `at`.
    ///
    /// # Errors
    /// When the table does not lie in a memory BAR.
    pub(super) fn read(
        snapshot: &ConfigSpace,
        at: u16,
        bars: &[BarInfo],
    ) -> Result<Self, ConfigError> {
        let vectors = (snapshot.u16(at + CONTROL) & TABLE_SIZE as u16) + 1;
        let table = snapshot.u32(at + TABLE);
        let table_area = place(table, u64::from(vectors) * 16, bars);
        let pba_size = u64::from(vectors).div_ceil(64) * 8;
        Ok(Self {
            offset: at,
            vectors,
            table: table_area.ok_or(ConfigError::MsixTable {
                vectors,
                bar: table as u8 & 7,
                offset: u64::from(table & !7),
            })?,
            pba: place(snapshot.u32(at + PBA), pba_size, bars),
        })
    }
}

/// The place that a pointer register names: the BAR in bits 2:0, the offset in
/// the others.
fn place(pointer: u32, size: u64, bars: &[BarInfo]) -> Option<BarArea> {
    let offset = u64::from(pointer & !7);
    let index = BarIndex::new(pointer as u8 & 7)?;
    let bar = bars.iter().find(|bar| bar.index == index)?;
    let fits = !bar.kind.is_io() && offset + size <= bar.size;
    fits.then_some(BarArea {
        bar: index,
        area: RegionArea { offset, size },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::pci::{BarKind, Register};

    fn read(control: u32, table: u32, pba: u32) -> Result<MsixCapability, ConfigError> {
        let memory = BarKind::Memory32 {
            prefetchable: false,
        };
        let bars = [(0, memory, 0x4000), (2, BarKind::Io, 0x100)].map(|(index, kind, size)| {
            let index = BarIndex::new(index).unwrap();
            BarInfo { index, kind, size }
        });
        let snapshot = ConfigSpace::from_registers(&[
            Register::constant(0x42, 2, control),
            Register::constant(0x44, 4, table),
            Register::constant(0x48, 4, pba),
        ]);
        MsixCapability::read(&snapshot, 0x40, &bars)
    }

    #[test]
    fn table_and_pending_bits_are_found() {
        let msix = read(0xc040, 0x2000, 0x3000).unwrap();
        assert_eq!(msix.vectors, 65);
        let (offset, size) = (0x2000, 65 * 16);
        assert_eq!(msix.table.area, RegionArea { offset, size });
        let (offset, size) = (0x3000, 16);
        assert_eq!(msix.pba.unwrap().area, RegionArea { offset, size });
    }

    #[test]
    fn a_table_outside_is_refused() {
        for table in [0x3ff8, 0x4000, 0xffff_fff8, 0x2001, 0x0002, 0x0006, 0x0007] {
            let error = read(0, table, 0).unwrap_err();
            assert!(matches!(error, ConfigError::MsixTable { vectors: 1, .. }));
        }
        assert!(read(0, 0x3ff0, 0).is_ok());
        assert!(read(0x7ff, 0, 0).is_err(), "2048 vectors need 32 KiB");
    }

    #[test]
    fn pending_bits_outside_are_done_without() {
        assert_eq!(read(0, 0, 0x4000).unwrap().pba, None);
    }
}
