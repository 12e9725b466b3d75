//! An assigned device: the parts put together as a function of the guest.

mod device;

pub use device::{AssignError, AssignedDevice};
