//! Surveys, checks and gives PCI devices to a guest through VFIO.
//!
//! Knows no KVM, no vCPU and no event loop. What the embedding monitor must
//! supply stands in [`ports`].

pub mod iommu;
pub mod ports;
pub mod vfio;
