//! Hot resets, and sleep below D3hot.

use super::*;
use crate::vfio::{Affected, Holder};

pub(super) const HOST: &str = "0000:01:00.0";
const NEIGHBOUR: &str = "0000:01:00.1";

pub(super) fn hit(device: &str, holder: Holder) -> Affected {
    let device = device.parse().unwrap();
    Affected { device, holder }
}

/// A device that can only be reset along with a neighbour whom somebody has.
fn shared(holder: Holder) -> Setup {
    let affected = [hit(HOST, Holder::This), hit(NEIGHBOUR, holder)];
    everything_as(0, |host| host.without_reset().with_hot_reset(&affected))
}

fn of(calls: Vec<String>, heads: &[&str]) -> Vec<String> {
    let wanted = |call: &String| heads.iter().any(|head| call.starts_with(head));
    calls.into_iter().filter(wanted).collect()
}

#[test]
fn a_device_without_a_reset_takes_its_buss() {
    let mut setup = shared(Holder::Nobody);
    setup.start();
    setup.device.bar_write(setup.bar(), 0x10, &[0xaa]);
    for asleep in [false, true] {
        if asleep {
            let _ = setup.put(POWER, 3);
            setup.settle();
        }
        setup.reset_by(Way::Bus);
        let calls = of(setup.settle(), &["reset", "hot_reset"]);
        assert_eq!(calls, ["hot_reset_info", "hot_reset"]);
        setup.is_fresh(Way::Bus);
        assert_eq!(setup.host.memory(setup.bar(), 0x10), 0);
        assert_eq!(setup.host.config(4) & 7, 0, "silent");
        setup.start();
        setup.works();
    }
}

#[test]
fn nobody_is_reset_along_who_is_in_use() {
    for holder in [Holder::This, Holder::Other] {
        let mut setup = shared(holder);
        setup.start();
        setup.reset_by(Way::Bus);
        let calls = of(setup.settle(), &["reset", "hot_reset"]);
        assert_eq!(calls, ["hot_reset_info"], "{holder:?}");
        setup.is_fresh(Way::Bus);
        setup.start();
        setup.works();
    }
    let error = DeviceError::SharedReset {
        others: vec![NEIGHBOUR.parse().unwrap()],
    };
    assert!(error.to_string().ends_with("would disturb 0000:01:00.1"));
}

#[test]
fn a_hot_reset_that_fails_is_told_and_the_device_stays() {
    let mut setup = shared(Holder::Nobody);
    setup.start();
    setup.host.refuse(Operation::HotReset, libc::EBUSY);
    setup.reset_by(Way::Bus);
    setup.settle();
    setup.is_fresh(Way::Bus);
    setup.start();
    setup.works();
}

#[test]
fn a_device_with_a_reset_keeps_to_it() {
    let affected = [hit(HOST, Holder::This)];
    let mut setup = everything_as(0, |host| host.with_hot_reset(&affected));
    setup.start();
    setup.reset_by(Way::Bus);
    assert_eq!(of(setup.settle(), &["reset", "hot_reset"]), ["reset"]);
}

#[test]
fn the_host_may_suspend_what_the_guest_has_put_to_sleep() {
    let mut setup = everything(0);
    setup.start();
    let _ = setup.put(POWER, 3);
    let calls = setup.settle();
    assert_eq!(calls.last().unwrap(), "low_power enter", "after all else");
    assert!(setup.host.is_in_low_power());
    // Once.
    let _ = setup.put(4, 0x406);
    assert_eq!(of(setup.settle(), &["low_power"]), [""; 0]);
    let mut id = [0; 4];
    setup.device.config_read(0, &mut id);
    assert_eq!(id, 0x10d3_8086_u32.to_le_bytes(), "config space answers");

    let _ = setup.put(POWER, 0);
    let heads = ["low_power", "write 7 0x44", "guest map"];
    let calls = of(setup.settle(), &heads);
    assert_eq!(calls, ["low_power leave", "write 7 0x44 [0, 0]"]);
    setup.is_fresh(Way::Power);
    setup.start();
    setup.works();
}

#[test]
fn every_reset_wakes_it_first() {
    for way in [Way::Function, Way::Advanced, Way::Bus] {
        let mut setup = everything(0);
        setup.start();
        let _ = setup.put(POWER, 3);
        setup.settle();
        setup.reset_by(way);
        let calls = of(setup.settle(), &["low_power", "reset"]);
        assert_eq!(calls, ["low_power leave", "reset"], "{way:?}");
        assert!(!setup.host.is_in_low_power());
        setup.start();
        setup.works();
    }
}

