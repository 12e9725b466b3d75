use serde::{Deserialize, Serialize};

use super::sysfs::Host;

/// `CAP_IPC_LOCK` (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// What this process may do, as far as the checks need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The effective user id, where procfs says it.
    pub effective_uid: Option<u32>,
    /// Has `CAP_IPC_LOCK` towards the whole host, so that the limit on locked
    /// memory does not count.
    pub may_lock_any: bool,
    /// The limit on locked memory, where procfs says it.
    pub locked_memory: Option<LockedMemory>,
}

/// `RLIMIT_MEMLOCK` in bytes; nothing means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedMemory {
    /// The limit that holds.
    pub soft: Option<u64>,
    /// How far the process may raise it.
    pub hard: Option<u64>,
}

impl Process {
    /// Whether the process is the superuser.
    pub fn is_root(&self) -> bool {
        self.effective_uid == Some(0)
    }

    pub(super) fn read(host: &Host) -> Self {
        let text = |path| host.text(path).ok().flatten().unwrap_or_default();
        let status = text("/proc/self/status");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let capabilities =
            field("CapEff:").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        Self {
            effective_uid: field("Uid:")
                .and_then(|ids| ids.split_whitespace().nth(1))
                .and_then(|id| id.parse().ok()),
            may_lock_any: capabilities.is_some_and(|set| set & 1 << CAP_IPC_LOCK != 0)
                && match host.text("/proc/self/uid_map") {
                    Ok(Some(map)) => is_initial_user_namespace(&map),
                    // A kernel without user namespaces has no such file.
                    Ok(None) => true,
                    Err(_) => false,
                },
            locked_memory: text("/proc/self/limits").lines().find_map(limit),
        }
    }
}

/// VFIO asks for the capability in the first user namespace (`capable()`); the
/// root of a container with ids of its own does not have it there.
fn is_initial_user_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn limit(line: &str) -> Option<LockedMemory> {
    let mut values = line
        .strip_prefix("Max locked memory")?
        .split_whitespace()
        .map(|value| match value {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        });
    Some(LockedMemory {
        soft: values.next()??,
        hard: values.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_as_the_kernel_writes_them() {
        let line = "Max locked memory         8388608              unlimited            bytes     ";
        let expected = LockedMemory {
            soft: Some(8 << 20),
            hard: None,
        };
        assert_eq!(limit(line), Some(expected));
        assert_eq!(limit("Max open files            1024  4096 files"), None);
        assert_eq!(limit("Max locked memory         many  4096 bytes"), None);
        assert_eq!(limit("Max locked memory         64"), None);
    }

    #[test]
    fn this_process_is_known() {
        let process = Process::read(&Host::system());
        assert!(process.effective_uid.is_some());
        assert!(process.locked_memory.is_some());
    }

    #[test]
    fn a_container_of_its_own_is_told_apart() {
        assert!(is_initial_user_namespace(
            "         0          0 4294967295\n"
        ));
        assert!(!is_initial_user_namespace(
            "         0     100000      65536\n"
        ));
        assert!(!is_initial_user_namespace(""));
    }
}
