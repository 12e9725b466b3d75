//! Emulated devices and the guest's PCI topology.
//!
//! Nothing here knows KVM or VFIO. What the virtual machine monitor must
//! supply is a trait of this crate. Everything a guest can write is treated as
//! hostile: no panic, bounded walks, checked arithmetic.
//!
//! With default features off only [`pci`] remains.
#![forbid(unsafe_code)]

#[cfg(feature = "machine")]
pub mod acpi;
#[cfg(feature = "machine")]
pub mod bus;
#[cfg(feature = "machine")]
pub mod legacy;
pub mod pci;
