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
//! A survey never waits for a guest. An unbind from a VFIO driver holds the
//! device's lock until the device's user lets go, so what takes that lock is
//! left alone: `uevent` and `sriov_numvfs` always (the VFs themselves tell how
//! many there are), `driver_override` where such an unbind may be under way
//! ([`DriverOverride::NotAsked`]). A read can't be given up once it waits, not
//! even by the end of the process.
//!
//! Nor is a device woken that sleeps: its config space and the state of its
//! link are looked at only while it is in D0.

mod acs;
mod attributes;
#[cfg(test)]
pub(crate) mod fake;
mod group;
mod holder;
mod huge_pages;
mod iommu;
mod kernel;
mod link;
mod modules;
mod node;
mod parse;
mod pci;
mod process;
mod survey;
#[cfg(test)]
mod survey_test;
mod sysfs;
mod uevent;
mod uses;
mod vfio;

pub use acs::{Acs, PortKind, Routing};
pub use group::{Group, GroupId, GroupMember, ReservedKind, ReservedRegion};
pub use holder::{Holder, Holders};
pub use huge_pages::HugePagePool;
pub use iommu::{InterruptRemapping, Iommu, IommuKind, IommuUnit, Remapping};
pub use kernel::Kernel;
pub use link::{Link, LinkRate};
pub use modules::{ModuleState, Modules, VariantAlias};
pub use node::{Node, NodeState};
pub use pci::{DriverOverride, Function, Header, Ids, Reset, Resource, Unreadable};
pub use process::{LockedMemory, Process};
pub use survey::{Survey, SurveyError};
pub use sysfs::Host;
pub(crate) use sysfs::{clean, present};

/// Where sysfs has the PCI functions.
pub(crate) const SYSFS_DEVICES: &str = "/sys/bus/pci/devices";
pub use uevent::{Received, Uevent, UeventAction, UeventSocket, UeventSource};
pub use uses::HostUse;
pub use vfio::VfioPieces;
