//! The address space that devices see, behind one face.

mod address_space;
mod backend;
mod container;
mod iommufd;
mod peers;
mod space;

pub use address_space::{AddressSpace, IovaRange, MapError, SpaceLimits};
pub use backend::{Backend, BackendError};
pub use peers::Peers;
pub(crate) use peers::{Offer, Peer};
pub(crate) use space::KernelSpace;
