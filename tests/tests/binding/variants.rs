use lab::airlock::Run;
use lab::host::{Host, HostError};
use lab::machine::{Device, Machine};
use lab::{Backend, scenario};

use super::{
    assert_as_before, assert_disk_works, assert_guest_had_network, assert_nic_works, disk, refused,
    state, succeeds,
};

#[test]
fn virtual_functions_and_variant_drivers() {
    let machine = Machine::new("variants")
        .device(Device::nvme_sriov("disk", disk(), 4))
        .device(Device::virtio_net("nic"));
    scenario(&machine, |host| {
        virtual_function(host)?;
        variant_driver(host)
    });
}

/// A VF goes to VFIO, its PF stays with the host.
fn virtual_function(host: &Host) -> Result<(), HostError> {
    let without = state(host, &["disk"])?;
    let vfs = host.enable_vfs("disk", 2)?;
    let all = ["disk", "disk-vf0", "disk-vf1"];
    let before = state(host, &all)?;
    refused(host, &["bind", "disk"], &["2 VFs", "--disable-vfs"])?;
    assert_as_before(host, &all, &before)?;

    succeeds(host, &["bind", "disk-vf0"])?;
    assert_eq!(host.driver("disk-vf0")?.as_deref(), Some("vfio-pci"));
    succeeds(host, &["check", "--claim", "disk-vf0"])?;
    assert_disk_works(host)?;
    refused(
        host,
        &["bind", "--disable-vfs", "disk"],
        &[&vfs[0].to_string()],
    )?;
    succeeds(host, &["release", "disk-vf0"])?;
    assert_as_before(host, &all, &before)?;

    // The PF itself: its VFs go away, and come back with it.
    succeeds(host, &["bind", "--disable-vfs", "disk"])?;
    assert_eq!(host.driver("disk")?.as_deref(), Some("vfio-pci"));
    host.shell(&format!("test ! -e /sys/bus/pci/devices/{}", vfs[0]))?;
    succeeds(host, &["release", "disk"])?;
    assert_as_before(host, &all, &before)?;
    assert_disk_works(host)?;
    host.enable_vfs("disk", 0)?;
    assert_as_before(host, &["disk"], &without)
}

/// A driver that knows the device is loaded, and plain vfio-pci is used when
/// the user says so.
fn variant_driver(host: &Host) -> Result<(), HostError> {
    let before = state(host, &["nic"])?;
    let module = "/sys/module/virtio_vfio_pci";
    host.shell(&format!("test ! -e {module}"))?;
    let text = succeeds(host, &["bind", "--dry-run", "nic"])?;
    assert!(
        text.contains("modprobe") && text.contains("virtio_vfio_pci"),
        "{text}"
    );
    host.shell(&format!("test ! -e {module}"))?;

    succeeds(host, &["bind", "nic"])?;
    assert_eq!(host.driver("nic")?.as_deref(), Some("virtio_vfio_pci"));
    for backend in Backend::BOTH {
        let guest = Run::tasks("net,poweroff")
            .iommu(backend)
            .device(host.address("nic")?);
        let outcome = host.run(&guest.step())?.expect_success()?;
        assert_guest_had_network(&outcome, "virtio_net");
    }
    succeeds(host, &["release", "nic"])?;
    assert_as_before(host, &["nic"], &before)?;
    assert_nic_works(host, "nic")?;

    succeeds(host, &["bind", "--driver", "vfio-pci", "nic"])?;
    assert_eq!(host.driver("nic")?.as_deref(), Some("vfio-pci"));
    succeeds(host, &["check", "--claim", "nic"])?;
    succeeds(host, &["release", "nic"])?;

    // Without the modules it is plain vfio-pci, and that is said.
    host.shell("rmmod virtio_vfio_pci 2>/dev/null || /run/lab/busybox rmmod virtio_vfio_pci")?;
    host.shell("echo /no/such/modprobe > /proc/sys/kernel/modprobe")?;
    let text = succeeds(host, &["bind", "nic"])?;
    assert!(
        text.contains("virtio_vfio_pci") && text.contains("vfio-pci"),
        "{text}"
    );
    assert_eq!(host.driver("nic")?.as_deref(), Some("vfio-pci"));
    succeeds(host, &["release", "nic"])?;
    host.shell("echo /run/lab/modprobe > /proc/sys/kernel/modprobe")?;
    assert_as_before(host, &["nic"], &before)?;
    assert_nic_works(host, "nic")
}
