//! Surveys, checks and gives PCI devices to a guest, or to a program, through
//! VFIO. Knows no KVM, no vCPU and no event loop: what an embedding monitor must
//! supply stands in [`ports`].
//!
//! ```text
//!  host::Survey        what the host has, from sysfs; opens nothing
//!      |
//!  plan::Plan          what must hold, as data: go, or why not and what to do
//!      |
//!  open                devices in one address space, by iommufd or by type1; in two
//!      |               steps (prepare, Prepared::open) where a reset must not be waited for
//!      |                    |
//!  vfio::DeviceBackend  iommu::AddressSpace     enough for a driver in user space
//!      |                    |
//!  AssignedDevice <- ports: InterruptRouter, MemoryMapper, HostMemory
//!                      the device as a function of a guest's PCI topology
//! ```
//!
//! Each step is of use without the next. [`binding`] brings devices to a VFIO
//! driver and back, [`claim`] has the kernel prove a plan, [`inspect`] shows a
//! device beside what a guest would see of it.
//!
//! # A driver in user space
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use passthrough::host::{Host, Survey};
//! use passthrough::plan::{Plan, Request};
//! use passthrough::{OpenRequest, Pages, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let survey = Survey::read(&Host::system())?;
//! let plan = Plan::make(&survey, &Request {
//!     devices: vec!["0000:01:00.0".to_owned()],
//!     without_kvm: true,
//!     ..Request::default()
//! });
//! assert!(plan.is_go(), "{plan}");
//! let opened = open(OpenRequest::new(&plan.devices, plan.backend))?;
//! let memory = Arc::new(Pages::new(4096)?);
//! opened.space.map(0x10_0000, memory.clone())?;
//! let mut id = [0; 4];
//! opened.devices[0].region_read(7, 0, &mut id)?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/nvme_identify.rs` goes on from here to a command, its interrupt and
//! its answer; `examples/embed.rs` is the smallest monitor, with a guest that
//! reads a register of its device.
//!
//! # What holds everywhere
//!
//! * **Errors.** Each module has its own enum; a message names the thing, the
//!   cause and the next step, and the kernel's answer is its source. What fails
//!   has undone what it did. Nothing panics on what a guest, a device or the
//!   host says, and nothing ends the process.
//! * **Threads.** What is opened or mapped may be used and dropped on any thread;
//!   an [`AssignedDevice`] wants a lock around it. No thread outlives the call that
//!   started it. Files of sysfs that can wait for ever are read and written by a
//!   child process, which is left behind when it does wait (see [`binding`]). Lock
//!   orders stand at the locks.
//! * **Forks.** All files are close-on-exec, and what is mapped from a device or
//!   made as [`Pages`] is not inherited by children: a child can neither keep a
//!   device open nor get a copy of a page that a device writes to. A process that
//!   has opened devices must not go on using them in a forked child.
//! * **Drops.** Dropping gives back, in any order, and neither panics nor waits
//!   for a guest. The order that costs nothing is: what uses a device, the
//!   address space, the devices. Memory that the kernel does not unmap is leaked
//!   rather than used for something else.
//! * **No global state.** Two callers in one process do not see each other. Only
//!   [`binding`] keeps something outside: its journal below `/run/airlock`.
//! * **Logging** goes to the facade `log`, which does nothing until a program
//!   chooses a logger. Nothing that a caller must know is only logged. What a
//!   guest can cause is logged a bounded number of times.
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
mod together;
pub mod vfio;
pub mod viability;

pub use assigned::{
    AssignError, AssignOptions, AssignedDevice, Placement, RomError, RomSource, SurrenderError,
    give_back,
};
pub use config::ConfigError;
pub use interrupt::{InterruptStats, TrappedPage};
pub use open::{
    DeviceRequest, FileName, FileNameError, Interface, OpenError, OpenFiles, OpenRequest, Opened,
    Prepared, open, prepare,
};
pub use sys::Pages;
