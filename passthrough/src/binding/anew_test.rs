//! A device that came into a held group, given back: whatever goes wrong on the
//! way, its DMA works for the host in the end.

use super::fake::{FakeDevice, FakeDriver, Fault};
use super::scene::{NICS, Scene, name};
use super::*;

const NEW: &str = "0000:02:03.0";
const BUS: &str = "0000:02";
/// The guest's process.
const PID: u32 = 7;

/// A guest has the first NIC, and its group 2 with that.
fn held() -> Scene {
    let scene = Scene::new(&[]);
    let nic = FakeDevice {
        vfio_device: Some("vfio0".to_owned()),
        ..FakeDevice::new("8086:100e", 2, "vfio-pci")
    };
    scene.fake.add_device(NICS[0], nic);
    scene.fake.open(PID, "guest", "/dev/vfio/2");
    scene
}

/// Another comes into the group.
fn joined(new: FakeDevice) -> Scene {
    let scene = held();
    scene.fake.plug(NEW, new, &[]);
    let new = device(&scene);
    assert!(new.untranslated && new.driver.is_none(), "{new:?}");
    scene
}

fn nic() -> FakeDevice {
    FakeDevice::new("8086:100e", 2, "")
}

fn device(scene: &Scene) -> FakeDevice {
    scene.fake.device(NEW).unwrap()
}

fn hold(scene: &Scene) -> Binding {
    let held = scene.binder().hold_hot_added(&name(NEW), "vfio-pci");
    held.unwrap()
}

/// As every device of the host that was there from the start.
#[track_caller]
fn assert_the_hosts(scene: &Scene, what: &str) {
    let log = scene.fake.log();
    let expected = FakeDevice {
        driver: Some("e1000".to_owned()),
        ..nic()
    };
    assert_eq!(scene.fake.device(NEW), Some(expected), "{what}: {log:#?}");
    assert!(scene.journals().is_empty(), "{what}");
}

fn back_on(driver: &str) -> Outcome {
    let driver = Some(driver.to_owned());
    Outcome::Back { driver }
}

#[track_caller]
fn outcome(released: Vec<Released>) -> Outcome {
    let [released] = &released[..] else {
        panic!("{released:?}");
    };
    released.outcome.clone()
}

#[test]
fn it_is_removed_and_found_anew() {
    let scene = joined(nic());
    let hold = hold(&scene);
    scene.fake.close(PID);
    let steps = scene.fake.log().len();
    assert_eq!(outcome(hold.release().unwrap()), back_on("e1000"));
    let log = scene.fake.log().split_off(steps);
    let expected = [
        "echo 1 > /sys/bus/pci/devices/0000:02:03.0/remove",
        "echo 1 > /sys/class/pci_bus/0000:02/rescan",
    ];
    assert_eq!(log, expected);
    assert_the_hosts(&scene, "given back");
}

#[test]
fn one_that_no_driver_of_the_host_wants_is_found_anew_too() {
    let scene = joined(FakeDevice::new("unknown", 2, ""));
    let hold = hold(&scene);
    scene.fake.close(PID);
    let driver = None;
    assert_eq!(outcome(hold.release().unwrap()), Outcome::Back { driver });
    assert_eq!(device(&scene), FakeDevice::new("unknown", 2, ""));
}

#[test]
fn one_that_came_to_vfio_is_found_anew_too() {
    let scene = joined(nic());
    let hold = hold(&scene);
    let probe = Write::new("/sys/bus/pci/drivers_probe".to_owned(), NEW);
    let binder = scene.binder();
    binder.sysfs().write(&probe, &[], Binder::LIMIT).unwrap();
    assert_eq!(device(&scene).driver.as_deref(), Some("vfio-pci"));
    scene.fake.close(PID);
    assert_eq!(outcome(hold.release().unwrap()), back_on("e1000"));
    assert_the_hosts(&scene, "from vfio-pci");
}

