//! What runs in guests besides busybox: a program that does to PCI functions
//! what a shell can't, because it takes two CPUs at once or an access of an
//! exact width, and times accesses and reads. See `guest-pci` for its commands.
//!
//! It reads and writes as a driver in user space would: config space and ports
//! through sysfs, memory through `/dev/mem`.

mod decode;
mod disk;
mod dma;
mod doors;
mod ends;
mod function;
mod memory;
mod ports;
mod rates;
mod shuffle;
mod sleep;
mod vectors;

pub use decode::decode;
pub use disk::disk;
pub use dma::{peer, stray};
pub use doors::doors;
pub use ends::ends;
pub use function::{Bar, Function};
pub use memory::Memory;
pub use ports::ports;
pub use rates::rates;
pub use shuffle::{swap, wander};
pub use sleep::sleep;
pub use vectors::vectors;

use std::path::PathBuf;
use std::{fs, io};

use thiserror::Error;

/// What a read gives where nothing answers.
const NOTHING: u32 = u32::MAX;

/// Why a command could not be carried out.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A file of the guest's kernel.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Physical memory can't be mapped or accessed.
    #[error("the guest's physical memory at {address:#x}: {reason}")]
    Memory {
        /// Where.
        address: u64,
        /// Why.
        reason: String,
    },
    /// The function has no such thing.
    #[error("the function {function} has no {what}")]
    None {
        /// Which function.
        function: String,
        /// What.
        what: String,
    },
    /// Something was not as it must be.
    #[error("{0}")]
    Unexpected(String),
}

/// For `map_err` on an operation with a file.
fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.into();
    move |source| GuestError::File { path, source }
}

/// A line of a guest for the lab, as `resources/guest-init.sh` writes them.
pub fn marker(name: &str, values: &str) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_whitespace().next().unwrap_or("?");
    println!("lab: {name} uptime={uptime} {values}");
}
