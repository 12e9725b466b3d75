//! The nested lab: a host with an IOMMU out of nothing, on any Linux machine.
#![forbid(unsafe_code)]

pub mod agent;
pub mod cache;
pub mod digest;
pub mod host;
pub mod initramfs;
pub mod machine;
pub mod progress;
