//! Packages from Debian's archive without a change to the machine: the mirror
//! and the keys are those of its own apt configuration, everything that apt
//! writes goes to a directory of the lab.

mod fetch;
mod sources;

pub use fetch::{AptError, Package, fetch, fetch_newest};
pub use sources::{Source, machine_sources, parse_deb822, parse_one_line};
