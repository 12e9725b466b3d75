//! What the host has, read from sysfs and procfs into plain data.
//!
//! ```no_run
//! use passthrough::host::{Host, Survey};
//! let survey = Survey::read(&Host::system())?;
//! println!("{} PCI functions", survey.functions.len());
//! # Ok::<(), passthrough::host::SurveyError>(())
//! ```
//!
//! Reads only, needs no privilege where sysfs needs none, and opens no file
//! below `/dev`: device nodes are asked about with access(2).
//!
//! Only attributes that the kernel answers without the device's lock are read.
//! An unbind from a VFIO driver holds that lock until the device's user lets
//! go, so `uevent`, `driver_override` and `sriov_numvfs` could block a survey
//! for as long as that takes. `config` is left alone too: reading it wakes
//! devices that sleep.

#[cfg(test)]
pub(crate) mod fake;
mod group;
mod holder;
mod iommu;
mod kernel;
mod node;
mod pci;
mod process;
mod survey;
#[cfg(test)]
mod survey_test;
mod sysfs;
mod vfio;

pub use group::{Group, GroupId, GroupMember, ReservedKind, ReservedRegion};
pub use holder::{Holder, Holders};
pub use iommu::{InterruptRemapping, Iommu, IommuKind, IommuUnit, Remapping};
pub use kernel::Kernel;
pub use node::{Node, NodeState};
pub use pci::{Function, Header, Ids, Resource, Unreadable};
pub use process::{LockedMemory, Process};
pub use survey::{Survey, SurveyError};
pub use sysfs::Host;
pub use vfio::VfioPieces;