#[test]
fn a_device_that_keeps_its_settings_keeps_them() {
    let mut setup = everything(NO_SOFT_RESET);
    setup.start();
    setup.device.bar_write(setup.bar(), 0x10, &[0xaa]);
    let _ = setup.put(POWER, 3);
    assert_eq!(of(setup.settle(), &["low_power"]), [""; 0]);
    let _ = setup.put(POWER, 0);
    setup.settle();
    assert_eq!(setup.read(0x10, 1), [0xaa]);
}

#[test]
fn lighter_sleep_is_the_devices_own_affair() {
    for state in [1, 2] {
        let mut setup = everything(0);
        setup.start();
        let _ = setup.put(POWER, state);
        assert_eq!(of(setup.settle(), &["low_power"]), [""; 0], "D{state}");
    }
}

#[test]
fn old_kernels_change_nothing() {
    let mut setup = everything_as(0, FakeDevice::without_low_power);
    setup.start();
    let _ = setup.put(POWER, 3);
    assert_eq!(of(setup.settle(), &["low_power"]), [""; 0]);
    let _ = setup.put(POWER, 0);
    assert_eq!(of(setup.settle(), &["low_power"]), [""; 0]);
    setup.start();
    setup.works();
}

#[test]
fn a_host_that_does_not_want_to_costs_nothing() {
    let mut setup = everything(0);
    setup.start();
    setup.host.refuse(Operation::LowPower, libc::EINVAL);
    let _ = setup.put(POWER, 3);
    setup.settle();
    assert!(!setup.host.is_in_low_power());
    let _ = setup.put(POWER, 0);
    assert_eq!(of(setup.settle(), &["low_power"]), [""; 0]);
    setup.start();
    setup.works();
}

#[test]
fn nothing_is_mapped_while_the_host_may_suspend_it() {
    let mut setup = everything(0);
    setup.start();
    let _ = setup.put(POWER, 3);
    setup.settle();
    let _ = setup.put(POWER, 0);
    let _ = setup.write(0x10, &0x4_0000_0000_u64.to_le_bytes());
    let _ = setup.put(4, 7);
    setup.host.refuse(Operation::LowPower, libc::EIO);
    let calls = of(setup.settle(), &["low_power", "guest map"]);
    assert_eq!(calls, ["low_power leave"], "its pages would fault");
    let calls = of(setup.settle(), &["low_power", "guest map"]);
    assert_eq!(calls[0], "low_power leave");
    assert!(calls[1].starts_with("guest map 0x400000000"), "{calls:?}");
}

#[test]
fn it_is_awake_when_the_guest_loses_it() {
    for surrender in [true, false] {
        let mut setup = everything(0);
        setup.start();
        let _ = setup.put(POWER, 3);
        setup.settle();
        if surrender {
            // The test itself has the device still.
            setup.device.surrender().unwrap_err();
        } else {
            drop(setup.device);
        }
        let calls = setup.journal.take();
        assert_eq!(calls[0], "low_power leave", "before all else");
        assert!(!setup.host.is_in_low_power());
        assert_eq!(setup.host.config(4) & 4, 0, "no bus master");
    }
}

#[test]
fn the_fake_refuses_as_the_kernel_does() {
    let setup = everything(0);
    let host: &dyn DeviceBackend = &*setup.host;
    host.leave_low_power().unwrap();
    host.enter_low_power().unwrap();
    let errno = |error: DeviceError| match error {
        DeviceError::LowPower { source, .. } | DeviceError::HotReset(source) => {
            source.raw_os_error()
        }
        _ => None,
    };
    let twice = host.enter_low_power().unwrap_err();
    assert_eq!(twice.to_string(), "cannot have the device enter low power");
    assert_eq!(errno(twice), Some(libc::EINVAL));
    host.leave_low_power().unwrap();
    host.leave_low_power().unwrap();
    assert_eq!(host.hot_reset_info().unwrap(), None);
    assert_eq!(errno(host.hot_reset().unwrap_err()), Some(libc::ENODEV));
    let foreign = shared(Holder::Other);
    assert_eq!(
        errno(foreign.host.hot_reset().unwrap_err()),
        Some(libc::EINVAL)
    );
    let old = everything_as(0, FakeDevice::without_low_power);
    let error = old.host.enter_low_power().unwrap_err();
    assert_eq!(errno(error), Some(libc::ENOTTY));
}
