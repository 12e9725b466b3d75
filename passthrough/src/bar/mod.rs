//! A BAR in the guest's address space: what goes straight through, and what
//! is trapped.

mod bars;
mod layout;
mod mapping;

pub(crate) use bars::{Bars, address_of};
pub(crate) use layout::{BarLayout, Emulated, pieces};
pub(crate) use mapping::{BarMapping, DirectMemory};
