//! A host in memory: a device that behaves as the kernel's VFIO does, and the
//! ports of a monitor that does nothing but take notes.
//!
//! For tests, of this crate and of monitors that embed it (feature `fake`).

mod backend;
mod config;
mod device;
mod interrupts;
mod intx;
mod journal;
mod line;
mod msi;
mod msix;
mod ports;

pub use device::{FakeDevice, Operation};
pub use journal::Journal;
pub use ports::{FakeMapper, FakeRouter, FakeSpace};
