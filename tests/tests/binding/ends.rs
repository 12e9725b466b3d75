use lab::airlock::{Run, installed};
use lab::host::{Exit, Host, HostError};
use lab::machine::{Device, Machine};
use lab::{Backend, on_both_backends, scenario};

use super::{BOOT, assert_as_before, assert_disk_works, bindings, disk, state, succeeds};

const ALL: [&str; 1] = ["disk"];

on_both_backends!(whatever_the_end_of_a_guest_the_device_goes_back);

fn whatever_the_end_of_a_guest_the_device_goes_back(backend: Backend) {
    let machine =
        Machine::new(format!("guest-ends-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        let before = state(host, &ALL)?;
        for part in [killed_while_running, ended_in_order] {
            part(host, backend, &before)?;
            assert_disk_works(host)?;
        }
        Ok(())
    });
}

#[test]
fn whatever_the_end_of_a_binding_the_device_goes_back() {
    let machine = Machine::new("binding-ends").device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        let before = state(host, &ALL)?;
        for part in [killed_while_binding, killed_while_releasing] {
            part(host, &before)?;
            assert_disk_works(host)?;
        }
        Ok(())
    });
}

const NO_DRIVER: &str = "[ ! -e \"$1/driver\" ]";
const ON_VFIO: &str = "[ \"$1/driver\" -ef /sys/bus/pci/drivers/vfio-pci ]";
const ON_NVME: &str = "[ \"$1/driver\" -ef /sys/bus/pci/drivers/nvme ]";

/// The moments of a binding, by what a shell can see of the device without
/// starting a program: `$1` is its directory.
const BINDING: [(&str, &str); 4] = [
    (
        "the journal is there",
        "set -- \"$1\" /run/airlock/bindings/*; [ -e \"$2\" ]",
    ),
    (
        "the override is set",
        "read -r only <\"$1/driver_override\"; [ \"$only\" = vfio-pci ]",
    ),
    ("it has no driver", NO_DRIVER),
    ("it is on vfio-pci", ON_VFIO),
];

const RELEASING: [(&str, &str); 3] = [
    (
        "the override is gone",
        "read -r only <\"$1/driver_override\"; [ \"$only\" = '(null)' ]",
    ),
    ("it has no driver", NO_DRIVER),
    ("it is on nvme", ON_NVME),
];

/// Starts `airlock COMMAND` for the disk and kills it as soon as `moment`
/// holds, if it's still there then.
fn kill_at(host: &Host, command: &str, moment: &str) -> Result<(), HostError> {
    let address = host.address("disk")?;
    let airlock = installed("airlock");
    host.shell(&format!(
        "set -- /sys/bus/pci/devices/{address}
         {airlock} {command} {address} >/dev/null 2>&1 &
         pid=$!
         until {{ {moment}; }} || ! kill -0 $pid 2>/dev/null; do :; done
         kill -9 $pid 2>/dev/null || true
         wait $pid || true"
    ))?;
    Ok(())
}

/// After a sudden end: what nobody minds goes back; what was finished before
/// the end came is held, as it should be, and is released.
fn tidy_up(host: &Host, before: &str, when: &str) -> Result<(), HostError> {
    succeeds(host, &["release", "--stale"])?;
    for held in bindings(host)? {
        assert_eq!(held["state"], "kept", "{when}: {held}");
        succeeds(host, &["release", "disk"])?;
    }
    assert_as_before(host, &ALL, before)
}

fn killed_while_binding(host: &Host, before: &str) -> Result<(), HostError> {
    for (when, moment) in BINDING {
        kill_at(host, "bind", moment)?;
        tidy_up(host, before, when)?;
    }
    for delay in ["0.02", "0.06", "0.15"] {
        kill_at(host, "bind", &format!("sleep {delay}"))?;
        tidy_up(host, before, delay)?;
    }
    Ok(())
}

fn killed_while_releasing(host: &Host, before: &str) -> Result<(), HostError> {
    for (when, moment) in RELEASING {
        succeeds(host, &["bind", "disk"])?;
        kill_at(host, "release", moment)?;
        // It may have been too early: then the device is held as before.
        tidy_up(host, before, when)?;
    }
    Ok(())
}

fn guest(host: &Host, backend: Backend, tasks: &str) -> Result<Run, HostError> {
    let run = Run::tasks(tasks).iommu(backend);
    Ok(run.device(host.address("disk")?).bind())
}

fn killed_while_running(host: &Host, backend: Backend, before: &str) -> Result<(), HostError> {
    let mut running = host.start(&guest(host, backend, "nvme,sleep")?.step())?;
    running.wait_line("lab: sleep", BOOT)?;
    running.signal(9)?;
    assert_eq!(running.wait()?.exit, Exit::Signal(9));
    assert_left_behind(host)?;
    succeeds(host, &["release", "--stale"])?;
    assert_as_before(host, &ALL, before)?;
    assert_disk_works(host)?;

    // Before the guest begins; the next airlock gives the device back, and has
    // it then.
    let running = host.start(&guest(host, backend, "nvme,sleep")?.step())?;
    let address = host.address("disk")?;
    host.shell(&format!(
        "set -- /sys/bus/pci/devices/{address}
         until {ON_VFIO}; do :; done"
    ))?;
    running.signal(9)?;
    assert_eq!(running.wait()?.exit, Exit::Signal(9));
    assert_left_behind(host)?;
    let outcome = host.run(&guest(host, backend, "nvme,panic")?.step())?;
    assert_eq!(outcome.exit, Exit::Status(4), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("sudden end"), "{}", outcome.stderr);
    assert_as_before(host, &ALL, before)
}

#[track_caller]
fn assert_left_behind(host: &Host) -> Result<(), HostError> {
    let held = bindings(host)?;
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!(held[0]["state"], "stale");
    Ok(())
}

fn ended_in_order(host: &Host, backend: Backend, before: &str) -> Result<(), HostError> {
    let mut running = host.start(&guest(host, backend, "nvme,sleep")?.step())?;
    running.wait_line("lab: sleep", BOOT)?;
    running.signal(15)?;
    assert_eq!(running.wait()?.exit, Exit::Status(143));
    assert_as_before(host, &ALL, before)?;

    // A guest that never was: the device goes back all the same.
    let outcome = host.run(
        &guest(host, backend, "nvme")?
            .kernel("/no/such/kernel")
            .step(),
    )?;
    assert_eq!(outcome.exit, Exit::Status(1), "{}", outcome.stderr);
    assert_as_before(host, &ALL, before)
}
