//! The address space that devices see, behind one face.

mod address_space;
mod container;
mod peers;

pub use address_space::{AddressSpace, IovaRange, MapError, SpaceLimits};
pub(crate) use container::Type1Space;
pub use peers::Peers;
pub(crate) use peers::{Offer, Peer};
