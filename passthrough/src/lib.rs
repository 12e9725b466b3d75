//! Surveys, checks and gives PCI devices to a guest through VFIO.
//!
//! Knows no KVM, no vCPU and no event loop. What the embedding monitor must
//! supply stands in [`ports`].
#![deny(unsafe_code)]

mod assigned;
mod attach;
mod bar;
pub mod binding;
pub mod claim;
mod config;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
pub mod host;
pub mod inspect;
mod interrupt;
pub mod iommu;
mod limit;
mod open;
pub mod plan;
pub mod ports;
mod refusal;
#[allow(unsafe_code)]
mod sys;
pub mod vfio;
pub mod viability;

pub use assigned::{
    AssignError, AssignOptions, AssignedDevice, Placement, RomError, RomSource, SurrenderError,
};
pub use config::ConfigError;
pub use interrupt::{InterruptStats, TrappedPage};
pub use open::{
    DeviceRequest, FileName, FileNameError, Interface, OpenError, OpenFiles, OpenRequest, Opened,
    open,
};
pub use sys::Pages;
