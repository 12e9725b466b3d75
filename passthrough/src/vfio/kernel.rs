use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{DeviceBackend, DeviceError, HotReset, IrqIndex, IrqInfo, RegionArea, RegionInfo};
use crate::attach::AttachedDevice;
use crate::ports::HostMemory;
use crate::sys::{self, DeviceMemory, Feature, KernelRegion, Mapping, Placement};

/// More regions than any device has: nine of PCI and a few of its driver.
const MAX_REGIONS: u32 = 64;
/// The largest page-table entry that the kernel makes for device memory.
const LARGEST_PAGE: u64 = 1 << 30;
/// How often, and how long apart, a reset is tried while the device is busy.
const RESET_RETRIES: u32 = 10;
const RESET_PAUSE: Duration = Duration::from_millis(20);
const IRQ_KINDS: [IrqIndex; 5] = [
    IrqIndex::Intx,
    IrqIndex::Msi,
    IrqIndex::Msix,
    IrqIndex::Error,
    IrqIndex::Request,
];

/// A device that the host's VFIO has handed over.
#[derive(Debug)]
pub(crate) struct KernelDevice {
    device: AttachedDevice,
    /// By the kernel's index; it may leave gaps.
    regions: Vec<Option<KernelRegion>>,
    irqs: [Option<IrqInfo>; IRQ_KINDS.len()],
    /// Which kinds are on: the kernel refuses to turn off what is off.
    irqs_on: [AtomicBool; IRQ_KINDS.len()],
    can_reset: bool,
    has_low_power: bool,
}

impl KernelDevice {
    /// Asks the device what it has.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(device: AttachedDevice) -> io::Result<Self> {
        let fd = device.as_fd();
        let info = sys::device_info(fd)?;
        let regions = (0..info.regions.min(MAX_REGIONS))
            .map(|index| sys::region_info(fd, index))
            .collect::<io::Result<_>>()?;
        let mut irqs = [None; IRQ_KINDS.len()];
        for (irq, index) in irqs.iter_mut().zip(0..info.irqs) {
            *irq = sys::irq_info(fd, index)?;
        }
        let has_low_power = sys::has_feature(fd, Feature::LowPowerEntry)
            && sys::has_feature(fd, Feature::LowPowerExit);
        Ok(Self {
            device,
            regions,
            irqs,
            irqs_on: Default::default(),
            can_reset: info.can_reset,
            has_low_power,
        })
    }

    fn kernel_region(&self, index: u32) -> Option<&KernelRegion> {
        let region = self.regions.get(usize::try_from(index).ok()?)?.as_ref()?;
        (region.info.size > 0).then_some(region)
    }

    /// Where in the device's file `size` bytes of a region lie.
    fn file_offset(&self, index: u32, offset: u64, size: u64) -> io::Result<u64> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let region = self.kernel_region(index).ok_or_else(outside)?;
        place(region, region.info.size, offset, size).ok_or_else(outside)
    }

    fn map(&self, index: u32, area: RegionArea) -> io::Result<Mapping> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let invalid = |_| outside();
        let region = self.kernel_region(index).ok_or_else(outside)?;
        let (whole, page) = (region.info.size, sys::page_size());
        // The kernel maps whole pages, also of what is smaller than one.
        let padded = whole.checked_next_multiple_of(page).ok_or_else(outside)?;
        let file_offset = place(region, padded, area.offset, area.size).ok_or_else(outside)?;
        let (alignment, phase) = placement(whole, area.offset, page);
        let placement = Placement {
            alignment: usize::try_from(alignment).map_err(invalid)?,
            phase: usize::try_from(phase).map_err(invalid)?,
        };
        let size = usize::try_from(area.size).map_err(invalid)?;
        Mapping::of_file(self.device.as_fd(), file_offset, size, placement)
    }
}

/// Where in the device's file `size` bytes of a region begin, if they lie in
/// its first `limit` bytes.
fn place(region: &KernelRegion, limit: u64, offset: u64, size: u64) -> Option<u64> {
    let end = offset.checked_add(size)?;
    let inside = end <= limit;
    inside.then(|| region.file_offset.checked_add(offset))?
}

/// Where a map should lie so that the kernel can use huge page-table entries:
/// as the region lies on the bus, where BARs are aligned to their size. An
/// alignment, and what is left over when the address is divided by it.
fn placement(region_size: u64, offset: u64, page: u64) -> (u64, u64) {
    let size = region_size.checked_next_power_of_two();
    let alignment = size.unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE).max(page);
    (alignment, offset % alignment)
}

