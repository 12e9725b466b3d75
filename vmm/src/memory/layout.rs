use std::fmt;

use passthrough::iommu::IovaRange;
use thiserror::Error;

/// A range of guest physical addresses, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// The first address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl GuestRange {
    /// One past the last address.
    pub const fn end(self) -> u64 {
        self.start + self.size
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end() - 1)
    }
}

/// Why a guest can't be laid out.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// RAM would lie where the CPU or the IOMMU can't reach.
    #[error("guest RAM at {ram} does not fit: {limit}; give the guest less memory (--memory)")]
    Ram {
        /// The piece of RAM.
        ram: GuestRange,
        /// What it runs into, with the numbers.
        limit: String,
    },
}

/// Where things lie in the guest's physical address space.
///
/// ```text
///  0                RAM, at most 3 GiB
///  0xc000_0000      32-bit MMIO window: BARs, 768 MiB
///  0xf000_0000      ECAM, 1 MiB a bus: the root bus and 31 below root ports
///  0xfec0_0000      IOAPIC; 0xfee0_0000 local APIC and MSI; 0xfffb_c000 KVM's own pages
///  0x1_0000_0000    the rest of RAM
///  next GiB         64-bit MMIO window, to the end of what CPU and IOMMU address
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestLayout {
    /// RAM in ascending order; the first piece starts at 0.
    pub ram: Vec<GuestRange>,
    /// BARs below 4 GiB.
    pub mmio32: GuestRange,
    /// Config space of the root complex.
    pub ecam: GuestRange,
    /// BARs above 4 GiB; none when CPU and IOMMU leave no room.
    pub mmio64: Option<GuestRange>,
}

const GIB: u64 = 1 << 30;
const LOW_RAM_END: u64 = 3 * GIB;
const HIGH_RAM_START: u64 = 4 * GIB;
const ECAM_START: u64 = 0xf000_0000;

impl GuestLayout {
    /// The last bus: one below a port in each of the root bus's slots.
    pub const LAST_BUS: u8 = 31;
    /// Legacy PC holes end here; the ACPI tables stand below.
    pub const HIGH_MEMORY: u64 = 0x10_0000;
    /// The ACPI tables: the last 128 KiB below [`Self::HIGH_MEMORY`].
    pub const ACPI: GuestRange = GuestRange {
        start: 0xe_0000,
        size: 0x2_0000,
    };
    /// Usable RAM below the legacy holes ends here, as on every PC.
    pub const LOW_RAM_TOP: u64 = 0x9_fc00;
    /// Three pages that KVM needs on Intel CPUs (`KVM_SET_TSS_ADDR`).
    pub const KVM_TSS: u64 = 0xfffb_d000;
    /// One page that KVM needs on Intel CPUs (`KVM_SET_IDENTITY_MAP_ADDR`).
    pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

    /// Lays out `memory` bytes of RAM on a CPU with `address_bits` physical
    /// address bits. `iova` are the ranges that the IOMMU of the assigned
    /// devices can reach, in ascending order; nothing without devices.
    ///
    /// # Errors
    /// [`LayoutError`] when RAM does not fit.
    pub fn new(
        memory: u64,
        address_bits: u8,
        iova: Option<&[IovaRange]>,
    ) -> Result<Self, LayoutError> {
        let low = memory.min(LOW_RAM_END);
        let mut ram = vec![GuestRange {
            start: 0,
            size: low,
        }];
        if memory > low {
            ram.push(GuestRange {
                start: HIGH_RAM_START,
                size: memory - low,
            });
        }
        let cpu_end = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        for piece in &ram {
            let end = piece.start.checked_add(piece.size);
            if end.is_none_or(|end| end > cpu_end) {
                return Err(LayoutError::Ram {
                    ram: *piece,
                    limit: format!("the CPU addresses {address_bits} bits"),
                });
            }
            if let Some(ranges) = iova
                && !ranges.iter().any(|r| r.contains(piece.start, piece.size))
            {
                return Err(LayoutError::Ram {
                    ram: *piece,
                    limit: format!("the IOMMU reaches {}", list(ranges)),
                });
            }
        }
        let ram_end = ram.last().map_or(0, |piece| piece.end());
        let start = ram_end.max(HIGH_RAM_START).next_multiple_of(GIB);
        Ok(Self {
            ram,
            mmio32: GuestRange {
                start: LOW_RAM_END,
                size: ECAM_START - LOW_RAM_END,
            },
            ecam: GuestRange {
                start: ECAM_START,
                size: (Self::LAST_BUS as u64 + 1) << 20,
            },
            mmio64: high_window(start, cpu_end, iova),
        })
    }
}

