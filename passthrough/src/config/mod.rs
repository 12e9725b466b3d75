//! The guest's view of a device's config space.
//!
//! | file | says of |
//! |---|---|
//! | `table/` | the rules, as data: who answers a register, who may write it, why |
//! | `rule.rs` | what a rule is |
//! | `subject.rs` | the device that they are applied to, and its place in the guest |
//! | `standard.rs`, `extended.rs` | which capabilities the guest sees, and their chains |
//! | `express.rs`, `msi.rs`, `msix.rs`, `power.rs`, `resizable.rs`, `size.rs` | single capabilities |
//! | `bar.rs`, `command.rs` | registers of the header |
//! | `book.rs` | all rules of one device, in their places |
//! | `view.rs` | the rules put to work |
//!
//! The host's kernel has rules of its own below these
//! (drivers/vfio/pci/vfio_pci_config.c). What it does not let through needs no
//! rule here; what it lets through but is not the guest's business does.

mod bar;
mod book;
mod command;
mod express;
mod extended;
mod msi;
mod msix;
mod power;
mod resizable;
mod rule;
#[cfg(test)]
pub(crate) mod sample;
mod size;
mod standard;
mod subject;
mod table;
mod view;

pub(crate) use bar::discover as discover_bars;
pub(crate) use bar::kind as bar_kind;
pub(crate) use book::{Found, Placed, RuleBook};
pub(crate) use command::{
    COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, STATUS,
    STATUS_INTERRUPT, pin,
};
pub(crate) use msi::MsiPlace;
#[cfg(test)]
pub(crate) use msix::BarArea;
pub(crate) use msix::{CONTROL as MSIX_CONTROL, MsixCapability};
pub(crate) use power::{CAPABILITIES as POWER_CAPABILITIES, CONTROL as POWER_CONTROL, PowerState};
pub(crate) use rule::Access;
pub(crate) use subject::{Deliverable, Subject};
pub(crate) use table::name_of;
pub(crate) use view::{ConfigView, Scope, snapshot};

use devices::pci::{BarIndex, BarKind};
use thiserror::Error;

/// Why a device's config space can't be shown to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Reads give all ones.
    #[error("its config space reads as all ones: it is powered off or has left the bus")]
    NoAnswer,
    /// A bridge.
    #[error("its header has type {0:#x}: only endpoints (type 0) can be assigned, not bridges")]
    HeaderType(u8),
    /// A port or a bridge by its PCI Express capability.
    #[error("it is a PCI Express port of type {0:#x}: only endpoints can be assigned")]
    PortType(u8),
    /// It was to stand behind a port.
    #[error("it has no PCI Express link, so it can't stand behind a port: put it on the root bus")]
    NoLink,
    /// A BAR that can't exist.
    #[error("its {index} has {size:#x} bytes, which a register of kind {kind:?} can't express")]
    Bar {
        /// The BAR.
        index: BarIndex,
        /// What the register says that it decodes.
        kind: BarKind,
        /// The size of its region.
        size: u64,
    },
    /// The MSI-X table is not where a table can be.
    #[error("its MSI-X table of {vectors} vectors at {offset:#x} does not lie in BAR {bar}")]
    MsixTable {
        /// How many vectors.
        vectors: u16,
        /// The BAR, as the capability names it.
        bar: u8,
        /// From the start of the BAR.
        offset: u64,
    },
}

#[cfg(test)]
mod rules_test;
