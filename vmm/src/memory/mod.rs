//! Guest memory: where it lies, what backs it, and KVM's slots for it.
//!
//! The monitor's only room, beside the vCPUs', with `unsafe` in it.

mod backing;
mod block;
mod host;
mod layout;
mod locked;
mod numa;
mod ram;
mod slots;

pub use backing::{Backing, BackingKind};
pub use block::RamBlock;
pub use host::HostMeminfo;
pub(crate) use layout::ram_pieces;
pub use layout::{GuestLayout, GuestRange, LayoutError};
pub use locked::raise_locked_memory;
pub use numa::{NumaError, NumaNode};
pub use ram::{DeviceRam, GuestRam, KeptPages, RamError};
pub use slots::{KvmSlots, Slot, SlotError};
