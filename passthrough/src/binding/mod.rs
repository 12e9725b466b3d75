//! Binding: takes devices from the host's drivers, and gives them back.

mod bound;
mod device;
mod error;
mod guard;
mod held;
mod holds;
mod news;
mod plan;
mod restore;
mod sysfs;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use bound::Binding;
pub use device::{DeviceName, DeviceNameError};
pub use error::BindError;
pub use guard::{Guard, GuardError};
pub use held::{Found, Held, HeldState, Owner, UnreadableJournal};
pub use holds::Holds;
pub use news::{Fate, GuardEvent};
pub use plan::{AlreadyRight, BindPlan, BindRequest, PlannedDevice, Target};
pub use restore::{Outcome, Released};
pub use sysfs::{AccessError, KernelSysfs, Sysfs, Write};

use crate::host::Survey;

/// For how long a device is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Until it is released by name.
    UntilReleased,
    /// As long as the [`Binding`], and so its process, lives.
    WhileHeld,
}

/// Binds and gives back. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Binder {
    inner: Arc<Inner>,
}

struct Inner {
    sysfs: Box<dyn Sysfs>,
    folder: PathBuf,
    limit: Duration,
}

impl fmt::Debug for Binder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binder")
            .field("folder", &self.inner.folder)
            .field("limit", &self.inner.limit)
            .finish_non_exhaustive()
    }
}

impl Binder {
    /// Where the journals of this machine are.
    pub const FOLDER: &str = "/run/airlock";
    /// How long an answer of the kernel is waited for.
    pub const LIMIT: Duration = Duration::from_secs(10);

    /// One for the machine that this process runs on.
    pub fn system() -> Self {
        let sysfs = Box::new(KernelSysfs::new());
        Self::new(sysfs, Path::new(Self::FOLDER), Self::LIMIT)
    }

    /// One for `sysfs` with its journals in `folder`, that waits at most
    /// `limit` for each answer of the kernel.
    pub fn new(sysfs: Box<dyn Sysfs>, folder: &Path, limit: Duration) -> Self {
        let folder = folder.to_owned();
        let inner = Arc::new(Inner {
            sysfs,
            folder,
            limit,
        });
        Self { inner }
    }

    /// The port that this one works with.
    pub fn sysfs(&self) -> &dyn Sysfs {
        &*self.inner.sysfs
    }

    /// What has to be done for `request` on the host of `survey`. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`BindError`] that says why it must not be done.
    pub fn plan(&self, _survey: &Survey, _request: &BindRequest) -> Result<BindPlan, BindError> {
        Err(BindError::Unfinished)
    }

    /// Carries `plan` out, all or nothing.
    ///
    /// # Errors
    /// [`BindError`]; nothing is bound then.
    pub fn bind(&self, _plan: &BindPlan, _keep: Keep) -> Result<Binding, BindError> {
        Err(BindError::Unfinished)
    }

    /// Gives `devices` back. One that can't be given back does not stop the
    /// others.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun: a device is not held, or by a
    /// running airlock.
    pub fn release(&self, _devices: &[DeviceName]) -> Result<Vec<Released>, BindError> {
        Err(BindError::Unfinished)
    }

    /// Gives back everything that no running airlock minds.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun.
    pub fn release_all(&self) -> Result<Vec<Released>, BindError> {
        Err(BindError::Unfinished)
    }

    /// Gives back what airlocks have left that came to a sudden end.
    ///
    /// # Errors
    /// [`BindError`] when nothing was begun.
    pub fn release_stale(&self) -> Result<Vec<Released>, BindError> {
        Err(BindError::Unfinished)
    }

    /// Everything that is held, or has to be given back still.
    ///
    /// # Errors
    /// [`BindError::Journal`] when the journals can't be listed.
    pub fn bindings(&self) -> Result<Vec<Held>, BindError> {
        Err(BindError::Unfinished)
    }

    /// The journals that can't be read, and whose devices nobody minds.
    ///
    /// # Errors
    /// [`BindError::Journal`] when the journals can't be listed.
    pub fn unreadable(&self) -> Result<Vec<UnreadableJournal>, BindError> {
        Err(BindError::Unfinished)
    }

    /// Sees to it that `device`, which has come into a held group, gets no
    /// driver but `driver`: for as long as the answer lives.
    ///
    /// # Errors
    /// [`BindError`]; nothing is changed then.
    pub fn hold_hot_added(
        &self,
        _device: &DeviceName,
        _driver: &str,
    ) -> Result<Binding, BindError> {
        Err(BindError::Unfinished)
    }
}
