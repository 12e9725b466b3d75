use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use thiserror::Error;

use super::device::DeviceName;
use super::holds::Holds;
use super::news::{Fate, GuardEvent};
use super::{Binder, Sysfs};
use crate::host::{GroupId, Received, Uevent, UeventAction, UeventSocket, UeventSource};
use crate::viability::is_vfio_driver;

const GROUPS: &str = "/sys/kernel/iommu_groups";
/// The most messages that are taken before the groups are looked at: a flood
/// must not keep the guard from its work.
const MESSAGES_AT_ONCE: usize = 4096;
/// Drivers besides VFIO's that leave DMA alone (`driver_managed_dma` in Linux).
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// Why groups can't be guarded.
#[derive(Debug, Error)]
pub enum GuardError {
    /// There is no hearing what the kernel has to say.
    #[error(
        "cannot hear of changes to the host's devices (netlink, uevents): allow AF_NETLINK in \
         whatever confines this process"
    )]
    Listen(#[source] io::Error),
    /// A device is in no group.
    #[error("{device} is in no IOMMU group, so that there is nothing to guard")]
    NoGroup {
        /// The device.
        device: DeviceName,
    },
    /// sysfs could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Minds the groups of devices that a guest has.
///
/// The kernel tells nobody when a device joins a group that is held, nor when
/// somebody wants one back; its uevents do. They only say when to look: what
/// happened is read from sysfs, so that forged, repeated and lost messages do no
/// harm.
///
/// Knows no event loop: when it is readable (poll(2)), call [`turn`] until that
/// answers nothing.
///
/// [`turn`]: Self::turn
#[derive(Debug)]
pub struct Guard {
    source: Box<dyn UeventSource>,
    /// No message will ever come again.
    deaf: bool,
    binder: Binder,
    groups: BTreeMap<GroupId, Watched>,
    /// The buses that members of the groups are on.
    buses: BTreeSet<String>,
    /// Something may have changed.
    look: bool,
    /// Members that joined, and were not attended to.
    joined: VecDeque<(GroupId, String)>,
    holds: Holds,
}

#[derive(Debug, Default)]
struct Watched {
    /// By their names in sysfs.
    members: BTreeMap<String, Member>,
    /// That the members can't be listed was told.
    unseen: bool,
}

#[derive(Debug)]
struct Member {
    device: DeviceName,
    /// The guest has it.
    held: bool,
    /// That it is leaving was told.
    leaving: bool,
    /// That it has left was told.
    absent: bool,
    /// It joined, and was not attended to.
    new: bool,
    /// The host driver that was told of.
    host_driver: Option<String>,
}

impl Guard {
    /// Guards the groups of `devices`, which the guest has: by the kernel's
    /// uevents, from now on. What joins a group is held through `binder`.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn new(binder: Binder, devices: &[DeviceName]) -> Result<Self, GuardError> {
        let socket = UeventSocket::open().map_err(GuardError::Listen)?;
        Self::with_source(Box::new(socket), binder, devices)
    }

    /// The same with uevents from `source`.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn with_source(
        source: Box<dyn UeventSource>,
        binder: Binder,
        devices: &[DeviceName],
    ) -> Result<Self, GuardError> {
        let mut guard = Self {
            source,
            deaf: false,
            binder,
            groups: BTreeMap::new(),
            buses: BTreeSet::from(["pci".to_owned()]),
            // Between the listing here and the first turn.
            look: true,
            joined: VecDeque::new(),
            holds: Holds::default(),
        };
        for device in devices {
            guard.watch(device)?;
        }
        Ok(guard)
    }

    fn watch(&mut self, device: &DeviceName) -> Result<(), GuardError> {
        let path = device.attribute("iommu_group");
        let link = self.sysfs().link(&path);
        let group = link.map_err(|source| GuardError::Read { path, source })?;
        let group = group.and_then(|name| name.parse().ok()).map(GroupId);
        let group = group.ok_or_else(|| GuardError::NoGroup {
            device: device.clone(),
        })?;
        if !self.groups.contains_key(&group) {
            let path = format!("{GROUPS}/{group}/devices");
            let names = self.sysfs().list(&path);
            let names = names.map_err(|source| GuardError::Read { path, source })?;
            let mut watched = Watched::default();
            for name in names.unwrap_or_default() {
                if let Some(device) = name_of(self.sysfs(), group, &name) {
                    watched.members.insert(name, Member::new(device));
                }
            }
            let buses = watched.members.values();
            self.buses
                .extend(buses.map(|member| member.device.bus().to_owned()));
            self.groups.insert(group, watched);
        }
        let watched = self.groups.entry(group).or_default();
        let member = watched
            .members
            .entry(device.name().to_owned())
            .or_insert_with(|| Member::new(device.clone()));
        member.held = true;
        Ok(())
    }

    fn sysfs(&self) -> &dyn Sysfs {
        self.binder.sysfs()
    }

    /// What is held for the guard. Keep it until the guest's devices are
    /// closed: what it gives back goes to a host driver only then.
    pub fn holds(&self) -> Holds {
        self.holds.clone()
    }

    /// Says what happened since the last turn, after doing what can be done
    /// about it. Call it again until it answers nothing. What can't wait comes
    /// first; holding a device that joined may wait for the kernel as long as
    /// the binder's limit allows.
    pub fn turn(&mut self) -> Vec<GuardEvent> {
        let mut events = Vec::new();
        if let Some(event) = self.listen() {
            events.push(event);
        }
        if std::mem::take(&mut self.look) {
            self.look(&mut events);
        }
        if events.is_empty() {
            events.extend(self.attend());
        }
        events
    }

    /// The host asked for a device by other means than uevents (VFIO's device
    /// request). Says so if that is news.
    pub fn host_wants(&mut self, device: &DeviceName) -> Option<GuardEvent> {
        for (group, watched) in &mut self.groups {
            if let Some(member) = watched.members.get_mut(device.name())
                && member.device == *device
            {
                return member.leave(*group);
            }
        }
        None
    }

    /// The devices of the guest that `event` costs it. None when the group
    /// stays viable.
    pub fn at_stake(&self, event: &GuardEvent) -> Vec<DeviceName> {
        let Some(group) = event.lost_group().and_then(|group| self.groups.get(&group)) else {
            return Vec::new();
        };
        let held = group.members.values().filter(|member| member.held);
        held.map(|member| &member.device)
            .filter(|held| match event {
                // The others of the group stay confined together.
                GuardEvent::Leaving { device, .. } => device == *held,
                _ => true,
            })
            .cloned()
            .collect()
    }

    /// The guest has lost `device`, and its files are closed. A group without
    /// any device of the guest is not minded any longer, and what joined it
    /// meanwhile goes back to the host.
    pub fn let_go(&mut self, device: &DeviceName) {
        let mut empty = None;
        for (group, watched) in &mut self.groups {
            if let Some(member) = watched.members.get_mut(device.name())
                && member.device == *device
            {
                member.held = false;
                if !watched.members.values().any(|member| member.held) {
                    empty = Some(*group);
                }
            }
        }
        if let Some(group) = empty {
            self.groups.remove(&group);
            self.joined.retain(|(of, _)| *of != group);
            self.holds.give_back(group);
        }
    }

    /// Whether there is nothing left to mind, or no hearing of it.
    pub fn is_done(&self) -> bool {
        self.deaf || self.groups.is_empty()
    }

    /// Takes what messages there are. They are about other devices mostly.
    fn listen(&mut self) -> Option<GuardEvent> {
        if self.deaf {
            return None;
        }
        for _ in 0..MESSAGES_AT_ONCE {
            match self.source.receive() {
                Ok(None) => break,
                Ok(Some(Received::Event(event))) => self.look |= self.concerns(&event),
                Ok(Some(Received::Foreign)) => {}
                Ok(Some(Received::Lost)) => {
                    log::warn!("uevents were lost: looking at all groups of the guest anew");
                    self.look = true;
                }
                Err(error) => {
                    self.deaf = true;
                    self.look = true;
                    let reason = error.to_string();
                    return Some(GuardEvent::Deaf { reason });
                }
            }
        }
        None
    }

    /// Whether a group may look otherwise after `event`.
    fn concerns(&self, event: &Uevent) -> bool {
        if event.action == UeventAction::Other {
            return false;
        }
        event.subsystem.as_ref().is_none_or(|subsystem| {
            // VFIO's own device goes first when a held one is unbound.
            subsystem == "vfio-dev" || self.buses.contains(subsystem)
        })
    }

    /// Compares each group with what it was.
    fn look(&mut self, events: &mut Vec<GuardEvent>) {
        let sysfs = self.binder.sysfs();
        for (&group, watched) in &mut self.groups {
            let names = match sysfs.list(&format!("{GROUPS}/{group}/devices")) {
                Ok(names) => names.unwrap_or_default(),
                Err(error) => {
                    if !std::mem::replace(&mut watched.unseen, true) {
                        let reason = error.to_string();
                        events.push(GuardEvent::Unseen { group, reason });
                    }
                    continue;
                }
            };
            watched.unseen = false;
            watched.note_absent(group, &names, events);
            for name in names {
                if let Some(member) = watched.members.get_mut(&name) {
                    member.look(sysfs, group, events);
                    continue;
                }
                // Gone again when its bus can't be read.
                let Some(device) = name_of(sysfs, group, &name) else {
                    continue;
                };
                self.buses.insert(device.bus().to_owned());
                let mut member = Member::new(device);
                member.new = true;
                watched.members.insert(name.clone(), member);
                self.joined.push_back((group, name));
            }
        }
    }

    /// Sees to the next device that joined.
    fn attend(&mut self) -> Option<GuardEvent> {
        loop {
            let (group, name) = self.joined.pop_front()?;
            let watched = self.groups.get_mut(&group);
            let Some(member) = watched.and_then(|watched| watched.members.get_mut(&name)) else {
                continue;
            };
            member.new = false;
            let fate = join(&self.binder, group, &member.device, &self.holds);
            if let Fate::Taken { driver } = &fate {
                member.host_driver = Some(driver.clone());
            }
            let device = member.device.clone();
            return Some(GuardEvent::Joined {
                group,
                device,
                fate,
            });
        }
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl Watched {
    /// Takes those out that are not among `names`.
    fn note_absent(&mut self, group: GroupId, names: &[String], events: &mut Vec<GuardEvent>) {
        self.members.retain(|name, member| {
            let stays = names.contains(name);
            if !stays && !std::mem::replace(&mut member.absent, true) {
                events.extend(member.leave(group));
                let device = member.device.clone();
                events.push(GuardEvent::Left { group, device });
            }
            // What the guest has stays known until it is let go.
            stays || member.held
        });
    }
}

impl Member {
    fn new(device: DeviceName) -> Self {
        Self {
            device,
            held: false,
            leaving: false,
            absent: false,
            new: false,
            host_driver: None,
        }
    }

    /// The host wants it. News the first time, when the guest has it.
    fn leave(&mut self, group: GroupId) -> Option<GuardEvent> {
        if !self.held || std::mem::replace(&mut self.leaving, true) {
            return None;
        }
        let device = self.device.clone();
        Some(GuardEvent::Leaving { group, device })
    }

    /// Compares it with what it was.
    fn look(&mut self, sysfs: &dyn Sysfs, group: GroupId, events: &mut Vec<GuardEvent>) {
        if self.new {
            return;
        }
        // What can't be read has not changed, as far as is known.
        let Ok(driver) = sysfs.link(&self.device.attribute("driver")) else {
            return;
        };
        // An unbind takes the link away before it waits for the guest.
        if driver.is_none() {
            events.extend(self.leave(group));
        }
        let host_driver = driver.filter(|driver| !is_harmless(sysfs, &self.device, driver));
        if let Some(driver) = &host_driver
            && self.host_driver != host_driver
        {
            events.push(GuardEvent::HostDriver {
                group,
                device: self.device.clone(),
                driver: driver.clone(),
            });
        }
        self.host_driver = host_driver;
    }
}

/// The device called `name` in `group`.
fn name_of(sysfs: &dyn Sysfs, group: GroupId, name: &str) -> Option<DeviceName> {
    let bus = sysfs.link(&format!("{GROUPS}/{group}/devices/{name}/subsystem"));
    DeviceName::new(&bus.ok().flatten()?, name).ok()
}

/// Whether a group with a device on `driver` stays viable.
fn is_harmless(sysfs: &dyn Sysfs, device: &DeviceName, driver: &str) -> bool {
    // Only VFIO's drivers have this folder, whatever they are called.
    let vfio = sysfs.list(&device.attribute("vfio-dev")).ok().flatten();
    let vfio = vfio.and_then(|names| names.into_iter().next());
    is_vfio_driver(driver, vfio.as_deref())
        || driver.starts_with("vfio-")
        || HARMLESS.contains(&driver)
}

/// Keeps host drivers from `device`, which joined `group`, as far as possible.
fn join(binder: &Binder, group: GroupId, device: &DeviceName, holds: &Holds) -> Fate {
    let sysfs = binder.sysfs();
    let driver = || sysfs.link(&device.attribute("driver")).ok().flatten();
    let class = sysfs.read(&device.attribute("class")).ok().flatten();
    let bridge = class.is_some_and(|class| class.starts_with("0x06"));
    let before = driver();
    let harmless = |driver: &String| is_harmless(sysfs, device, driver);
    if before.as_ref().is_some_and(harmless) || bridge && before.is_none() {
        // VFIO has no use for a bridge, and the kernel does.
        return Fate::Harmless { driver: before };
    }
    if let Some(driver) = before {
        return Fate::Taken { driver };
    }
    let wanted = format!("vfio-{}", device.bus());
    let held = binder.hold_hot_added(device, &wanted);
    let reason = match held {
        Ok(binding) => {
            holds.add(group, binding);
            None
        }
        Err(error) => Some(error.to_string()),
    };
    // A host driver that was faster is there by now.
    let driver = driver();
    match (driver, reason) {
        (Some(driver), _) if !harmless(&driver) => Fate::Taken { driver },
        (driver, None) => Fate::Held { driver, wanted },
        (_, Some(reason)) => Fate::NotHeld { reason },
    }
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod tests;
