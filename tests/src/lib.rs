//! The nested lab: a host with an IOMMU out of nothing, on any Linux machine.
#![forbid(unsafe_code)]

pub mod agent;
pub mod apt;
pub mod cache;
mod command;
pub mod digest;
pub mod host;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod prerequisites;
pub mod progress;
