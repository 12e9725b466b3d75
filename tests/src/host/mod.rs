//! A nested host that runs: boot, steps, shutdown.

mod boot;
mod disk;
mod error;
mod hotplug;
mod initrd;
mod network;
mod process;
mod qemu;
mod qmp;
mod session;
mod sriov;
mod vfio;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::pci::PciAddress;

pub use crate::agent::protocol::{Exit, Stream};
pub use boot::{Content, Parts};
pub(crate) use error::file_tail;
pub use error::{HostError, Tails};
pub use process::{Outcome, Process, Step};
pub use qmp::QmpError;
pub use session::Line;
pub use vfio::VFIO_PCI;

use crate::agent::protocol::Request;
use crate::cache::Lock;
use crate::machine::Location;
use session::{Session, Waited};

/// How much of a console or of an output a message shows.
const TAIL_LINES: usize = 25;

/// The longest wait for an orderly power-off.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// Where the lab's files stand in the nested host.
pub const INSTALL_DIRECTORY: &str = "/run/lab";

/// A nested host that runs. Dropping it ends it, also while a test panics.
#[derive(Debug)]
pub struct Host {
    shared: Arc<Shared>,
    locations: BTreeMap<String, Location>,
    /// What the devices that are plugged in later are to QEMU.
    absent: BTreeMap<String, String>,
    addresses: Mutex<BTreeMap<String, PciAddress>>,
    ready_ns: u64,
    // Dropped after QEMU was killed in `Drop`: the directory first, then the
    // lock, so that the next machine finds nothing of this one.
    directory: RunDirectory,
    _lock: Lock,
}

/// What processes need of their host.
#[derive(Debug)]
struct Shared {
    session: Arc<Session>,
    qemu: Mutex<qemu::Qemu>,
    qmp: Mutex<qmp::Qmp>,
    machine: String,
    console: PathBuf,
    messages: PathBuf,
}

impl Shared {
    fn kill(&self) {
        self.qemu
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .kill();
    }

    fn qmp(&self) -> MutexGuard<'_, qmp::Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the host, because a wait ended badly, and tells why.
    fn give_up(&self, waited: Waited, title: &str, limit: Duration, id: Option<u32>) -> HostError {
        self.kill();
        let console = error::file_tail(&self.console, TAIL_LINES);
        let messages = error::file_tail(&self.messages, TAIL_LINES);
        let output = match id {
            Some(id) => self.session.record(id).tail(TAIL_LINES),
            None => Vec::new(),
        };
        let tails = Box::new(error::Tails {
            console,
            messages,
            output,
        });
        let (machine, title) = (self.machine.clone(), title.to_owned());
        match waited {
            Waited::TimeLimit => HostError::TimeLimit {
                machine,
                title,
                limit,
                tails,
            },
            Waited::Closed(reason) => HostError::Gone {
                machine,
                title,
                reason,
                tails,
            },
        }
    }
}

impl Host {
    /// The address of the device that the machine names so.
    ///
    /// # Errors
    /// [`HostError::NoDevice`] when the machine has none of that name, or the
    /// nested host's kernel did not find it, or it's not plugged in.
    pub fn address(&self, name: &str) -> Result<PciAddress, HostError> {
        let address = self.known().get(name).copied();
        address.ok_or_else(|| self.no_device(name))
    }

    /// The devices that are known, by name.
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, PciAddress>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn no_device(&self, name: &str) -> HostError {
        HostError::NoDevice {
            machine: self.shared.machine.clone(),
            name: name.to_owned(),
        }
    }

    /// When the agent was ready: the nested host's `CLOCK_MONOTONIC` in
    /// nanoseconds, which began with its kernel.
    pub fn ready_ns(&self) -> u64 {
        self.ready_ns
    }

    /// A directory of the machine that runs the lab; the nested host sees it
    /// as `/run/lab/work`.
    pub fn work_directory(&self) -> PathBuf {
        self.directory.work()
    }

    /// The last lines of the nested host's console.
    pub fn console_tail(&self) -> Vec<String> {
        error::file_tail(&self.shared.console, TAIL_LINES)
    }

    /// Powers the nested host off in an orderly way.
    ///
    /// # Errors
    /// [`HostError`] when it doesn't end in 20 s; it's killed then.
    pub fn shutdown(self) -> Result<(), HostError> {
        let title = "power off";
        let shared = &self.shared;
        shared
            .session
            .send(&Request::PowerOff)
            .map_err(|waited| shared.give_up(waited, title, SHUTDOWN_LIMIT, None))?;
        let status = shared
            .qemu
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait(SHUTDOWN_LIMIT);
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let reason = Waited::Closed(format!("QEMU ended with {status}"));
                Err(shared.give_up(reason, title, SHUTDOWN_LIMIT, None))
            }
            None => Err(shared.give_up(Waited::TimeLimit, title, SHUTDOWN_LIMIT, None)),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.kill();
    }
}

/// The directory of one run; removed at the end.
#[derive(Debug)]
struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes an empty one. What an earlier run left there (its process was
    /// killed) is removed; the lab's lock must be held.
    fn create(path: PathBuf) -> std::io::Result<Self> {
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        let directory = Self { path };
        std::fs::create_dir_all(directory.install())?;
        Ok(directory)
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    fn install(&self) -> PathBuf {
        self.work().join("install")
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // A leftover is removed by the next run.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
