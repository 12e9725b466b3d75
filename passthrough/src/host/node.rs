use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use super::sysfs::{Host, present};
use crate::sys::access;

/// A file below `/dev`, and whether this process may open it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The absolute path.
    pub path: String,
    /// What was found.
    pub state: NodeState,
}

/// Whether a file can be opened for reading and writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// There is none.
    Missing,
    /// access(2) says yes. An open may still fail, for example when another
    /// process holds it.
    Accessible,
    /// access(2) says no.
    Denied {
        /// The owner.
        uid: u32,
        /// The group of users.
        gid: u32,
        /// Permission bits, the lower 12.
        mode: u32,
        /// What the kernel answered.
        reason: String,
    },
}

impl Node {
    /// Looks at the file without opening it.
    pub(super) fn read(host: &Host, path: &str) -> Self {
        let file = host.path(path);
        let state = match present(access::read_write(&file)) {
            Ok(None) => NodeState::Missing,
            Ok(Some(())) => NodeState::Accessible,
            Err(error) => {
                let found = fs::metadata(&file).ok();
                NodeState::Denied {
                    uid: found.as_ref().map_or(0, MetadataExt::uid),
                    gid: found.as_ref().map_or(0, MetadataExt::gid),
                    mode: found.as_ref().map_or(0, |found| found.mode() & 0o7777),
                    reason: error.to_string(),
                }
            }
        };
        Self {
            path: path.to_owned(),
            state,
        }
    }

    /// A file that is known not to be there.
    pub(super) fn missing(path: String) -> Self {
        Self {
            path,
            state: NodeState::Missing,
        }
    }
}
