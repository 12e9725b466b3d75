//! Taking a device away from a guest that goes on running.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use devices::pci::PciAddress;
use thiserror::Error;

use super::AssignedDevice;
use crate::config;
use crate::interrupt::CountedBackend;
use crate::ports::HostMemory;
use crate::vfio::{
    DeviceBackend, DeviceError, HotReset, IrqIndex, IrqInfo, RegionArea, RegionInfo,
};

/// Why the host does not get a device back, though the guest has lost it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SurrenderError {
    /// Its memory is mapped somewhere still, which keeps its file open.
    #[error(
        "device {device} is not free for the host: {areas} of its memory areas can't be unmapped; \
         end the VM"
    )]
    Mapped {
        /// The device.
        device: PciAddress,
        /// How many.
        areas: usize,
    },
    /// Somebody in this process uses it still.
    #[error("device {device} is not free for the host: its file is in use; end the VM")]
    Open {
        /// The device.
        device: PciAddress,
    },
}

impl AssignedDevice {
    /// Has the kernel signal `event`, an eventfd, when the host wants the
    /// device back, and every ten seconds until it has it
    /// (`VFIO_PCI_REQ_IRQ_INDEX`). Says whether the device can.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal_request(&self, event: BorrowedFd<'_>) -> Result<bool, DeviceError> {
        if self.backend.irq(IrqIndex::Request).is_none() {
            return Ok(false);
        }
        self.backend
            .set_irqs(IrqIndex::Request, 0, &[Some(event)])?;
        Ok(true)
    }

    /// Takes the device away from the guest, as if it had been pulled out: from
    /// now on config space and BARs read as all ones, and writes go nowhere.
    ///
    /// Everything of the host's device is let go, in this order, so that an
    /// unbind or unplug that waits for it goes on:
    ///
    /// ```text
    ///  awake -> interrupts -> bus mastering off -> BARs out of the guest and the IOMMU
    ///  -> BARs out of this process -> file closed, the last of a group's takes the group along
    /// ```
    ///
    /// The caller has its own books of decoded addresses brought in line.
    /// Does nothing the second time.
    ///
    /// # Errors
    /// When something keeps the device open. The guest has lost it all the
    /// same; only the end of this process frees it.
    pub fn surrender(&mut self) -> Result<(), SurrenderError> {
        if self.gone {
            return Ok(());
        }
        let device = self.host;
        self.last_stats = self.current_stats();
        self.quiet();
        self.gone = true;
        let memory = self.bars.take_memory();
        let areas: Vec<_> = memory.iter().map(Arc::downgrade).collect();
        drop(memory);
        let absent = Arc::new(CountedBackend::new(Arc::new(Absent)));
        let backend = std::mem::replace(&mut self.backend, absent);
        let file = backend.downgrade();
        drop(backend);

        let areas = areas.iter().filter(|area| area.strong_count() > 0).count();
        if areas > 0 {
            return Err(SurrenderError::Mapped { device, areas });
        }
        if file.strong_count() > 0 {
            return Err(SurrenderError::Open { device });
        }
        Ok(())
    }

    /// Interrupts off, then DMA off, then the BARs out of the guest, once. Nothing is
    /// left to do for the fields that are dropped after this.
    pub(super) fn quiet(&mut self) {
        if std::mem::replace(&mut self.still, true) {
            return;
        }
        // Once, and not for each of the calls below.
        self.leave_low_power();
        self.interrupts.shut_down();
        let command = self.command_now() | config::COMMAND_INTX_DISABLE;
        self.set_command(command & !config::COMMAND_BUS_MASTER);
        self.bars.unmap_stale(&[]);
        self.posted = None;
    }
}

/// What is behind a device that was surrendered: nothing answers.
#[derive(Debug)]
struct Absent;

impl Absent {
    fn region_error(action: &'static str, region: u32, offset: u64, size: u64) -> DeviceError {
        DeviceError::Region {
            action,
            region,
            offset,
            size,
            source: gone(),
        }
    }
}

fn gone() -> std::io::Error {
    std::io::Error::from_raw_os_error(libc::ENODEV)
}

impl DeviceBackend for Absent {
    fn region(&self, _: u32) -> Option<&RegionInfo> {
        None
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        Err(Self::region_error("read", index, offset, size))
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        Err(Self::region_error("write", index, offset, size))
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        Err(Self::region_error("map", index, area.offset, area.size))
    }

    fn irq(&self, _: IrqIndex) -> Option<IrqInfo> {
        None
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        Err(DeviceError::Irq {
            index,
            start,
            count: events.len().try_into().unwrap_or(u32::MAX),
            source: gone(),
        })
    }

    fn disable_irqs(&self, _: IrqIndex) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_intx_unmask_event(&self, _: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        Err(DeviceError::Unmask(gone()))
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Unmask(gone()))
    }

    fn can_reset(&self) -> bool {
        false
    }

    fn reset(&self) -> Result<(), DeviceError> {
        Err(DeviceError::Reset(gone()))
    }

    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError> {
        Ok(None)
    }

    fn hot_reset(&self) -> Result<(), DeviceError> {
        Err(DeviceError::HotReset(gone()))
    }

    fn has_low_power(&self) -> bool {
        false
    }

    fn enter_low_power(&self) -> Result<(), DeviceError> {
        let (action, source) = ("enter", gone());
        Err(DeviceError::LowPower { action, source })
    }

    fn leave_low_power(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
