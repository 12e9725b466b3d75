use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, MutexGuard};

use super::device::{FakeDevice, Operation, State};
use crate::ports::HostMemory;
use crate::sys::Mapping;
use crate::vfio::{
    Affected, DeviceBackend, DeviceError, Holder, HotReset, IrqIndex, IrqInfo, RegionArea,
    RegionInfo,
};

impl DeviceBackend for FakeDevice {
    fn region(&self, index: u32) -> Option<&RegionInfo> {
        self.regions.get(index as usize)?.as_ref()
    }

    fn region_read(&self, index: u32, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let size = data.len() as u64;
        self.journal
            .note(format!("read {index} {offset:#x} {size}"));
        self.read(index, offset, data)
            .map_err(|source| DeviceError::Region {
                action: "read",
                region: index,
                offset,
                size,
                source,
            })
    }

    fn region_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write(index, offset, data)
            .map_err(|source| DeviceError::Region {
                action: "write",
                region: index,
                offset,
                size: data.len() as u64,
                source,
            })
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        let RegionArea { offset, size } = area;
        self.journal
            .note(format!("mmap {index} {offset:#x} {size:#x}"));
        let refuse = |source| DeviceError::Region {
            action: "map",
            region: index,
            offset,
            size,
            source,
        };
        drop(self.permit(Operation::Map).map_err(refuse)?);
        let invalid = || refuse(io::Error::from_raw_os_error(libc::EINVAL));
        let memory = self.memory.get(index as usize).and_then(Option::as_ref);
        let memory = memory.ok_or_else(invalid)?;
        let part = Mapping::part(memory, offset, size).ok_or_else(invalid)?;
        Ok(Arc::new(part))
    }

    fn irq(&self, index: IrqIndex) -> Option<IrqInfo> {
        let count = match index {
            IrqIndex::Msix => self.vectors,
            IrqIndex::Intx => self.state().config.has_pin().into(),
            IrqIndex::Msi => self.state().interrupts.msi.vectors,
            IrqIndex::Request => 1,
            IrqIndex::Error => 0,
        };
        let no_resize = match index {
            IrqIndex::Msix => self.no_resize,
            _ => true,
        };
        (count > 0).then_some(IrqInfo { count, no_resize })
    }

    fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        events: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        let shape = events.iter().map(|e| if e.is_some() { 'x' } else { '-' });
        let shape: String = shape.collect();
        self.journal
            .note(format!("set_irqs {index:?} {start} {shape}"));
        let answer = self
            .permit(Operation::SetIrqs)
            .and_then(|mut state| state.set_irqs(index, start, events));
        DeviceError::of_set_irqs(answer, index, start, events.len())
    }

    fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError> {
        self.journal.note(format!("disable_irqs {index:?}"));
        let state = self.permit(Operation::DisableIrqs);
        let mut state = state.map_err(|source| DeviceError::Irq {
            index,
            start: 0,
            count: 0,
            source,
        })?;
        state.interrupts.turn_off(index);
        Ok(())
    }

    fn set_intx_unmask_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        let shape = if event.is_some() { 'x' } else { '-' };
        self.journal.note(format!("unmask_event {shape}"));
        self.permit(Operation::Unmask)
            .and_then(|mut state| state.interrupts.intx.set_unmask(event))
            .map_err(DeviceError::Unmask)
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        self.journal.note("unmask");
        self.permit(Operation::Unmask)
            .and_then(|mut state| state.interrupts.intx.unmask())
            .map_err(DeviceError::Unmask)
    }

    fn can_reset(&self) -> bool {
        self.can_reset
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.journal.note("reset");
        let mut state = self.permit(Operation::Reset).map_err(DeviceError::Reset)?;
        if !self.can_reset {
            let source = io::Error::from_raw_os_error(libc::ENOTTY);
            return Err(DeviceError::Reset(source));
        }
        self.reset_now(&mut state);
        Ok(())
    }

    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError> {
        self.journal.note("hot_reset_info");
        let state = self.permit(Operation::HotReset);
        drop(state.map_err(DeviceError::HotReset)?);
        Ok(self.hot_reset.clone())
    }

    fn hot_reset(&self) -> Result<(), DeviceError> {
        self.journal.note("hot_reset");
        let refuse = |errno| DeviceError::HotReset(io::Error::from_raw_os_error(errno));
        let mut state = (self.permit(Operation::HotReset)).map_err(DeviceError::HotReset)?;
        let info = self
            .hot_reset
            .as_ref()
            .ok_or_else(|| refuse(libc::ENODEV))?;
        let is_foreign = |hit: &Affected| hit.holder == Holder::Other;
        if info.affected.iter().any(is_foreign) {
            return Err(refuse(libc::EINVAL));
        }
        self.reset_now(&mut state);
        Ok(())
    }

    fn has_low_power(&self) -> bool {
        self.has_low_power
    }

    fn enter_low_power(&self) -> Result<(), DeviceError> {
        self.journal.note("low_power enter");
        let suspend = |mut state: MutexGuard<'_, State>| {
            let refuse = |errno| Err(io::Error::from_raw_os_error(errno));
            if !self.has_low_power {
                return refuse(libc::ENOTTY);
            }
            if std::mem::replace(&mut state.low_power, true) {
                return refuse(libc::EINVAL);
            }
            // The host suspends it at once, and takes its power away.
            self.reset_now(&mut state);
            Ok(())
        };
        let result = self.permit(Operation::LowPower).and_then(suspend);
        result.map_err(|source| DeviceError::LowPower {
            action: "enter",
            source,
        })
    }

    fn leave_low_power(&self) -> Result<(), DeviceError> {
        self.journal.note("low_power leave");
        let wake = |mut state: MutexGuard<'_, State>| {
            if !self.has_low_power {
                return Err(io::Error::from_raw_os_error(libc::ENOTTY));
            }
            state.low_power = false;
            Ok(())
        };
        let result = self.permit(Operation::LowPower).and_then(wake);
        result.map_err(|source| DeviceError::LowPower {
            action: "leave",
            source,
        })
    }
}
