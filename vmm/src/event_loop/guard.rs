use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::pci::{PciAddress, RootComplex};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use passthrough::binding::{DeviceName, Guard, GuardEvent};
use passthrough::{AssignedDevice, SurrenderError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::watch;
use crate::config::OnViabilityLoss;
use crate::outcome::{Chain, EndReport, Outcome};
use crate::sys;

/// A device of the guest that can be taken away from it.
#[derive(Clone, Debug)]
pub struct Removable {
    /// Its address on the host.
    pub host: PciAddress,
    /// Its address in the guest.
    pub guest: PciAddress,
    /// The function that the guest sees.
    pub function: Arc<Mutex<AssignedDevice>>,
}

/// Minds the groups of the guest's devices, and does what the user chose when
/// one can't stay. Everything that happens is in the log, as a warning.
pub struct GuardWatch {
    guard: Guard,
    policy: OnViabilityLoss,
    devices: Vec<Removable>,
    /// Signalled when the host asks VFIO for a device.
    requests: Vec<(EventFd, DeviceName)>,
    root: Arc<RootComplex>,
    report: Arc<EndReport>,
}

impl fmt::Debug for GuardWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardWatch")
            .field("policy", &self.policy)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl GuardWatch {
    /// Follows `policy` about `devices`, which stand in `root`, and whose
    /// groups `guard` minds.
    pub fn new(
        guard: Guard,
        policy: OnViabilityLoss,
        devices: Vec<Removable>,
        root: Arc<RootComplex>,
        report: Arc<EndReport>,
    ) -> Self {
        let requests = devices.iter().filter_map(listen).collect();
        Self {
            guard,
            policy,
            devices,
            requests,
            root,
            report,
        }
    }

    /// Sees to everything that has happened.
    fn turn(&mut self) {
        loop {
            let events = self.guard.turn();
            if events.is_empty() {
                return;
            }
            for event in events {
                self.see_to(&event);
            }
        }
    }

    fn see_to(&mut self, event: &GuardEvent) {
        log::warn!("{event}");
        let lost = self.guard.at_stake(event);
        if lost.is_empty() {
            return;
        }
        let names: Vec<_> = lost.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        match self.policy {
            OnViabilityLoss::Warn => log::warn!(
                "the guest keeps {names} (--on-viability-loss warn): the host has to wait until \
                 the VM ends"
            ),
            OnViabilityLoss::Stop => {
                log::warn!("ending the VM, so that the host can have {names}");
                let next = match event {
                    GuardEvent::Leaving { .. } => {
                        "Start the VM again without it; with --on-viability-loss release a guest \
                         goes on without it"
                    }
                    _ => "Then start the VM again",
                };
                self.report
                    .end(Outcome::DeviceLost(format!("{event}. {next}")));
            }
            OnViabilityLoss::Release => {
                for device in &lost {
                    self.release(event, device);
                }
            }
        }
    }

    /// Takes `device` away from the guest; when that fails, ends the VM.
    fn release(&mut self, event: &GuardEvent, device: &DeviceName) {
        let is_it = |removable: &&Removable| Some(removable.host) == device.address();
        let Some(removable) = self.devices.iter().find(is_it) else {
            return;
        };
        match take_away(removable, &self.root) {
            Ok(()) => {
                log::warn!(
                    "device {device} was taken away from the guest, where it was {}: the host \
                     can have it, and the guest goes on without it",
                    removable.guest
                );
                self.guard.let_go(device);
            }
            Err(error) => {
                log::error!("{error}");
                self.report.end(Outcome::DeviceLost(format!(
                    "{event}. It could not be taken away from the running guest: {error}"
                )));
            }
        }
    }

    fn unwatch_when_done(&self, ops: &mut EventOps) {
        if !self.guard.is_done() {
            return;
        }
        let events = Events::new_raw(self.guard.as_fd().as_raw_fd(), EventSet::IN);
        if let Err(error) = ops.remove(events) {
            log::debug!("the guard was not watched: {error}");
        }
    }
}

/// Has the kernel signal when the host wants the device back. It is not the
/// only way to hear of that, so that failing is worth a line and no more.
fn listen(removable: &Removable) -> Option<(EventFd, DeviceName)> {
    let host = removable.host;
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let event = event
        .inspect_err(|error| log::warn!("the host can't ask for {host} by an event: {error}"))
        .ok()?;
    let function = &removable.function;
    let function = function.lock().unwrap_or_else(PoisonError::into_inner);
    match function.signal_request(sys::borrow(&event)) {
        Ok(true) => Some((event, host.into())),
        Ok(false) => None,
        Err(error) => {
            let error = Chain(&error);
            log::warn!("the host can't ask for {host} by an event: {error}");
            None
        }
    }
}

/// As if it had been pulled out.
fn take_away(removable: &Removable, root: &RootComplex) -> Result<(), SurrenderError> {
    let Removable {
        guest, function, ..
    } = removable;
    let mut locked = function.lock().unwrap_or_else(PoisonError::into_inner);
    let result = locked.surrender();
    drop(locked);
    // Its BARs answer no longer; another's may have been waiting below them.
    root.refresh(*guest);
    result
}

impl MutEventSubscriber for GuardWatch {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let request = |(event, _): &&(EventFd, DeviceName)| event.as_raw_fd() == events.fd();
        if let Some((event, device)) = self.requests.iter().find(request) {
            let _ = event.read();
            if let Some(event) = self.guard.host_wants(device) {
                self.see_to(&event);
            }
        } else {
            self.turn();
        }
        self.unwatch_when_done(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let fd = self.guard.as_fd().as_raw_fd();
        watch(
            ops,
            Events::new_raw(fd, EventSet::IN),
            "the groups of the guest's devices",
        );
        for (event, device) in &self.requests {
            let what = format!("what the host wants with {device}");
            watch(ops, Events::new(event, EventSet::IN), &what);
        }
        // What happened while the VM was being built.
        self.turn();
        self.unwatch_when_done(ops);
    }
}

#[cfg(test)]
#[path = "guard_test.rs"]
mod tests;
