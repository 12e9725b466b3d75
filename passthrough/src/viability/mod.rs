//! Whether a group of devices can be given to a guest: a pure function from
//! [`Survey`](crate::host::Survey) to [`Verdict`].
//!
//! A guest gets the whole group or nothing, for the IOMMU cannot keep its
//! members from reaching each other's memory. So no member may be at work for
//! the host. Linux has had two rules for that, see [`Regime`]; sysfs shows
//! neither's state, hence this is a prediction. The kernel decides at the open.

mod isolation;
mod member;
mod regime;
mod remedy;
mod verdict;
#[cfg(test)]
mod verdict_test;

pub use isolation::{Cause, Isolation};
pub use member::{Member, MemberState, is_vfio_driver};
pub use regime::Regime;
pub use remedy::Remedy;
pub use verdict::{Action, Change, Verdict};
