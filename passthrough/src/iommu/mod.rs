//! The address space that devices see, behind one face.

mod address_space;

pub use address_space::{AddressSpace, IovaRange, MapError, SpaceLimits};
