//! An assigned device: the parts put together as a function of the guest.

mod device;
mod give_back;
mod interrupts;
mod options;
mod posted;
mod power;
mod reset;
mod rom;
mod surrender;

pub use device::{AssignError, AssignedDevice};
pub use give_back::give_back;
pub use options::{AssignOptions, Placement, RomSource};
pub use rom::RomError;
pub use surrender::SurrenderError;
