//! The lab's devices beyond the plain ones: those that come and go, those that
//! multiply, and the one with a driver that has to be loaded.

use std::time::Duration;

use lab::host::{Host, HostError};
use lab::machine::{Device, Disk, Machine, Slot};
use lab::scenario;

const SOON: Duration = Duration::from_secs(20);

/// How many members the group of a device has.
fn members(host: &Host, device: &str) -> Result<usize, HostError> {
    let address = host.address(device)?;
    let path = format!("/sys/bus/pci/devices/{address}/iommu_group/devices");
    Ok(host.shell(&format!("ls {path}"))?.lines().count())
}

#[test]
fn devices_come_and_go() {
    let machine = Machine::new("hotplug")
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
        let early = host.address("alone");
        assert!(
            matches!(early, Err(HostError::NoDevice { .. })),
            "{early:?}"
        );
        let never = host.plug("old-a").unwrap_err();
        assert!(matches!(never, HostError::NoDevice { .. }), "{never}");

        for (name, driver, group_of) in [
            ("alone", "e1000e", None),
            ("below-b", "e1000e", Some("below-a")),
            ("old-b", "e1000", Some("old-a")),
        ] {
            host.plug(name)?;
            assert_eq!(host.driver(name)?.as_deref(), Some(driver));
            let with = group_of.unwrap_or(name);
            assert_eq!(host.group(name)?, host.group(with)?);
            assert_eq!(host.ping(name, 2)?, 2, "{name}");
        }
        assert_eq!(members(host, "alone")?, 1);
        assert_eq!(members(host, "below-a")?, 4, "two ports and what is below");
        assert_eq!(members(host, "old-a")?, 3, "the bridge and both devices");

        let twice = host.plug("alone").unwrap_err().to_string();
        assert!(twice.contains("QEMU refused 'device_add"), "{twice}");
        let wrong = host.unplug("nothing").unwrap_err().to_string();
        assert!(wrong.contains("Device 'nothing' not found"), "{wrong}");

        for name in ["alone", "below-b", "old-b"] {
            let address = host.address(name)?;
            host.unplug(name)?;
            host.wait_unplugged(name, SOON)?;
            host.shell(&format!("test ! -e /sys/bus/pci/devices/{address}"))?;
        }
        host.plug("alone")?;
        assert_eq!(host.ping("alone", 1)?, 1);
        Ok(())
    });
}

#[test]
fn an_nvme_has_virtual_functions() {
    let disk = Disk::seeded(1 << 20, 5);
    let machine = Machine::new("sriov")
        .device(Device::nvme("other", Disk::pattern(1 << 20)))
        .device(Device::nvme_sriov("disk", disk.clone(), 4));
    scenario(&machine, |host| {
        let expected = disk.digest(1 << 20).unwrap();
        assert_eq!(host.disk_digest("disk", 1 << 20)?, expected);

        let vfs = host.enable_vfs("disk", 2)?;
        assert_eq!(vfs.len(), 2);
        assert_eq!(host.address("disk-vf1")?, vfs[1]);
        assert_eq!(host.driver("disk-vf0")?, None);
        assert_eq!(members(host, "disk-vf0")?, 1);
        host.bind_vfio(&["disk-vf0"])?;
        assert_eq!(host.disk_digest("disk", 1 << 20)?, expected);
        assert_eq!(host.enable_vfs("disk", 0)?, []);
        assert!(host.address("disk-vf0").is_err());
        Ok(())
    });
}

#[test]
fn a_driver_is_loaded_from_the_kernels_modules() {
    let machine = Machine::new("modules").device(Device::virtio_net("nic"));
    scenario(&machine, |host| {
        assert_eq!(host.driver("nic")?.as_deref(), Some("virtio-pci"));
        assert_eq!(host.ping("nic", 2)?, 2);
        host.shell("grep -q '^alias vfio_pci:v00001AF4' /lib/modules/$(uname -r)/modules.alias")?;
        host.shell("test ! -e /sys/module/virtio_vfio_pci")?;
        host.shell("$(cat /proc/sys/kernel/modprobe) virtio_vfio_pci")?;
        host.shell("test -e /sys/module/virtio_vfio_pci")?;
        host.bind("nic", "virtio_vfio_pci")?;
        host.bind("nic", "virtio-pci")?;
        assert_eq!(host.ping("nic", 2)?, 2);
        // Whatever stood in /lib before still does.
        host.shell("ls /lib/modules /lib/x86_64-linux-gnu/libc.so.6")?;
        Ok(())
    });
}
