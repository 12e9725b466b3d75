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
mod device;
mod group;
mod host;
#[cfg(test)]
mod host_test;
mod item;
mod memory;
#[cfg(test)]
mod plan_test;
mod report;
mod size;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use crate::host::Survey;
pub use crate::viability::Remedy;
pub use item::{Check, Item, Outcome, Subject};

/// The layout of [`Plan`] as data. Grows when a field changes its meaning.
pub const PLAN_VERSION: u32 = 1;

/// What somebody wants to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The devices to give to the guest, as the user wrote them.
    pub devices: Vec<String>,
    /// How much memory the guest gets, if that is known.
    pub memory_bytes: Option<u64>,
    /// Take devices though nothing checks their interrupts. A guest can then
    /// raise any interrupt of the host.
    pub allow_unsafe_interrupts: bool,
}

/// What was found, and so whether to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the program that made it.
    pub version: u32,
    /// The devices that were understood and exist, in the order given, each
    /// once.
    pub devices: Vec<PciAddress>,
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
        for device in &devices {
            device::check(survey, *device, &mut items);
        }
        group::check(survey, &devices, &mut items);
        if !devices.is_empty() {
            host::check(survey, request, &devices, &mut items);
        }
        host::check_kvm(survey, &mut items);
        memory::check(survey, request, &devices, &mut items);
        Self {
            version: PLAN_VERSION,
            devices,
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
