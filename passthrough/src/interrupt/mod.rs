//! From what the guest programs to what is armed on the host.
//!
//! | file | |
//! |---|---|
//! | `intx.rs` | the interrupt pin |
//! | `msi.rs` | MSI |
//! | `msix.rs` | MSI-X |
//! | `kinds.rs` | all three of a function: which one is on |

mod intx;
mod kinds;
mod msi;
mod msix;

pub(crate) use kinds::Interrupts;
pub(crate) use msix::MsixInterrupts;
