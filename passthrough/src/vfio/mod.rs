//! One device behind VFIO: its regions, its interrupts, its reset.

mod device;
mod kernel;
mod token;

pub use device::{DeviceBackend, DeviceError, IrqIndex, IrqInfo, RegionArea, RegionInfo};
pub(crate) use kernel::KernelDevice;
pub use token::{VfToken, VfTokenError};
