use serde::{Deserialize, Serialize};

use super::sysfs::Host;

/// Which processes have VFIO's files open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holders {
    /// Those that could be seen, this process left out.
    pub seen: Vec<Holder>,
    /// How many processes did not let us look at their files.
    pub hidden: u32,
}

/// A process that has one of VFIO's files open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// What it calls itself; empty when it has just gone.
    pub name: String,
    /// The file, such as `/dev/vfio/12`.
    pub file: String,
}

impl Holders {
    /// Those that have `file` open.
    pub fn of<'a>(&'a self, file: &'a str) -> impl Iterator<Item = &'a Holder> {
        self.seen.iter().filter(move |holder| holder.file == file)
    }

    /// Looks through every process's open files: the kernel has no shorter way.
    pub(crate) fn read(host: &Host) -> Self {
        let own = host.link_name("/proc/self").ok().flatten();
        let mut holders = Self::default();
        let processes = host.list("/proc").ok().flatten().unwrap_or_default();
        for process in processes {
            let Ok(pid) = process.parse() else { continue };
            if Some(&process) != own.as_ref() {
                holders.look_at(host, pid);
            }
        }
        holders
    }

    fn look_at(&mut self, host: &Host, pid: u32) {
        let descriptors = match host.list(&format!("/proc/{pid}/fd")) {
            Ok(descriptors) => descriptors.unwrap_or_default(),
            Err(_) => {
                self.hidden = self.hidden.saturating_add(1);
                return;
            }
        };
        let mut files = Vec::new();
        for descriptor in descriptors {
            // Gone or hidden meanwhile: then it is not known to hold anything.
            if let Ok(Some(file)) = host.link(&format!("/proc/{pid}/fd/{descriptor}"))
                && is_exclusive(&file)
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
        if files.is_empty() {
            return;
        }
        let name = host.text(&format!("/proc/{pid}/comm")).ok().flatten();
        let name = name.unwrap_or_default();
        self.seen.extend(files.into_iter().map(|file| Holder {
            pid,
            name: name.clone(),
            file,
        }));
    }
}

/// Whether `file` is a group's or a device's. The container may be open in
/// any number of processes.
fn is_exclusive(file: &str) -> bool {
    file.strip_prefix("/dev/vfio/")
        .is_some_and(|name| name != "vfio")
}
