use lab::airlock::Run;
use lab::host::{Host, HostError};
use lab::machine::{Device, Machine, Slot};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

use super::{
    BYTES, assert_as_before, assert_disk_works, assert_guest_had_network, assert_nic_works,
    bindings, disk, refused, state, succeeds,
};

const ALL: [&str; 5] = ["disk", "nic", "twin", "old-a", "old-b"];

on_both_backends!(each_device_comes_back_from_a_guest_and_works);

fn machine(name: &str) -> Machine {
    Machine::new(name)
        .device(Device::nvme("disk", disk()))
        .device(Device::e1000e("nic"))
        .device(Device::e1000e("twin"))
        .slot(Slot::ConventionalBridge(vec![
            Device::e1000("old-a"),
            Device::e1000("old-b"),
        ]))
}

fn each_device_comes_back_from_a_guest_and_works(backend: Backend) {
    scenario(&machine(&format!("give-back-{backend}")), |host| {
        let before = state(host, &ALL)?;
        for part in [nvme, one_of_two_nics, conventional_pair] {
            part(host, backend)?;
            assert_as_before(host, &ALL, &before)?;
        }
        Ok(())
    });
}

#[test]
fn what_bind_and_release_do_by_themselves() {
    scenario(&machine("by-themselves"), |host| {
        let before = state(host, &ALL)?;
        for part in [dry_runs_change_nothing, by_hand_and_by_name] {
            part(host)?;
            assert_as_before(host, &ALL, &before)?;
        }
        Ok(())
    });
}

/// The writes are printed in their order, and not carried out.
fn dry_runs_change_nothing(host: &Host) -> Result<(), HostError> {
    let address = host.address("disk")?.to_string();
    let device = format!("/sys/bus/pci/devices/{address}/driver_override");
    let text = succeeds(host, &["bind", "--dry-run", "disk"])?;
    let mut rest = text.as_str();
    for path in [
        device.as_str(),
        "/sys/bus/pci/drivers/nvme/unbind",
        "/sys/bus/pci/drivers_probe",
    ] {
        let (_, after) = rest
            .split_once(path)
            .unwrap_or_else(|| panic!("no '{path}' where it belongs: {text}"));
        rest = after;
    }
    let text = succeeds(host, &["bind", "--dry-run", "--group", "old-a"])?;
    for name in ["old-a", "old-b"] {
        let path = format!(
            "/sys/bus/pci/devices/{}/driver_override",
            host.address(name)?
        );
        assert!(text.contains(&path), "no '{path}' in {text}");
    }
    Ok(())
}

fn nvme(host: &Host, backend: Backend) -> Result<(), HostError> {
    let guest = Run::tasks("nvme,poweroff")
        .cmdline(&format!("lab.bytes={BYTES}"))
        .iommu(backend)
        .device(host.address("disk")?)
        .bind();
    let outcome = host.run(&guest.step())?.expect_success()?;
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read").expect("the guest read nothing");
    assert_eq!(
        read.value("sha256"),
        disk().digest(BYTES).unwrap().to_string()
    );
    assert_disk_works(host)
}

/// The guest has one NIC; the host keeps the other, which differs in nothing
/// but its address, all the time.
fn one_of_two_nics(host: &Host, backend: Backend) -> Result<(), HostError> {
    let interface = host.interface("twin")?.expect("the twin has no interface");
    // A device that was taken from its driver for a moment has another index.
    let index = || host.shell(&format!("cat /sys/class/net/{interface}/ifindex"));
    let before = index()?;
    let guest = Run::tasks("net,poweroff")
        .iommu(backend)
        .device(host.address("nic")?)
        .bind();
    let outcome = host.run(&guest.step())?.expect_success()?;
    assert_guest_had_network(&outcome, "e1000e");
    assert_eq!(index()?, before);
    assert_nic_works(host, "nic")?;
    assert_nic_works(host, "twin")
}

/// One device of a pair is no use without the other.
fn conventional_pair(host: &Host, backend: Backend) -> Result<(), HostError> {
    succeeds(host, &["bind", "--group", "old-a"])?;
    for name in ["old-a", "old-b"] {
        assert_eq!(host.driver(name)?.as_deref(), Some("vfio-pci"));
    }
    // Its only interrupt is INTx, which a guest does not get yet.
    let guest = Run::tasks("pci,poweroff")
        .iommu(backend)
        .device(host.address("old-a")?);
    let outcome = host.run(&guest.step())?.expect_success()?;
    let markers = Markers::of(&outcome.lines);
    let found = markers
        .all("pci")
        .any(|device| device.value("driver") == "e1000");
    assert!(found, "{}", outcome.stdout);
    succeeds(host, &["release", "--all"])?;
    assert_nic_works(host, "old-a")?;
    assert_nic_works(host, "old-b")
}

/// What was right before is left alone; what was bound goes back by its name.
fn by_hand_and_by_name(host: &Host) -> Result<(), HostError> {
    refused(host, &["release", "nic"], &["does not hold"])?;
    host.bind_vfio(&["twin"])?;
    succeeds(host, &["bind", "disk", "nic", "twin"])?;
    let mut held: Vec<_> = bindings(host)?
        .iter()
        .map(|held| {
            (
                held["device"].to_string(),
                held["back_to"]["driver"].to_string(),
            )
        })
        .collect();
    held.sort();
    let quoted = |name: &str| {
        host.address(name)
            .map(|address| format!("\"pci/{address}\""))
    };
    assert_eq!(
        held,
        [
            (quoted("disk")?, "\"nvme\"".to_owned()),
            (quoted("nic")?, "\"e1000e\"".to_owned()),
        ]
    );
    let words = ["is bound already", "airlock release"];
    refused(host, &["bind", "nic"], &words)?;
    succeeds(host, &["release", "nic"])?;
    assert_eq!(host.driver("nic")?.as_deref(), Some("e1000e"));
    assert_eq!(host.driver("disk")?.as_deref(), Some("vfio-pci"));
    succeeds(host, &["release", "--all"])?;
    assert_eq!(host.driver("twin")?.as_deref(), Some("vfio-pci"));
    // By hand, as it came.
    let address = host.address("twin")?;
    host.bind("twin", "e1000e")?;
    host.shell(&format!(
        "echo > /sys/bus/pci/devices/{address}/driver_override"
    ))?;
    assert_disk_works(host)?;
    assert_nic_works(host, "nic")
}
