//! The guest's PCI: addresses, functions and their config space.

#[cfg(feature = "machine")]
mod access;
mod address;
mod bar;
mod capability;
mod config;
mod contest;
#[cfg(test)]
mod fake;
mod firmware;
mod forwarding;
mod function;
mod host_bridge;
mod link;
mod msi;
mod msix;
mod pin;
pub mod placement;
mod root_complex;
mod root_port;
pub mod window;

#[cfg(feature = "machine")]
pub use access::{BarAccess, ConfigPorts, ConfigTarget, Ecam};
pub use address::{PciAddress, PciAddressError};
pub use bar::{BarDecode, BarIndex, BarInfo, BarKind};
pub use capability::{Capability, ExtendedCapability, capabilities, extended_capabilities};
pub use config::{CONFIG_SPACE_SIZE, ConfigSpace, Register};
pub use contest::{Fixed, contest};
pub use firmware::{ProgramError, program};
pub use forwarding::Forwarding;
pub use function::{Effects, FunctionHandle, PciFunction, Reach, SettleError};
pub use host_bridge::{HOST_BRIDGE_ID, HostBridge};
pub use link::Link;
pub use msi::{MsiCapability, MsiState};
pub use msix::{MsiMessage, Msix};
pub use pin::{InterruptPin, PinWiring};
pub use root_complex::{Change, EffectSink, RootComplex, TopologyError};
pub use root_port::{ROOT_PORT_ID, RootPort};
