//! A device's config space side by side: as the host has it, and as a guest
//! would see it, with the reason for every byte that differs.
//!
//! Plain data, made from an open device ([`Inspection::of_backend`]) or, without
//! touching VFIO, from what sysfs tells ([`Inspection::of_host`]).

mod compare;
mod data;
mod decode;
mod foretold;
mod from_host;
mod from_vfio;
mod make;
mod parts;

pub use data::{
    Access, Area, Bytes, Capability, Detail, Difference, Handling, Identity, Inspection, Interrupt,
    Region, RegionKind, RegionPart, Register, Resets, Source,
};
pub use foretold::Foretold;
pub use make::InspectError;

#[cfg(test)]
#[path = "inspect_test.rs"]
pub(crate) mod tests;
