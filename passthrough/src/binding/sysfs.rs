use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::host::Holders;

/// A write to an attribute of sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The absolute path.
    pub path: String,
    /// What is written, in one write(2).
    pub value: String,
}

impl Write {
    pub(super) fn new(path: String, value: impl Into<String>) -> Self {
        let value = value.into();
        Self { path, value }
    }
}

impl fmt::Display for Write {
    /// As a shell would do it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.trim_end() {
            "" => write!(f, "echo > {}", self.path),
            value => write!(f, "echo {value} > {}", self.path),
        }
    }
}

/// Why the kernel's files gave no answer, or no good one.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The kernel said no.
    #[error(transparent)]
    Refused(#[from] io::Error),
    /// It did not answer in time. What it was asked for may still happen.
    #[error("the kernel did not answer in time")]
    Late,
}

/// The port to the kernel's files, so that tests can put another kernel behind
/// it. Paths are absolute and begin with `/sys` or `/proc`.
///
/// What takes a device's lock may wait until a guest lets go of the device:
/// that is [`read_locked`](Self::read_locked) and [`write`](Self::write), which
/// must come back by their limit. The others never wait.
pub trait Sysfs: fmt::Debug + Send + Sync {
    /// An attribute's text, trimmed; nothing when there is no such attribute
    /// or device. Only for what takes no lock of a device.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self, path: &str) -> io::Result<Option<String>>;

    /// The same for what takes the lock: `driver_override`, `sriov_numvfs`.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`, and the kernel's.
    fn read_locked(&self, path: &str, limit: Duration) -> Result<Option<String>, AccessError>;

    /// The last part of where a link points; nothing when there is none.
    ///
    /// # Errors
    /// The kernel's.
    fn link(&self, path: &str) -> io::Result<Option<String>>;

    /// The names in a folder, sorted; nothing when there is no such folder.
    ///
    /// # Errors
    /// The kernel's.
    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>>;

    /// Writes. When it comes back [`Late`](AccessError::Late) and the write
    /// goes through afterwards, `undo` is written by itself, in order and
    /// whatever each answers, even if this process is gone by then.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`, and the kernel's.
    fn write(&self, write: &Write, undo: &[Write], limit: Duration) -> Result<(), AccessError>;

    /// Loads a module by its name.
    ///
    /// # Errors
    /// [`AccessError::Late`] after `limit`; otherwise what the program that
    /// loads modules had to say.
    fn load_module(&self, module: &str, limit: Duration) -> Result<(), AccessError>;

    /// The processes that have VFIO's files open, this one left out.
    fn holders(&self) -> Holders;
}
