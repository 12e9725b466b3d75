//! An assigned device: the parts put together as a function of the guest.

mod device;
mod interrupts;
mod options;

pub use device::{AssignError, AssignedDevice};
pub use options::{AssignOptions, Placement, RomSource};