impl DeviceBackend for KernelDevice {
    fn region(&self, index: u32) -> Option<&RegionInfo> {
        self.kernel_region(index).map(|region| &region.info)
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        self.file_offset(index, offset, size)
            .and_then(|at| sys::read_at(self.device.as_fd(), at, data))
            .map_err(|source| DeviceError::Region {
                action: "read",
                region: index,
                offset,
                size,
                source,
            })
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        self.file_offset(index, offset, size)
            .and_then(|at| sys::write_at(self.device.as_fd(), at, data))
            .map_err(|source| DeviceError::Region {
                action: "write",
                region: index,
                offset,
                size,
                source,
            })
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        match self.map(index, area) {
            Ok(mapping) => {
                let device = self.device.downgrade();
                let memory = DeviceMemory::new(mapping, device, index, area.offset);
                Ok(Arc::new(memory))
            }
            Err(source) => Err(DeviceError::Region {
                action: "map",
                region: index,
                offset: area.offset,
                size: area.size,
                source,
            }),
        }
    }

    fn irq(&self, index: IrqIndex) -> Option<IrqInfo> {
        self.irqs[index as usize]
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        let answer = sys::set_irqs(self.device.as_fd(), index as u32, start, events);
        DeviceError::of_set_irqs(answer, index, start, events.len())?;
        self.irqs_on[index as usize].store(true, Ordering::SeqCst);
        Ok(())
    }

    fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError> {
        if !self.irqs_on[index as usize].swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        sys::disable_irqs(self.device.as_fd(), index as u32).map_err(|source| DeviceError::Irq {
            index,
            start: 0,
            count: 0,
            source,
        })
    }

    fn set_intx_unmask_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        sys::set_unmask_event(self.device.as_fd(), IrqIndex::Intx as u32, event)
            .map_err(DeviceError::Unmask)
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        sys::unmask_irq(self.device.as_fd(), IrqIndex::Intx as u32).map_err(DeviceError::Unmask)
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> Result<(), DeviceError> {
        patiently(|| sys::reset(self.device.as_fd())).map_err(DeviceError::Reset)
    }

    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError> {
        let device = self.device.as_fd();
        self.device
            .with_ownership(|ownership| sys::hot_reset_info(device, ownership))
            .map_err(DeviceError::HotReset)
    }

    fn hot_reset(&self) -> Result<(), DeviceError> {
        let device = self.device.as_fd();
        let reset = || {
            self.device
                .with_ownership(|ownership| sys::hot_reset(device, ownership))
        };
        patiently(reset).map_err(DeviceError::HotReset)
    }

    fn has_low_power(&self) -> bool {
        self.has_low_power
    }

    fn enter_low_power(&self) -> Result<(), DeviceError> {
        let result = sys::set_feature(self.device.as_fd(), Feature::LowPowerEntry);
        result.map_err(|source| DeviceError::LowPower {
            action: "enter",
            source,
        })
    }

    fn leave_low_power(&self) -> Result<(), DeviceError> {
        let result = sys::set_feature(self.device.as_fd(), Feature::LowPowerExit);
        result.map_err(|source| DeviceError::LowPower {
            action: "leave",
            source,
        })
    }
}

/// Carries out a reset. Another program may look at the device at this very
/// moment, through sysfs for example; it is done soon.
fn patiently(reset: impl Fn() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..RESET_RETRIES {
        match reset() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                thread::sleep(RESET_PAUSE);
            }
            other => return other,
        }
    }
    reset()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_in_their_region() {
        let region = KernelRegion {
            info: RegionInfo {
                size: 0x100,
                readable: true,
                writable: true,
                mappable: Vec::new(),
            },
            file_offset: 0x4_0000,
        };
        assert_eq!(place(&region, 0x100, 0xf0, 0x10), Some(0x4_00f0));
        assert_eq!(place(&region, 0x100, 0xf0, 0x11), None);
        assert_eq!(place(&region, 0x1000, 0, 0x1000), Some(0x4_0000));
        assert_eq!(place(&region, 0x1000, u64::MAX, 1), None);
        let file_offset = u64::MAX;
        let region = KernelRegion {
            file_offset,
            ..region
        };
        assert_eq!(place(&region, 0x100, 1, 1), None);
    }

    #[test]
    fn maps_lie_as_the_bar_does() {
        let page = 0x1000;
        assert_eq!(placement(0x4000, 0x3000, page), (0x4000, 0x3000));
        assert_eq!(placement(0x100, 0, page), (page, 0));
        assert_eq!(placement(16 << 30, 5 << 29, page), (1 << 30, 1 << 29));
        assert_eq!(placement(0x3000, 0, page), (0x4000, 0));
        assert_eq!(placement(u64::MAX, 0, page), (1 << 30, 0));
    }
}
