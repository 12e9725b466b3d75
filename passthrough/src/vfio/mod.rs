//! One device behind VFIO: its regions, its interrupts, its reset.

mod device;

pub use device::{DeviceBackend, DeviceError, IrqIndex, IrqInfo, RegionArea, RegionInfo};
