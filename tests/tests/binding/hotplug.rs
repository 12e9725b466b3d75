use std::time::Duration;

use lab::airlock::Run;
use lab::host::{Exit, Host, HostError, Process};
use lab::machine::{Device, Machine, Slot};
use lab::{Backend, on_both_backends, scenario};

use super::{BOOT, SOON, assert_as_before, assert_nic_works, bindings, state};

on_both_backends!(groups_that_change_while_a_guest_runs);

fn groups_that_change_while_a_guest_runs(backend: Backend) {
    let machine = Machine::new(format!("group-changes-{backend}"))
        .device(Device::e1000e("alone").absent())
        .slot(Slot::Ports {
            acs: false,
            devices: vec![
                Device::e1000e("below-a"),
                Device::e1000e("below-b").absent(),
            ],
        })
        .slot(Slot::ConventionalBridge(vec![
            Device::e1000("old-a"),
            Device::e1000("old-b").absent(),
        ]));
    scenario(&machine, |host| {
        comes_into_a_held_group(host, backend, "below-a", "below-b", "e1000e")?;
        comes_into_a_held_group(host, backend, "old-a", "old-b", "e1000")?;
        host.plug("alone")?;
        for policy in ["release", "stop", "warn"] {
            leaves_a_guest(host, backend, policy)?;
        }
        Ok(())
    });
}

fn start(host: &Host, backend: Backend, device: &str, policy: &str) -> Result<Process, HostError> {
    let run = Run::tasks("beat")
        .iommu(backend)
        .device(host.address(device)?)
        .bind()
        .arg("--on-viability-loss")
        .arg(policy);
    let mut process = host.start(&run.step())?;
    process.wait_line("lab: beat", BOOT)?;
    Ok(process)
}

/// No host driver has the new device while the guest has the group; when the
/// guest is gone, the device gets the driver that it would have had.
fn comes_into_a_held_group(
    host: &Host,
    backend: Backend,
    held: &str,
    new: &str,
    driver: &str,
) -> Result<(), HostError> {
    let before = state(host, &[held])?;
    let mut running = start(host, backend, held, "stop")?;
    let address = host.plug(new)?;
    running.wait_line(&address.to_string(), SOON)?;
    assert_eq!(host.group(new)?, host.group(held)?);
    assert_ne!(host.driver(new)?.as_deref(), Some(driver));
    let only = host.shell(&format!(
        "cat /sys/bus/pci/devices/{address}/driver_override"
    ))?;
    assert_eq!(only, "vfio-pci\n");
    let noted = bindings(host)?;
    assert!(
        noted.iter().any(|held| held["hot_added"] == true),
        "{noted:?}"
    );
    // The guest is none the worse for it.
    running.wait_line("lab: beat", SOON)?;
    running.signal(15)?;
    assert_eq!(running.wait()?.exit, Exit::Status(143));
    assert_as_before(host, &[held], &before)?;
    assert_eq!(host.driver(new)?.as_deref(), Some(driver));
    assert_nic_works(host, held)?;
    // Its DMA was set up when the group was the guest's, and is the host's now.
    assert_nic_works(host, new)
}

/// A guest's device is unplugged.
fn leaves_a_guest(host: &Host, backend: Backend, policy: &str) -> Result<(), HostError> {
    let mut running = start(host, backend, "alone", policy)?;
    let address = host.address("alone")?.to_string();
    host.unplug("alone")?;
    running.wait_line(&address, SOON)?;
    let exit = match policy {
        "release" => {
            host.wait_unplugged("alone", SOON)?;
            running.wait_line("lab: beat", SOON)?;
            running.signal(15)?;
            running.wait()?.exit
        }
        "warn" => {
            // The guest keeps it as long as it wants.
            std::thread::sleep(Duration::from_secs(2));
            host.shell(&format!("test -e /sys/bus/pci/devices/{address}"))?;
            running.wait_line("lab: beat", SOON)?;
            running.signal(15)?;
            running.wait()?.exit
        }
        _ => running.wait()?.exit,
    };
    if policy != "release" {
        host.wait_unplugged("alone", SOON)?;
    }
    let stopped = matches!(exit, Exit::Status(status) if status != 0 && status != 143);
    assert_eq!(stopped, policy == "stop", "{policy}: {exit:?}");
    assert_as_before(host, &[], "")?;
    host.plug("alone")?;
    assert_nic_works(host, "alone")
}