#[test]
fn a_crash_while_it_is_reserved_is_mended() {
    for crash in [Fault::CrashBefore, Fault::CrashAfter] {
        let scene = joined(nic());
        scene.fake.fault(0, crash);
        assert!(Scene::program(|| hold(&scene)).is_none());
        scene.fake.close(PID);
        let released = scene.binder().release_stale().unwrap();
        assert_eq!(outcome(released), back_on("e1000"));
        assert_the_hosts(&scene, "a crash");
    }
}

#[test]
fn a_give_back_that_is_cut_short_anywhere_is_done_again() {
    let trial = joined(nic());
    let held = hold(&trial);
    trial.fake.close(PID);
    let steps = trial.steps(|| drop(held.release().unwrap()));
    assert_eq!(steps, 2);
    let errnos = [libc::EIO, libc::ENODEV, libc::ENOENT, libc::EINVAL];
    let faults = [Fault::CrashBefore, Fault::CrashAfter];
    let faults: Vec<_> = faults.into_iter().chain(errnos.map(Fault::Errno)).collect();
    // The next one may be cut short as well.
    for step in 0..steps {
        for first in &faults {
            for again in 0..=steps {
                for second in &faults {
                    let what = format!("{first:?} at {step}, {second:?} at {again}");
                    let scene = joined(nic());
                    let held = hold(&scene);
                    scene.fake.close(PID);
                    scene.fake.fault(step, first.clone());
                    if let Some(released) = Scene::program(|| held.release().unwrap()) {
                        assert!(!released[0].is_back(), "{what}: {released:?}");
                    }
                    scene.fake.fault(again, second.clone());
                    Scene::program(|| scene.binder().release_stale());
                    scene.fake.clear_faults();
                    scene.binder().release_stale().unwrap();
                    assert_the_hosts(&scene, &what);
                    assert!(scene.binder().release_stale().unwrap().is_empty());
                }
            }
        }
    }
}

