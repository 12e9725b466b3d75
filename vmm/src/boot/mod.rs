//! Loading: kernel image, initrd, command line, and what the kernel is told.

mod image;
mod initrd;
mod linux64;
mod pvh;

use std::path::PathBuf;

use linux_loader::cmdline::Cmdline;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

pub use image::{ImageError, KernelImage};
pub use initrd::{Initrd, InitrdError};

use crate::memory::{GuestLayout, GuestRam, GuestRange};
use crate::vcpu::EntryPoint;

/// Why a guest could not be loaded.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The initrd.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The command line.
    #[error(
        "the kernel command line has {length} bytes, this kernel takes {limit}: shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// What fits.
        limit: usize,
    },
    /// The command line has a byte that can't be in one.
    #[error("the kernel command line can't be used: {0}")]
    Cmdline(String),
    /// Kernel and initrd are larger than RAM.
    #[error(
        "{path} does not fit into the guest's memory: it needs {needed:#x} bytes from {start:#x} on, and RAM there ends at {end:#x}; {advice}"
    )]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its first byte in the guest.
        start: u64,
        /// Bytes.
        needed: u64,
        /// Where RAM ends.
        end: u64,
        /// What to do.
        advice: &'static str,
    },
    /// Guest memory refused.
    #[error("cannot write {0} into guest memory")]
    Write(&'static str, #[source] vm_memory::GuestMemoryError),
}

/// What to boot, opened and checked, not loaded yet.
#[derive(Debug)]
pub struct BootSource {
    kernel: KernelImage,
    initrd: Option<Initrd>,
    cmdline: String,
}

const CMDLINE: u64 = 0x2_0000;
/// Room for the command line below the legacy holes; the kernel's own limit
/// is lower.
const CMDLINE_CAPACITY: usize = 0x1_0000;

impl BootSource {
    /// Opens and checks the files; nothing is loaded.
    ///
    /// # Errors
    /// [`BootError`], naming the file and what is wrong with it.
    pub fn open(
        kernel: PathBuf,
        initrd: Option<PathBuf>,
        cmdline: &str,
    ) -> Result<Self, BootError> {
        let kernel = KernelImage::open(kernel)?;
        let initrd = initrd.map(Initrd::open).transpose()?;
        let limit = kernel.cmdline_limit().min(CMDLINE_CAPACITY - 1);
        if cmdline.len() > limit {
            return Err(BootError::CmdlineTooLong {
                length: cmdline.len(),
                limit,
            });
        }
        let mut checked = Cmdline::new(CMDLINE_CAPACITY)
            .map_err(|error| BootError::Cmdline(error.to_string()))?;
        if !cmdline.is_empty() {
            checked
                .insert_str(cmdline)
                .map_err(|error| BootError::Cmdline(error.to_string()))?;
        }
        Ok(Self {
            kernel,
            initrd,
            cmdline: cmdline.to_owned(),
        })
    }

    /// Checks that kernel and initrd fit into the first piece of RAM, so that
    /// a guest that can't boot is refused before anything is opened for it.
    ///
    /// # Errors
    /// [`BootError::TooLarge`] with the numbers.
    pub fn check_fit(&self, layout: &GuestLayout) -> Result<(), BootError> {
        self.place_initrd(layout).map(|_| ())
    }

    /// Loads everything and tells the kernel about `layout` and the ACPI
    /// tables at `rsdp`.
    ///
    /// # Errors
    /// [`BootError`] when something does not fit or can't be read.
    pub fn load(
        mut self,
        ram: &GuestRam,
        layout: &GuestLayout,
        rsdp: u64,
    ) -> Result<EntryPoint, BootError> {
        let initrd = self.place_initrd(layout)?;
        let loaded = self.kernel.load(ram)?;
        if let (Some(file), Some(range)) = (&mut self.initrd, initrd) {
            file.load(ram, range)?;
        }
        let mut text = self.cmdline.into_bytes();
        text.push(0);
        ram.view()
            .write_slice(&text, GuestAddress(CMDLINE))
            .map_err(|e| BootError::Write("the kernel command line", e))?;
        let facts = BootFacts {
            layout,
            initrd,
            cmdline: GuestRange {
                start: CMDLINE,
                size: text.len() as u64,
            },
            rsdp,
        };
        match loaded {
            image::Loaded::BzImage { header, entry } => linux64::write(ram, &facts, *header, entry),
            image::Loaded::Pvh { entry } => pvh::write(ram, &facts, entry),
        }
    }

    /// The initrd lies as high as it may, out of the way of the kernel's
    /// decompression.
    fn place_initrd(&self, layout: &GuestLayout) -> Result<Option<GuestRange>, BootError> {
        let low_ram = layout.ram[0];
        let advice = if layout.ram.len() > 1 && low_ram.end() < layout.mmio32.start {
            "what follows is reserved for one of the devices, which such a guest can't have"
        } else {
            "give the guest more memory (--memory)"
        };
        let kernel = self.kernel.footprint();
        let too_large = |path: &PathBuf, start, needed| BootError::TooLarge {
            path: path.clone(),
            start,
            needed,
            end: low_ram.end(),
            advice,
        };
        if kernel.end() > low_ram.end() {
            return Err(too_large(self.kernel.path(), kernel.start, kernel.size));
        }
        let Some(initrd) = &self.initrd else {
            return Ok(None);
        };
        let top = low_ram.end().min(self.kernel.initrd_limit());
        let start = top.checked_sub(initrd.size()).map(|start| start & !0xfff);
        match start {
            Some(start) if start >= kernel.end() => Ok(Some(GuestRange {
                start,
                size: initrd.size(),
            })),
            _ => Err(too_large(initrd.path(), kernel.end(), initrd.size())),
        }
    }
}

/// What both boot protocols tell the kernel, each in its own format.
struct BootFacts<'a> {
    layout: &'a GuestLayout,
    initrd: Option<GuestRange>,
    cmdline: GuestRange,
    rsdp: u64,
}

/// What a piece of the guest's memory map is; the numbers are those of e820
/// and PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum MemoryKind {
    Ram = 1,
    Reserved = 2,
}

/// The memory map that firmware would report.
fn memory_map(layout: &GuestLayout) -> Vec<(GuestRange, MemoryKind)> {
    let piece = |start, end: u64, kind| {
        let size = end - start;
        (GuestRange { start, size }, kind)
    };
    let mut map = vec![
        piece(0, GuestLayout::LOW_RAM_TOP, MemoryKind::Ram),
        piece(
            GuestLayout::ACPI.start,
            GuestLayout::ACPI.end(),
            MemoryKind::Reserved,
        ),
        // Linux takes ECAM from the MCFG table only where it is reserved.
        (layout.ecam, MemoryKind::Reserved),
    ];
    for range in &layout.ram {
        let start = range.start.max(GuestLayout::HIGH_MEMORY);
        if start < range.end() {
            map.push(piece(start, range.end(), MemoryKind::Ram));
        }
    }
    map.sort_by_key(|(range, _)| range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_is_sorted_and_disjoint() {
        let layout = GuestLayout::new(5 << 30, 46, None).unwrap();
        let map = memory_map(&layout);
        assert_eq!(map.len(), 5);
        for pair in map.windows(2) {
            assert!(pair[0].0.end() <= pair[1].0.start, "{pair:?}");
        }
        let ram: u64 = map
            .iter()
            .filter(|(_, kind)| *kind == MemoryKind::Ram)
            .map(|(range, _)| range.size)
            .sum();
        assert_eq!(
            ram,
            (5 << 30) - (GuestLayout::HIGH_MEMORY - GuestLayout::LOW_RAM_TOP)
        );
    }
}
