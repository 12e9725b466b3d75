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
        let last = self.start.saturating_add(self.size.saturating_sub(1));
        write!(f, "{:#x}-{last:#x}", self.start)
    }
}

/// Why a guest can't be laid out.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// There is not so much room for RAM.
    #[error(
        "{} MiB of guest RAM do not fit: {limit}, which leaves room for {} MiB; give the guest less memory (--memory)",
        .asked >> 20,
        .most >> 20
    )]
    Room {
        /// How much was asked for, in bytes.
        asked: u64,
        /// How much there is room for, in bytes.
        most: u64,
        /// What ends it, with the numbers.
        limit: String,
    },
    /// Kernels begin at the bottom of RAM.
    #[error(
        "guest RAM must begin at address 0, and {limit}: no guest can have devices for which that is reserved"
    )]
    Bottom {
        /// What is in the way, with the numbers.
        limit: String,
    },
    /// The host promised more before the devices were open.
    #[error(
        "guest RAM at {ram} can't be reached by the devices: now that they are open, the IOMMU reaches {reach}, which is not what `airlock check` foretells"
    )]
    Narrower {
        /// The piece of RAM.
        ram: GuestRange,
        /// What there is.
        reach: String,
    },
}

/// Where things lie in the guest's physical address space.
///
/// ```text
///  0                RAM, up to 3 GiB
///  0xc000_0000      32-bit MMIO window: BARs, 768 MiB
///  0xf000_0000      ECAM, 1 MiB a bus: the root bus and 31 below root ports
///  0xfec0_0000      IOAPIC; 0xfee0_0000 local APIC and MSI; 0xfffb_c000 KVM's own pages
///  0x1_0000_0000    the rest of RAM
///  next GiB         64-bit MMIO window, to the end of what CPU and IOMMU address
/// ```
///
/// What the IOMMU does not reach, because it is reserved there, is a hole in
/// RAM: RAM ends before it at a whole page of its backing, and goes on behind.
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
/// Pieces of RAM are made of these, so that every one can be a huge page.
const HUGE_PAGE: u64 = 2 << 20;
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
    /// BARs below 4 GiB.
    pub const MMIO32: GuestRange = GuestRange {
        start: LOW_RAM_END,
        size: ECAM_START - LOW_RAM_END,
    };

    /// Lays out `memory` bytes of RAM, in pages of 2 MiB, on a CPU with
    /// `address_bits` physical address bits. `iova` are the ranges that the
    /// IOMMU of the assigned devices can reach, in ascending order; nothing
    /// without devices.
    ///
    /// # Errors
    /// [`LayoutError`] when RAM does not fit, or does not fit at 0.
    pub fn new(
        memory: u64,
        address_bits: u8,
        iova: Option<&[IovaRange]>,
    ) -> Result<Self, LayoutError> {
        Self::with_pages(memory, HUGE_PAGE, address_bits, iova)
    }

    /// The same with RAM in pages of `page` bytes, a power of two of at least
    /// 2 MiB: each piece of RAM begins and ends at a multiple of it.
    ///
    /// # Errors
    /// [`LayoutError`] when RAM does not fit, or does not fit at 0.
    pub fn with_pages(
        memory: u64,
        page: u64,
        address_bits: u8,
        iova: Option<&[IovaRange]>,
    ) -> Result<Self, LayoutError> {
        let cpu_end = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        let limit = || {
            let cpu = format!("the CPU addresses {address_bits} bits");
            match iova {
                Some(ranges) => format!("{cpu} and the IOMMU reaches {}", list(ranges)),
                None => cpu,
            }
        };
        let (ram, left) = ram_pieces(memory, page, cpu_end, iova);
        match ram.first() {
            Some(first) if first.start == 0 => {}
            _ => return Err(LayoutError::Bottom { limit: limit() }),
        }
        if left > 0 {
            return Err(LayoutError::Room {
                asked: memory,
                most: memory - left,
                limit: limit(),
            });
        }
        let mmio64 = high_window(&ram, cpu_end, iova);
        Ok(Self {
            ram,
            mmio32: Self::MMIO32,
            ecam: GuestRange {
                start: ECAM_START,
                size: (Self::LAST_BUS as u64 + 1) << 20,
            },
            mmio64,
        })
    }

    /// The same layout where the IOMMU turns out to reach `iova`: RAM stays, and of the
    /// 64-bit window the largest piece that is reached.
    ///
    /// # Errors
    /// [`LayoutError::Narrower`] when it does not reach all of RAM.
    pub fn within(self, iova: &[IovaRange]) -> Result<Self, LayoutError> {
        let reached = |piece: &GuestRange| iova.iter().any(|r| r.contains(piece.start, piece.size));
        if let Some(piece) = self.ram.iter().find(|piece| !reached(piece)) {
            return Err(LayoutError::Narrower {
                ram: *piece,
                reach: list(iova),
            });
        }
        let mmio64 = self
            .mmio64
            .and_then(|window| largest_piece(window.start, window.end(), iova));
        Ok(Self { mmio64, ..self })
    }
}

/// Fills what CPU and IOMMU both reach with RAM, from the bottom up, in whole
/// pages of `page` bytes. Answers the pieces, and how much found no room.
pub(crate) fn ram_pieces(
    memory: u64,
    page: u64,
    cpu_end: u64,
    iova: Option<&[IovaRange]>,
) -> (Vec<GuestRange>, u64) {
    let everything = [IovaRange {
        start: 0,
        last: u64::MAX,
    }];
    let ranges = iova.unwrap_or(&everything);
    let mut left = memory;
    let mut ram = Vec::new();
    for (bottom, top) in [(0, LOW_RAM_END), (HIGH_RAM_START, cpu_end)] {
        for range in ranges {
            let top = top.min(cpu_end).min(range.last.saturating_add(1)) / page * page;
            let start = range.start.max(bottom).checked_next_multiple_of(page);
            let room = start.and_then(|start| Some((start, top.checked_sub(start)?)));
            let Some((start, room)) = room else { continue };
            let size = room.min(left);
            if size > 0 {
                ram.push(GuestRange { start, size });
            }
            left -= size;
        }
    }
    (ram, left)
}

/// What CPU and IOMMU both reach in one piece above `ram` and 4 GiB, in whole
/// GiB: the largest piece where reserved regions cut it up.
fn high_window(ram: &[GuestRange], cpu_end: u64, iova: Option<&[IovaRange]>) -> Option<GuestRange> {
    let ram_end = ram.last().map_or(0, |piece| piece.end());
    let start = ram_end.max(HIGH_RAM_START).checked_next_multiple_of(GIB)?;
    let everything = [IovaRange {
        start: 0,
        last: cpu_end - 1,
    }];
    largest_piece(start, cpu_end, iova.unwrap_or(&everything))
}

/// The largest piece between `start` and `end` that `iova` has, in whole GiB.
fn largest_piece(start: u64, end: u64, iova: &[IovaRange]) -> Option<GuestRange> {
    iova.iter()
        .filter_map(|range| {
            let first = range.start.max(start).checked_next_multiple_of(GIB)?;
            let end = range.last.saturating_add(1).min(end) / GIB * GIB;
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
#[path = "layout_test.rs"]
mod tests;
