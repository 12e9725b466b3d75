//! The address space that devices see, behind one face.

mod address_space;
mod container;

pub use address_space::{AddressSpace, IovaRange, MapError, SpaceLimits};
pub(crate) use container::Type1Space;
