//! What becomes of devices that join a held group, on the kernel in memory.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Guard, GuardEvent};
use super::setup::{Messages, name};
use crate::binding::fake::{FakeDevice, FakeDriver, FakeSysfs, Fault};
use crate::binding::{Binder, Fate, Write};

const A: &str = "0000:02:01.0";
const NEW: &str = "0000:02:03.0";
const OVERRIDE: &str = "/sys/bus/pci/devices/0000:02:03.0/driver_override";
/// The guest's process.
const PID: u32 = 100;

struct Rig {
    kernel: FakeSysfs,
    messages: Messages,
    guard: Guard,
    binder: Binder,
    journals: tempfile::TempDir,
}

/// A guest with A, whose group 5 it holds. The host has a driver for what joins.
fn rig() -> Rig {
    let kernel = FakeSysfs::new();
    kernel.add_driver("pci", FakeDriver::host("e1000", &["nic"]));
    let held = FakeDevice {
        vfio_device: Some("vfio0".to_owned()),
        ..FakeDevice::new("nic", 5, "vfio-pci")
    };
    kernel.add_device(A, held);
    kernel.open(PID, "airlock", "/dev/vfio/5");
    let journals = tempfile::tempdir().unwrap();
    let limit = Duration::from_millis(100);
    let binder = Binder::new(Box::new(kernel.clone()), journals.path(), limit);
    let messages = Messages(Arc::default(), Arc::new(File::open("/dev/null").unwrap()));
    let source = Box::new(messages.clone());
    let guard = Guard::with_source(source, binder.clone(), &[name(A)]).unwrap();
    Rig {
        kernel,
        messages,
        guard,
        binder,
        journals,
    }
}

impl Rig {
    fn plug(&mut self) -> Fate {
        let device = FakeDevice::new("nic", 5, "");
        self.kernel.plug(NEW, device, &[]);
        self.fate()
    }

    fn fate(&mut self) -> Fate {
        self.messages.send("add@/devices/x", "pci");
        let mut events = Vec::new();
        for _ in 0..3 {
            events.extend(self.guard.turn());
        }
        let [GuardEvent::Joined { device, fate, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(device.name(), NEW);
        fate.clone()
    }

    fn new_device(&self) -> FakeDevice {
        self.kernel.device(NEW).unwrap()
    }
}

#[test]
fn what_joins_is_held_until_the_group_is_free() {
    let mut rig = rig();
    let (driver, wanted) = (None, "vfio-pci".to_owned());
    assert_eq!(rig.plug(), Fate::Held { driver, wanted });
    assert_eq!(
        rig.new_device().driver_override.as_deref(),
        Some("vfio-pci")
    );
    let held = rig.binder.bindings().unwrap();
    assert!(held.len() == 1 && held[0].hot_added, "{held:?}");

    let holds = rig.guard.holds();
    assert_eq!(holds.len(), 1);
    let (kernel, binder) = (rig.kernel.clone(), rig.binder.clone());
    let _journals = rig.journals;
    drop(rig.guard);
    let new = || kernel.device(NEW).unwrap();
    assert!(new().driver_override.is_some(), "held still");
    // As at the end of the VM: files first, then what was held.
    kernel.close(PID);
    drop(holds);
    assert_eq!(new().driver.as_deref(), Some("e1000"));
    assert_eq!(new().driver_override, None);
    assert!(binder.bindings().unwrap().is_empty());
}

#[test]
fn what_joined_goes_back_when_the_guest_loses_the_group() {
    let mut rig = rig();
    assert!(matches!(rig.plug(), Fate::Held { .. }));
    rig.kernel.close(PID);
    rig.guard.let_go(&name(A));
    assert!(rig.guard.is_done() && rig.guard.holds().is_empty());
    assert_eq!(rig.new_device().driver.as_deref(), Some("e1000"));
    assert_eq!(rig.new_device().driver_override, None);
}

#[test]
fn an_override_in_time_brings_it_to_vfio() {
    let mut rig = rig();
    let device = FakeDevice::new("nic", 5, "");
    rig.kernel.add_device(NEW, device);
    // The kernel looks for a driver while the override is written.
    let probe = Write {
        path: "/sys/bus/pci/drivers_probe".to_owned(),
        value: NEW.to_owned(),
    };
    rig.kernel.fault(0, Fault::Others(vec![probe]));
    let driver = Some("vfio-pci".to_owned());
    let wanted = "vfio-pci".to_owned();
    assert_eq!(rig.fate(), Fate::Held { driver, wanted });
}

#[test]
fn a_host_driver_that_is_faster_is_told() {
    let mut rig = rig();
    // As before Linux 5.19: nothing keeps it from the group.
    rig.kernel.close(PID);
    let driver = "e1000".to_owned();
    assert_eq!(rig.plug(), Fate::Taken { driver });
    assert!(rig.guard.holds().is_empty());
    assert!(rig.binder.bindings().unwrap().is_empty());
}

#[test]
fn an_override_that_is_refused_is_told() {
    let mut rig = rig();
    rig.kernel.fault(0, Fault::Errno(libc::EACCES));
    let fate = rig.plug();
    let Fate::NotHeld { reason } = &fate else {
        panic!("{fate:?}");
    };
    assert!(reason.contains(OVERRIDE), "{reason}");
    assert_eq!(rig.new_device().driver_override, None);
    assert!(rig.guard.holds().is_empty());
}