#[test]
fn one_that_is_not_found_is_told_with_what_to_do() {
    let scene = joined(nic());
    let hold = hold(&scene);
    scene.fake.close(PID);
    // Its slot loses power between the two.
    scene.fake.fault(0, Fault::Lost(NEW.to_owned()));
    let released = hold.release().unwrap();
    assert!(!released[0].is_back(), "{released:?}");
    let text = released[0].to_string();
    for part in [
        NEW,
        "was removed",
        "/sys/class/pci_bus/0000:02/rescan",
        "echo 1 > /sys/bus/pci/rescan",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(scene.fake.device(NEW), None);
    assert_eq!(scene.journals().len(), 1, "another try is possible");
    let released = scene.binder().release_stale().unwrap();
    assert_eq!(outcome(released), Outcome::Gone);
    assert!(scene.journals().is_empty());
}

#[test]
fn one_that_has_left_the_host_is_gone() {
    let scene = joined(nic());
    let held = hold(&scene);
    scene.fake.close(PID);
    scene.fake.unplug(NEW);
    assert_eq!(outcome(held.release().unwrap()), Outcome::Gone);

    // With the bridge above it: there is no bus to scan.
    let scene = joined(nic());
    let held = hold(&scene);
    scene.fake.close(PID);
    scene.fake.unplug_bus(BUS);
    let steps = scene.fake.log().len();
    assert_eq!(outcome(held.release().unwrap()), Outcome::Gone);
    assert_eq!(scene.fake.log().len(), steps);
    assert!(scene.journals().is_empty());
}

#[test]
fn nothing_is_removed_while_the_group_is_held() {
    let scene = joined(nic());
    let steps = scene.fake.log().len();
    drop(hold(&scene));
    let text = scene.binder().release_stale().unwrap()[0].to_string();
    assert!(text.contains("guest (pid 7)"), "{text}");
    // Nor where it could not be reserved: the guest has the group.
    let other = joined(nic());
    other.fake.fault(0, Fault::Errno(libc::EACCES));
    let refused = other.binder().hold_hot_added(&name(NEW), "vfio-pci");
    assert!(matches!(refused, Err(BindError::Undone { .. })));
    for scene in [&scene, &other] {
        let log = scene.fake.log().split_off(steps);
        assert!(!log.iter().any(|step| step.contains("remove")), "{log:?}");
        assert!(device(scene).untranslated);
        scene.fake.close(PID);
        let released = scene.binder().release_stale().unwrap();
        assert_eq!(outcome(released), back_on("e1000"));
        assert_the_hosts(scene, "free at last");
    }
}

#[test]
fn one_that_somebody_gave_to_the_host_is_left_there() {
    let scene = joined(nic());
    let held = hold(&scene);
    scene.fake.close(PID);
    scene.fake.change(NEW, |device| {
        device.driver = Some("e1000".to_owned());
    });
    assert_eq!(outcome(held.release().unwrap()), back_on("e1000"));
    let device = device(&scene);
    assert!(device.untranslated, "it is at work: not removed");
    assert_eq!(device.driver_override, None);
}

#[test]
fn what_a_scan_would_not_bring_back_as_it_was_is_not_removed() {
    let virtual_function = FakeDevice {
        physical: Some(name(NICS[0])),
        ..nic()
    };
    let overridden = FakeDevice {
        driver_override: Some("vfio-pci".to_owned()),
        ..FakeDevice::new("8086:100e", 2, "")
    };
    for (new, driver) in [(virtual_function, "e1000"), (overridden, "vfio-pci")] {
        let scene = held();
        scene.fake.add_device(NEW, new.clone());
        let held = hold(&scene);
        scene.fake.close(PID);
        assert_eq!(outcome(held.release().unwrap()), back_on(driver));
        let log = scene.fake.log();
        assert!(!log.iter().any(|step| step.contains("remove")), "{log:?}");
        assert_eq!(device(&scene).driver_override, new.driver_override);
    }
}

#[test]
fn on_other_buses_a_driver_is_looked_for() {
    const NEW: &str = "fsl-mc/dpni.1";
    let scene = Scene::new(&[]);
    let driver = |name| FakeDriver::host(name, &["dpni"]);
    scene
        .fake
        .add_driver("fsl-mc", FakeDriver::vfio("vfio-fsl-mc"));
    scene.fake.add_driver("fsl-mc", driver("dpaa2_eth"));
    scene.fake.add_device(NEW, FakeDevice::new("dpni", 2, ""));
    let binder = scene.binder();
    let held = binder.hold_hot_added(&name(NEW), "vfio-fsl-mc").unwrap();
    assert_eq!(outcome(held.release().unwrap()), back_on("dpaa2_eth"));
    let log = scene.fake.log();
    let probe = "echo dpni.1 > /sys/bus/fsl-mc/drivers_probe";
    assert_eq!(log.last().map(String::as_str), Some(probe));
}

#[test]
fn an_unbind_that_waits_is_followed_by_the_rest() {
    let scene = joined(nic());
    let held = hold(&scene);
    let probe = Write::new("/sys/bus/pci/drivers_probe".to_owned(), NEW);
    let binder = scene.binder();
    binder.sysfs().write(&probe, &[], Binder::LIMIT).unwrap();
    scene.fake.close(PID);
    // Opened by somebody who was not there at the look: the unbind waits.
    let file = format!("/dev/vfio/devices/{}", device(&scene).vfio_device.unwrap());
    scene.fake.fault(0, Fault::Errno(libc::EIO));
    assert!(!held.release().unwrap()[0].is_back());
    let opened = crate::host::Holder {
        pid: 8,
        name: "late".to_owned(),
        file,
    };
    scene.fake.hide_holders();
    scene.fake.open(opened.pid, &opened.name, &opened.file);
    let text = binder.release_stale().unwrap()[0].to_string();
    assert!(text.contains("did not finish"), "{text}");
    scene.fake.close(8);
    let device = device(&scene);
    assert!(!device.untranslated && device.driver.as_deref() == Some("e1000"));
    assert_eq!(outcome(binder.release_stale().unwrap()), back_on("e1000"));
    assert_the_hosts(&scene, "late");
}
