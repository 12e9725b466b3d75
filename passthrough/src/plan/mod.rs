//! Everything that must hold before a guest gets its devices, checked without
//! opening a VFIO file: each item passed, failed or a warning, with the reason
//! and the remedy.
//!
//! A command that checks and prints is short:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use passthrough::host::{Host, Survey, SurveyError};
//! use passthrough::plan::{Plan, Request};
//!
//! fn check(devices: Vec<String>, memory_bytes: Option<u64>) -> Result<ExitCode, SurveyError> {
//!     let survey = Survey::read(&Host::system())?;
//!     let request = Request {
//!         devices,
//!         memory_bytes,
//!         ..Request::default()
//!     };
//!     let plan = Plan::make(&survey, &request);
//!     println!("{plan}");
//!     Ok(if plan.is_go() {
//!         ExitCode::SUCCESS
//!     } else {
//!         ExitCode::FAILURE
//!     })
//! }
//! ```
//!
//! [`Item`] says what is in the data, and [`Plan`]'s `Display` is the report for
//! a user. A plan is data: a launcher can make it and send it (`serde`) to the process
//! that carries it out. It predicts; the open proves.

mod arguments;
mod backend;
mod device;
mod group;
mod host;
#[cfg(test)]
mod host_test;
mod huge_pages;
mod item;
mod memory;
mod needed;
#[cfg(test)]
mod plan_test;
mod reach;
#[cfg(test)]
mod reach_test;
mod report;
mod reset;
mod size;
#[cfg(test)]
mod topology_test;

use devices::pci::PciAddress;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::host::Survey;
pub use crate::iommu::Backend;
pub use crate::open::FileName;
pub use crate::viability::Remedy;
pub use item::{Check, Item, Outcome, Subject};
pub use reach::reach;

/// The layout of [`Plan`] as data. Grows when a field changes its meaning.
pub const PLAN_VERSION: u32 = 2;

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The devices to give to the guest, as the user wrote them.
    pub devices: Vec<String>,
    /// How much memory the guest gets, if that is known.
    pub memory_bytes: Option<u64>,
    /// Where that memory lies in the guest's address space, in ascending order:
    /// devices reach it at the same addresses. Without it only the amount is
    /// checked.
    pub ram: Vec<GuestRange>,
    /// Where the monitor puts BARs that must lie below 4 GiB.
    pub window_32: Option<GuestRange>,
    /// How many bits of a guest's address the CPU takes, if that is known.
    pub address_bits: Option<u8>,
    /// By which of the kernel's interfaces to take the devices. Without it by
    /// the best that is there.
    pub backend: Option<Backend>,
    /// Virtual functions that a VF token is given with, see
    /// [`VfToken`](crate::vfio::VfToken).
    pub with_token: Vec<PciAddress>,
    /// Nobody needs KVM: devices are for a program, not for a guest.
    pub without_kvm: bool,
    /// Files that need not be opened, since they are given open.
    pub given: Vec<FileName>,
    /// Back the memory by huge pages of this many bytes.
    pub huge_pages: Option<u64>,
    /// Take devices though nothing checks their interrupts. A guest can then
    /// raise any interrupt of the host.
    pub allow_unsafe_interrupts: bool,
    /// Take devices that no IOMMU confines. Asked for or not it can't be done,
    /// for the kernel does not map a guest's memory for such devices; who asks
    /// is told that.
    pub allow_noiommu: bool,
    /// Devices to take, as the user wrote them, though the host needs them.
    pub force: Vec<String>,
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRange {
    /// The first address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl GuestRange {
    /// The last address; that of the address space when the range goes beyond.
    pub fn last(self) -> u64 {
        self.start.saturating_add(self.size.saturating_sub(1))
    }
}

/// What was found, and so whether to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the program that made it. A plan of another version
    /// does not deserialize.
    #[serde(deserialize_with = "understood")]
    pub version: u32,
    /// The devices that were understood and exist, in the order given, each
    /// once.
    pub devices: Vec<PciAddress>,
    /// How they are taken.
    pub backend: Backend,
    /// The checks: first those of what was asked for, then of each device, of
    /// their groups, and of the host.
    pub items: Vec<Item>,
}

impl Plan {
    /// Checks `request` against `survey`. Pure, and never fails: a device that
    /// makes no sense is a failed item. Without devices there is nothing about
    /// VFIO to check.
    pub fn make(survey: &Survey, request: &Request) -> Self {
        let mut items = Vec::new();
        let devices = arguments::check(survey, &request.devices, &mut items);
        let forced = arguments::forced(&request.force, &mut items);
        for device in &devices {
            needed::check(survey, *device, &forced, &mut items);
            device::check(survey, request, *device, &mut items);
        }
        let backend = backend::choose(survey, request, &devices);
        group::check(survey, request, &devices, backend, &forced, &mut items);
        if !devices.is_empty() {
            host::check(survey, request, &devices, backend, &mut items);
        }
        if !request.without_kvm {
            host::check_kvm(survey, &mut items);
        }
        memory::check(survey, request, &devices, &mut items);
        reach::check(survey, request, &devices, &mut items);
        huge_pages::check(survey, request, &mut items);
        Self {
            version: PLAN_VERSION,
            devices,
            backend,
            items,
        }
    }

    /// Whether nothing failed.
    pub fn is_go(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The failed items.
    pub fn failures(&self) -> impl Iterator<Item = &Item> {
        self.items
            .iter()
            .filter(|item| item.outcome == Outcome::Failed)
    }
}

fn understood<'de, D: Deserializer<'de>>(source: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(source)?;
    if version == PLAN_VERSION {
        return Ok(version);
    }
    Err(D::Error::custom(format!(
        "the plan is of version {version}, and this program understands version {PLAN_VERSION}: make it with the same release of airlock"
    )))
}
