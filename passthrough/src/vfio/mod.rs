//! One device behind VFIO: its regions, its interrupts, its resets, its sleep.

mod device;
mod hot_reset;
mod kernel;
mod token;

pub use device::{DeviceBackend, DeviceError, IrqIndex, IrqInfo, RegionArea, RegionInfo};
pub use hot_reset::{Affected, Holder, HotReset};
pub(crate) use kernel::KernelDevice;
pub use token::{VfToken, VfTokenError};
