//! The nested lab: a host with an IOMMU out of nothing, on any Linux machine.
#![forbid(unsafe_code)]

pub mod agent;
pub mod airlock;
pub mod apt;
pub mod binaries;
pub mod cache;
mod command;
pub mod demo;
pub mod digest;
pub mod host;
pub mod initramfs;
pub mod kernel;
mod lab;
pub mod machine;
pub mod markers;
pub mod prerequisites;
pub mod progress;
mod scenario;
pub mod timeline;

pub use lab::{Lab, LabError, names};
pub use scenario::scenario;
