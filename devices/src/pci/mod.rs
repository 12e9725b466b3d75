//! The guest's PCI: addresses, functions and their config space.

mod address;
mod bar;
mod function;

pub use address::{PciAddress, PciAddressError};
pub use bar::{BarDecode, BarIndex, BarInfo, BarKind};
pub use function::{Effects, FunctionHandle, PciFunction, SettleError};
