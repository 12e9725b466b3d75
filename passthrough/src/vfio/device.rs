use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use devices::pci::PciAddress;
use thiserror::Error;

use super::HotReset;
use crate::ports::HostMemory;

/// A byte range inside a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionArea {
    /// From the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A region of the device: BAR 0 to 5, the ROM (6), config space (7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 when the device has no such region.
    pub size: u64,
    /// May be read with [`DeviceBackend::region_read`].
    pub readable: bool,
    /// May be written with [`DeviceBackend::region_write`].
    pub writable: bool,
    /// What may be mapped: the whole region, the kernel's sparse areas, or
    /// nothing. Says nothing about the MSI-X table, which is never handed out.
    pub mappable: Vec<RegionArea>,
}

/// The interrupt kinds of a VFIO PCI device (`VFIO_PCI_*_IRQ_INDEX`, linux/vfio.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum IrqIndex {
    /// The level-triggered pin.
    Intx = 0,
    /// MSI.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// The device reported an uncorrectable error.
    Error = 3,
    /// The host wants the device back.
    Request = 4,
}

/// What the kernel says of one interrupt kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// How many vectors.
    pub count: u32,
    /// The set can't grow while it is enabled (`VFIO_IRQ_INFO_NORESIZE`).
    pub no_resize: bool,
}

/// Why an operation on the device failed. Carries what was asked and the errno.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A region access failed.
    #[error("cannot {action} {size} bytes at {offset:#x} of VFIO region {region}")]
    Region {
        /// `read`, `write` or `map`.
        action: &'static str,
        /// The region's index.
        region: u32,
        /// From its start.
        offset: u64,
        /// Bytes.
        size: u64,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// An interrupt could not be set up.
    #[error("cannot set {count} {index:?} vectors from {start}")]
    Irq {
        /// The kind.
        index: IrqIndex,
        /// The first vector.
        start: u32,
        /// How many.
        count: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Fewer vectors than asked for; none were enabled.
    #[error("the host can give only {available} of {asked} {index:?} vectors")]
    ShortOfVectors {
        /// The kind.
        index: IrqIndex,
        /// How many were asked for.
        asked: u32,
        /// How many there are.
        available: u32,
    },
    /// The interrupt pin could not be unmasked, now or by an event.
    #[error("cannot have the interrupt pin unmasked")]
    Unmask(#[source] io::Error),
    /// The reset failed, or the device has none.
    #[error("cannot reset the device")]
    Reset(#[source] io::Error),
    /// The hot reset failed, or what it would hit could not be asked for.
    #[error("cannot reset the device's bus")]
    HotReset(#[source] io::Error),
    /// The device has no reset of its own, and a hot reset would disturb
    /// others.
    #[error("it can't be reset by itself, and a reset of its bus would disturb {}", names(.others))]
    SharedReset {
        /// Whom.
        others: Vec<PciAddress>,
    },
    /// The host could not be told that it may suspend the device, or may no
    /// longer.
    #[error("cannot have the device {action} low power")]
    LowPower {
        /// `enter` or `leave`.
        action: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    /// What the kernel's answer to SET_IRQS means, with which `count` vectors
    /// from `start` on were asked for: 0, or how many there are instead.
    pub(crate) fn of_set_irqs(
        answer: io::Result<u32>,
        index: IrqIndex,
        start: u32,
        count: usize,
    ) -> Result<(), Self> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        match answer {
            Ok(0) => Ok(()),
            Ok(available) => Err(Self::ShortOfVectors {
                index,
                asked: start.saturating_add(count),
                available,
            }),
            Err(source) => Err(Self::Irq {
                index,
                start,
                count,
                source,
            }),
        }
    }
}

fn names(devices: &[PciAddress]) -> String {
    let names: Vec<_> = devices.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// One device, as the kernel's VFIO or a fake offers it. Thread-safe.
///
/// Nothing here is cached or interpreted: that is the work of the floors above.
pub trait DeviceBackend: Send + Sync + Debug {
    /// The region with the kernel's `index`; nothing when there is none.
    fn region(&self, index: u32) -> Option<&RegionInfo>;

    /// Reads `data.len()` bytes.
    ///
    /// # Errors
    /// [`DeviceError::Region`]; `data` is then unspecified.
    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `data.len()` bytes.
    ///
    /// # Errors
    /// [`DeviceError::Region`].
    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Maps part of a region, page-aligned, shared with the device.
    ///
    /// # Errors
    /// [`DeviceError::Region`].
    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError>;

    /// What the device has of an interrupt kind; nothing when it has none.
    fn irq(&self, index: IrqIndex) -> Option<IrqInfo>;

    /// Has the device signal `events` for the vectors from `start` on; `None`
    /// leaves or makes a vector silent. Enables the kind when it was off. Only
    /// one of [`IrqIndex::Intx`], [`IrqIndex::Msi`] and [`IrqIndex::Msix`] can
    /// be on.
    ///
    /// The kernel masks the pin each time that it signals its event; see
    /// [`Self::unmask_intx`].
    ///
    /// # Errors
    /// [`DeviceError::ShortOfVectors`] when the kernel has fewer, otherwise
    /// [`DeviceError::Irq`].
    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError>;

    /// Turns an interrupt kind off altogether. Does nothing when it is off.
    ///
    /// # Errors
    /// [`DeviceError::Irq`].
    fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError>;

    /// Has the kernel unmask the pin by itself whenever `event` is signalled,
    /// or no longer. The pin must be on; turning it off ends this too.
    ///
    /// # Errors
    /// [`DeviceError::Unmask`].
    fn set_intx_unmask_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), DeviceError>;

    /// Unmasks the pin. The kernel signals its event again, and leaves it
    /// masked, when the device still asserts it.
    ///
    /// # Errors
    /// [`DeviceError::Unmask`].
    fn unmask_intx(&self) -> Result<(), DeviceError>;

    /// Whether [`Self::reset`] can work (`VFIO_DEVICE_FLAGS_RESET`).
    fn can_reset(&self) -> bool;

    /// Resets the function. What the kernel then restores is config space.
    ///
    /// # Errors
    /// [`DeviceError::Reset`].
    fn reset(&self) -> Result<(), DeviceError>;

    /// What [`Self::hot_reset`] would hit at this moment; nothing when the
    /// device's bus can't be reset.
    ///
    /// # Errors
    /// [`DeviceError::HotReset`].
    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError>;

    /// Resets all on the device's bus, or in its slot, that
    /// [`Self::hot_reset_info`] tells. Each must be owned by who asks, and
    /// bound to a VFIO driver. The kernel restores config space of each.
    ///
    /// # Errors
    /// [`DeviceError::HotReset`].
    fn hot_reset(&self) -> Result<(), DeviceError>;

    /// Whether the other two can work (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`,
    /// Linux 6.1 and later).
    fn has_low_power(&self) -> bool;

    /// Lets the host suspend the device, down to D3cold, where only config
    /// space comes back as it was. An access to config space or a region, and
    /// a request, wakes it for as long as it takes. Mapped memory can't be
    /// reached until [`Self::leave_low_power`].
    ///
    /// # Errors
    /// [`DeviceError::LowPower`], also when it was allowed already.
    fn enter_low_power(&self) -> Result<(), DeviceError>;

    /// Has the host keep the device awake. It is in D0 then if it was
    /// suspended meanwhile. Does nothing when it may not be suspended.
    ///
    /// # Errors
    /// [`DeviceError::LowPower`].
    fn leave_low_power(&self) -> Result<(), DeviceError>;
}
