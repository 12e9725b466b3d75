use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Keep;
use super::device::DeviceName;
use crate::host::GroupId;

/// A device that airlock holds, or has to give back still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The device.
    pub device: DeviceName,
    /// Its group.
    pub group: Option<GroupId>,
    /// The driver that it was bound to.
    pub driver: String,
    /// What it goes back to.
    pub back_to: Found,
    /// It came into a held group by itself: it has no driver to go back to. A
    /// PCI device is removed and found anew, as on the day it was plugged in.
    pub hot_added: bool,
    /// For how long.
    pub keep: Keep,
    /// By whom and since when.
    pub owner: Owner,
    /// Whether anybody still minds it.
    pub state: HeldState,
    /// The journal that says so.
    pub journal: PathBuf,
}

/// What becomes of a held device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldState {
    /// It is held until `airlock release`.
    Kept,
    /// A running airlock minds it.
    Live,
    /// Whoever minded it is gone: `airlock release --stale` gives it back.
    Stale,
}

/// What a device was like before airlock touched it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The driver that it was on.
    pub driver: Option<String>,
    /// That driver's module. None when it is part of the kernel.
    pub driver_module: Option<String>,
    /// The driver that alone might bind it.
    pub driver_override: Option<String>,
    /// `power/control`: `auto` or `on`.
    pub power_control: Option<String>,
    /// How many VFs it had. None when it can't have any.
    pub virtual_functions: Option<u16>,
}

/// The process that bound a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its number then.
    pub pid: u32,
    /// When it started, in clock ticks since the boot (proc_pid_stat(5), field
    /// 22): tells it from a later process of the same number.
    pub start_time: u64,
    /// How it was called.
    pub command: String,
    /// When it bound the device, in seconds since 1970.
    pub since: u64,
}

impl Owner {
    /// When it bound the device.
    pub fn since(&self) -> SystemTime {
        let since = Duration::from_secs(self.since);
        SystemTime::UNIX_EPOCH
            .checked_add(since)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Owner {
    /// The end of a sentence about a device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = SystemTime::now().duration_since(self.since());
        let age = age.map_or(0, |age| age.as_secs());
        write!(f, "by `{}` (pid {}), ", self.command, self.pid)?;
        match age {
            0..120 => write!(f, "{age} s ago"),
            120..7200 => write!(f, "{} min ago", age / 60),
            _ => write!(f, "{} h ago", age / 3600),
        }
    }
}

/// A journal that makes no sense. It is left where it is, and its devices as
/// they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableJournal {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for UnreadableJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(
            f,
            "{path} is no journal that this airlock can read ({}): its devices are left as they are. Give them back by hand or with the airlock that wrote it, then remove the file",
            self.reason
        )
    }
}
