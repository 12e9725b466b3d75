//! From what the guest programs to what is armed on the host.
//!
//! | file | |
//! |---|---|
//! | `intx.rs` | the interrupt pin |
//! | `msi.rs` | MSI |
//! | `msix.rs` | MSI-X: the guest's table |
//! | `msix_vectors.rs` | MSI-X: what is armed on the host |
//! | `kinds.rs` | all three of a function: which one is on |
//! | `stats.rs` | what they cost |

mod intx;
mod kinds;
mod msi;
mod msix;
mod msix_vectors;
mod stats;

pub(crate) use kinds::Interrupts;
pub(crate) use stats::CountedBackend;
pub use stats::{InterruptStats, TrappedPage};