/// The part of `start..cpu_end` that the IOMMU reaches in one piece, the
/// largest where reserved regions cut it up, in whole GiB.
fn high_window(start: u64, cpu_end: u64, iova: Option<&[IovaRange]>) -> Option<GuestRange> {
    let everything = [IovaRange {
        start: 0,
        last: cpu_end - 1,
    }];
    iova.unwrap_or(&everything)
        .iter()
        .filter_map(|range| {
            let first = range.start.max(start).checked_next_multiple_of(GIB)?;
            let end = range.last.saturating_add(1).min(cpu_end) / GIB * GIB;
            let size = end.checked_sub(first).filter(|size| *size > 0)?;
            Some(GuestRange { start: first, size })
        })
        .max_by_key(|window| window.size)
}

fn list(ranges: &[IovaRange]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the emulated VT-d of QEMU reports by default.
    const VTD_39_BIT: [IovaRange; 2] = [
        IovaRange {
            start: 0,
            last: 0xfedf_ffff,
        },
        IovaRange {
            start: 0xfef0_0000,
            last: 0x7f_ffff_ffff,
        },
    ];

    #[test]
    fn small_guest_under_a_narrow_iommu() {
        let layout = GuestLayout::new(512 << 20, 48, Some(&VTD_39_BIT)).unwrap();
        assert_eq!(layout.ram.len(), 1);
        let window = layout.mmio64.unwrap();
        assert_eq!(window.start, 4 * GIB);
        assert_eq!(window.end(), 1 << 39);
    }

    #[test]
    fn nothing_overlaps_below_4_gib() {
        let layout = GuestLayout::new(8 * GIB, 46, None).unwrap();
        assert_eq!(layout.ram[0].end(), layout.mmio32.start);
        assert_eq!(layout.mmio32.end(), layout.ecam.start);
        assert_eq!(layout.ecam.size, 32 << 20);
        assert!(layout.ecam.end() <= 0xfec0_0000, "the IOAPIC");
        // Where ACPI can say that it is: at a multiple of its size.
        assert!(layout.ecam.start.is_multiple_of(layout.ecam.size));
    }

    #[test]
    fn large_guest_is_split_round_the_hole() {
        let layout = GuestLayout::new(8 * GIB, 46, None).unwrap();
        assert_eq!(layout.ram[0].end(), 3 * GIB);
        assert_eq!(layout.ram[1].start, 4 * GIB);
        assert_eq!(layout.ram[1].size, 5 * GIB);
        assert_eq!(layout.mmio64.unwrap().start, 9 * GIB);
        assert_eq!(layout.mmio64.unwrap().end(), 1 << 46);
    }

    #[test]
    fn too_much_ram_is_refused_with_the_numbers() {
        let error = GuestLayout::new(513 * GIB, 48, Some(&VTD_39_BIT)).unwrap_err();
        assert!(
            error.to_string().contains("0xfef00000-0x7fffffffff"),
            "{error}"
        );
        let error = GuestLayout::new(1 << 40, 39, None).unwrap_err();
        assert!(error.to_string().contains("39 bits"), "{error}");
        assert!(GuestLayout::new(u64::MAX, 64, None).is_err());
    }

    #[test]
    fn the_largest_of_several_windows_is_taken() {
        let ranges = [
            IovaRange {
                start: 0,
                last: 0xfc_ffff_ffff,
            },
            IovaRange {
                start: 0x100_0000_0000,
                last: u64::MAX,
            },
        ];
        let layout = GuestLayout::new(GIB, 48, Some(&ranges)).unwrap();
        assert_eq!(layout.mmio64.unwrap().start, 0x100_0000_0000);
        assert_eq!(layout.mmio64.unwrap().end(), 1 << 48);
    }

    #[test]
    fn no_room_above_means_no_window() {
        let layout = GuestLayout::new(GIB, 32, None).unwrap();
        assert_eq!(layout.mmio64, None);
    }
}
