//! What the guard's tests stand on: a group in memory, and made-up uevents.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::*;
use crate::binding::{AccessError, Write};
use crate::host::Holders;

/// The part of sysfs that the guard looks at: texts by path. The links are
/// those that end in `->`.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(super) struct State {
    files: BTreeMap<String, String>,
    /// Folders that can't be read.
    pub(super) broken: Option<String>,
    pub(super) refuse_writes: bool,
    pub(super) writes: Vec<String>,
}

impl Tree {
    /// A group 5 with a bridge, and A and B on vfio-pci.
    pub(super) fn new() -> Self {
        let tree = Self::default();
        tree.device("0000:01:00.0", None, "0x060400");
        for name in [A, B] {
            tree.device(name, Some("vfio-pci"), "0x020000");
            let path = format!("/sys/bus/pci/devices/{name}/vfio-dev/vfio0");
            tree.set(&path, "");
        }
        tree
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn set(&self, path: &str, text: &str) {
        self.state().files.insert(path.to_owned(), text.to_owned());
    }

    pub(super) fn device(&self, name: &str, driver: Option<&str>, class: &str) {
        for folder in [
            format!("{GROUPS}/5/devices/{name}"),
            format!("/sys/bus/pci/devices/{name}"),
        ] {
            self.set(&format!("{folder}/subsystem->"), "pci");
            self.set(&format!("{folder}/iommu_group->"), "5");
            self.set(&format!("{folder}/class"), class);
            self.set(&format!("{folder}/driver_override"), "(null)");
        }
        self.driver(name, driver);
    }

    pub(super) fn driver(&self, name: &str, driver: Option<&str>) {
        for folder in [
            format!("{GROUPS}/5/devices/{name}"),
            format!("/sys/bus/pci/devices/{name}"),
        ] {
            let path = format!("{folder}/driver->");
            match driver {
                Some(driver) => self.set(&path, driver),
                None => drop(self.state().files.remove(&path)),
            }
        }
    }

    /// What an unbind does first: the link goes, and VFIO's own device.
    pub(super) fn begin_unbind(&self, name: &str) {
        self.driver(name, None);
        let vfio = format!("{name}/vfio-dev");
        self.state().files.retain(|path, _| !path.contains(&vfio));
    }

    pub(super) fn remove(&self, name: &str) {
        self.state().files.retain(|path, _| !path.contains(name));
    }
}

impl Sysfs for Tree {
    fn read(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.state().files.get(path).cloned())
    }

    fn read_locked(&self, path: &str, _: Duration) -> Result<Option<String>, AccessError> {
        Ok(self.read(path)?)
    }

    fn link(&self, path: &str) -> io::Result<Option<String>> {
        self.read(&format!("{path}->"))
    }

    fn list(&self, path: &str) -> io::Result<Option<Vec<String>>> {
        let state = self.state();
        if state.broken.as_ref().is_some_and(|broken| broken == path) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let under = format!("{path}/");
        let names = state.files.keys().filter_map(|file| {
            let rest = file.strip_prefix(&under)?;
            rest.split('/').next().map(str::to_owned)
        });
        let names: BTreeSet<_> = names.collect();
        Ok((!names.is_empty()).then(|| names.into_iter().collect()))
    }

    fn write(&self, write: &Write, _: &[Write], _: Duration) -> Result<(), AccessError> {
        let mut state = self.state();
        if state.refuse_writes {
            return Err(io::Error::from_raw_os_error(libc::EACCES).into());
        }
        state.writes.push(write.to_string());
        if write.path.ends_with("/driver_override") {
            let value = match write.value.trim() {
                "" => "(null)",
                value => value,
            };
            state.files.insert(write.path.clone(), value.to_owned());
        }
        Ok(())
    }

    fn load_module(&self, _: &str, _: Duration) -> Result<(), AccessError> {
        Ok(())
    }

    fn holders(&self) -> Holders {
        Holders::default()
    }
}

/// Made-up uevents.
#[derive(Clone, Debug)]
pub(super) struct Messages(
    pub(super) Arc<Mutex<VecDeque<io::Result<Received>>>>,
    pub(super) Arc<File>,
);

impl AsFd for Messages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }
}

impl UeventSource for Messages {
    fn receive(&mut self) -> io::Result<Option<Received>> {
        self.0.lock().unwrap().pop_front().transpose()
    }
}

impl Messages {
    pub(super) fn send(&self, text: &str, subsystem: &str) {
        let message = format!("{text}\0SUBSYSTEM={subsystem}\0");
        let event = Uevent::parse(message.as_bytes()).unwrap();
        let mut queue = self.0.lock().unwrap();
        queue.push_back(Ok(Received::Event(event)));
    }
}

pub(super) struct Rig {
    pub(super) tree: Tree,
    pub(super) messages: Messages,
    pub(super) guard: Guard,
    _journals: tempfile::TempDir,
}

pub(super) fn name(name: &str) -> DeviceName {
    name.parse().unwrap()
}

pub(super) fn rig(held: &[&str]) -> Rig {
    let tree = Tree::new();
    let queue = Arc::default();
    let messages = Messages(queue, Arc::new(File::open("/dev/null").unwrap()));
    let journals = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(1);
    let binder = Binder::new(Box::new(tree.clone()), journals.path(), limit);
    let held: Vec<_> = held.iter().map(|held| name(held)).collect();
    let guard = Guard::with_source(Box::new(messages.clone()), binder, &held).unwrap();
    let mut rig = Rig {
        tree,
        messages,
        guard,
        _journals: journals,
    };
    assert_eq!(rig.all(), []);
    rig
}

impl Rig {
    /// Turns until nothing is left.
    pub(super) fn all(&mut self) -> Vec<GuardEvent> {
        let mut events = Vec::new();
        loop {
            let more = self.guard.turn();
            if more.is_empty() {
                return events;
            }
            events.extend(more);
        }
    }

    pub(super) fn uevent(&mut self, text: &str, subsystem: &str) -> Vec<GuardEvent> {
        self.messages.send(text, subsystem);
        self.all()
    }
}
