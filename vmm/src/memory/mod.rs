//! Guest memory: where it lies, what backs it, and KVM's slots for it.
//!
//! The monitor's only room, beside the vCPUs', with `unsafe` in it.

mod host;
mod layout;
mod ram;
mod slots;

pub use host::HostMeminfo;
pub use layout::{GuestLayout, GuestRange, LayoutError};
pub use ram::{GuestRam, RamBlock, RamError};
pub use slots::{KvmSlots, Slot, SlotError};
