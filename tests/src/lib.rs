//! The nested lab: a host with an IOMMU out of nothing, on any x86-64 Debian
//! machine, with or without KVM and an IOMMU of its own.
//!
//! QEMU emulates a machine with AMD's SVM and Intel's VT-d. In it runs a kernel
//! that the lab builds once from Debian's source package (or a newer one, see
//! [`Machine::kernel`](machine::Machine::kernel)), with the root of the real
//! machine as its root (read-only) and an agent that runs what a scenario asks for. airlock in it finds a real KVM, a real VFIO and real groups.
//!
//! ```no_run
//! use lab::airlock::Run;
//! use lab::machine::{Device, Disk, Machine};
//!
//! let machine = Machine::new("example").device(Device::nvme("disk", Disk::pattern(1 << 20)));
//! lab::scenario(&machine, |host| {
//!     host.bind_vfio(&["disk"])?;
//!     let run = Run::tasks("nvme,poweroff").device(host.address("disk")?);
//!     assert!(host.run(&run.step())?.success());
//!     Ok(())
//! });
//! ```
//!
//! # What holds for every scenario
//!
//! * One nested host runs at a time, over all processes of a user: two would slow
//!   each other beyond their time limits. A machine has one CPU unless the scenario
//!   needs more; emulating several at once is slower and less exact.
//! * A scenario that gets stuck is tried once more, one whose nested host QEMU
//!   loses twice, and that is reported. A failed assertion is never tried again.
//! * Every boot and step has a time limit. Past it the nested host is ended, and
//!   the error shows the ends of its console, of QEMU's messages and of the
//!   step's output.
//! * Nothing is left behind: QEMU dies with the process that started it.
//! * A device can come later ([`Device::absent`](machine::Device::absent)), go, or
//!   make virtual functions; everything is built into the kernel but one variant
//!   VFIO driver, for [`Device::virtio_net`](machine::Device::virtio_net), which is
//!   a module.
//!
//! # Both backends
//!
//! A scenario that assigns a device is a function of the [`Backend`], of which
//! [`on_both_backends!`] makes two tests: `cargo test -p tests ::iommufd` runs all
//! that are by iommufd. What has nothing to do with how a device is had is a plain
//! test.
//!
//! # Files and variables
//!
//! Everything is kept below `$XDG_CACHE_HOME/airlock/lab` or
//! `~/.cache/airlock/lab`, which may be removed at any time that no lab runs.
//!
//! | variable | |
//! |---|---|
//! | `AIRLOCK_LAB_KERNEL` | a bzImage to use instead of building one; a directory `modules` beside it stands for its `/lib/modules` |
//! | `AIRLOCK_LAB_KERNEL_RECENT` | the same for machines that ask for a recent kernel |
//! | `AIRLOCK_BIN` | an `airlock` binary to test instead of this workspace's |
#![forbid(unsafe_code)]

pub mod agent;
pub mod airlock;
pub mod apt;
mod backend;
pub mod binaries;
pub mod cache;
mod command;
pub mod demo;
pub mod digest;
pub mod guest;
pub mod host;
pub mod initramfs;
pub mod kernel;
mod lab;
pub mod machine;
pub mod markers;
pub mod numbers;
pub mod prerequisites;
pub mod progress;
mod scenario;
pub mod timeline;

pub use backend::Backend;
pub use lab::{Lab, LabError, names};
pub use scenario::scenario;
