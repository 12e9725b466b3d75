use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use crate::sys::Ownership;

/// What keeps a device attached; dropping it lets the device go.
pub(super) trait Keeper: Send + Sync {
    /// Has `act` see what proves that this process owns the device and its
    /// neighbours. Until it is done, no group comes or goes.
    fn prove(&self, act: &mut dyn FnMut(&Ownership<'_>));
}

/// An open device that reaches memory through an address space of ours. It
/// closes when this is dropped, and with the last one whatever leads to it.
///
/// Nothing of sysfs is asked for that: when the host is waiting to remove the
/// device, it is gone from there as soon as its file is closed.
pub(crate) struct AttachedDevice {
    // Dropped in this order: the file closes before what leads to it, unless
    // that holds the file too.
    file: Arc<OwnedFd>,
    keeper: Box<dyn Keeper>,
}

impl AttachedDevice {
    /// A device that `keeper` keeps attached.
    pub(super) fn new(file: Arc<OwnedFd>, keeper: impl Keeper + 'static) -> Self {
        Self {
            file,
            keeper: Box::new(keeper),
        }
    }

    /// Has `act` see what proves that this process owns the device and its
    /// neighbours. Until it is done, no group comes or goes.
    ///
    /// # Errors
    /// Those of `act`.
    pub(crate) fn with_ownership<T>(
        &self,
        act: impl Fn(&Ownership<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut result = Err(io::ErrorKind::Unsupported.into());
        self.keeper.prove(&mut |ownership| result = act(ownership));
        result
    }

    /// The file, as long as the device is open: for what may outlive it.
    pub(crate) fn downgrade(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.file)
    }
}

impl AsFd for AttachedDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Debug for AttachedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedDevice")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
