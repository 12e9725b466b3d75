//! What the kernel keeps together or apart by group, by either backend: devices
//! of one group that come and go, second owners, and iommufd in the guise of a
//! container.

use std::time::Duration;

use lab::airlock::{Run, check_by};
use lab::host::{Exit, Host, HostError, Process};
use lab::machine::{Device, Disk, Machine, Slot};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    two_cards_of_one_group,
    a_device_leaves_and_the_other_of_its_group_stays,
    a_second_owner_is_refused,
);

const BYTES: u64 = 1 << 20;
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);
/// What the kernel and airlock do between themselves.
const SOON: Duration = Duration::from_secs(30);

fn disk(seed: u64) -> Disk {
    Disk::seeded(4 << 20, seed)
}

/// Two disks below ports that do not keep them apart: one group.
fn disks(name: &str) -> Machine {
    Machine::new(name).slot(Slot::Ports {
        acs: false,
        devices: vec![
            Device::nvme("below-a", disk(41)),
            Device::nvme("below-b", disk(42)),
        ],
    })
}

const DISKS: [&str; 2] = ["below-a", "below-b"];

/// The host's own driver has the disk and reads what the image holds.
fn assert_host_reads(host: &Host, name: &str) -> Result<(), HostError> {
    let seed = if name == DISKS[0] { 41 } else { 42 };
    host.bind(name, "nvme")?;
    let expected = disk(seed).digest(BYTES).unwrap();
    assert_eq!(host.disk_digest(name, BYTES)?, expected, "{name}");
    Ok(())
}

/// Each order in which the two join a guest, and go back to the host.
fn two_cards_of_one_group(backend: Backend) {
    let cards = vec![Device::e1000("old-a"), Device::e1000("old-b")];
    let machine = Machine::new(format!("one-group-{backend}"));
    scenario(&machine.slot(Slot::ConventionalBridge(cards)), |host| {
        assert_eq!(host.group("old-a")?, host.group("old-b")?);
        for (first, second) in [("old-a", "old-b"), ("old-b", "old-a")] {
            host.bind_vfio(&["old-a", "old-b"])?;
            let run = Run::tasks("net,poweroff")
                .iommu(backend)
                .device(host.address(first)?)
                .device(host.address(second)?);
            let outcome = host.run(&run.step())?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let markers = Markers::of(&outcome.lines);
            let cards: Vec<_> = markers.all("net").collect();
            assert_eq!(cards.len(), 2, "{}", outcome.stdout);
            for card in cards {
                assert_eq!(card.number("received"), card.number("sent"), "{card:?}");
            }
            // The host has one of them back while the other waits for a guest.
            for card in [second, first] {
                host.bind(card, "e1000")?;
                assert_eq!(host.ping(card, 2)?, 2, "{card}");
            }
        }
        Ok(())
    });
}

/// The device that is unbound leaves the guest; the other one, which joined
/// before or after it, works on, and the group is the guest's to its end.
fn a_device_leaves_and_the_other_of_its_group_stays(backend: Backend) {
    scenario(&disks(&format!("leaving-{backend}")), |host| {
        for (leaving, staying) in [("below-a", "below-b"), ("below-b", "below-a")] {
            host.bind_vfio(&DISKS)?;
            let mut run = Run::tasks("load,hold,unload,poweroff")
                .cmdline(&format!("lab.bytes={BYTES} lab.disk={staying}"))
                .iommu(backend)
                .arg("--on-viability-loss")
                .arg("release");
            for name in DISKS {
                run = run.device(host.address(name)?);
            }
            let mut guest = host.start(&run.step())?;
            guest.wait_line("lab: hold", BOOT)?;
            let address = host.address(leaving)?;
            host.shell(&format!(
                "echo {address} > /sys/bus/pci/drivers/vfio-pci/unbind"
            ))?;
            guest.wait_line(&address.to_string(), SOON)?;
            // It is out of the guest, but nobody else's yet.
            let early = host.bind(leaving, "nvme");
            assert!(matches!(early, Err(HostError::Failed(_))), "{early:?}");
            guest.write(b"\n")?;
            let outcome = guest.wait()?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let markers = Markers::of(&outcome.lines);
            let load = markers.first("unload").expect("the load went on for ever");
            assert!(load.number("reads") >= Some(2), "{load:?}");
            let seed = if staying == DISKS[0] { 41 } else { 42 };
            let written = disk(seed).digest(BYTES).unwrap();
            assert_eq!(load.value("sha256"), format!("{written},"), "{staying}");
            assert_host_reads(host, leaving)?;
            assert_host_reads(host, staying)?;
        }
        Ok(())
    });
}

/// A guest that has the first of the two disks.
fn owner(host: &Host, backend: Backend) -> Result<Process, HostError> {
    let run = Run::tasks("beat").iommu(backend);
    let mut owner = host.start(&run.device(host.address(DISKS[0])?).step())?;
    owner.wait_line("lab: beat", BOOT)?;
    Ok(owner)
}

/// While a guest has a device, nobody gets it or another one of its group, by
/// whichever backend; the reason names who has it.
fn a_second_owner_is_refused(backend: Backend) {
    scenario(&disks(&format!("second-owner-{backend}")), |host| {
        host.bind_vfio(&DISKS)?;
        let mut owner = owner(host, backend)?;
        let pid = owner.pid().to_string();
        for second in Backend::BOTH {
            for name in DISKS {
                let run = Run::tasks("poweroff").iommu(second);
                let outcome = host.run(&run.device(host.address(name)?).step())?;
                let told = format!("{name} by {second}: {}", outcome.stderr);
                assert_eq!(outcome.exit, Exit::Status(1), "{told}");
                assert!(outcome.stderr.contains("in use"), "{told}");
                assert!(outcome.stderr.contains(&pid), "{told}");
                assert_eq!(outcome.stdout, "", "{told}");
            }
        }
        // The owner is none the worse for it.
        owner.wait_line("lab: beat", SOON)?;
        owner.signal(15)?;
        assert_eq!(owner.wait()?.exit, Exit::Status(143));
        for name in DISKS {
            let run = Run::tasks("nvme,poweroff").iommu(backend);
            host.run(&run.device(host.address(name)?).step())?
                .expect_success()?;
        }
        Ok(())
    });
}

/// A kernel may offer iommufd alone, and have `/dev/vfio/vfio` be a link to it:
/// a container works, is told for what it is, and so is iommufd itself beside it.
#[test]
fn a_container_that_is_iommufd_in_disguise() {
    let machine = Machine::new("disguise").device(Device::nvme("disk", disk(43)));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        host.shell("rm /dev/vfio/vfio && ln -s /dev/iommu /dev/vfio/vfio")?;
        let address = host.address("disk")?;
        for backend in Backend::BOTH {
            let verdict = host.run(&check_by(backend, &[address]))?;
            assert_eq!(verdict.exit, Exit::Status(0), "{}", verdict.stdout);
            let run = Run::tasks("nvme,poweroff")
                .cmdline(&format!("lab.bytes={BYTES}"))
                .iommu(backend)
                .device(address);
            let outcome = host.run(&run.step())?;
            let told = &outcome.stderr;
            assert_eq!(outcome.exit, Exit::Status(0), "{told}");
            let markers = Markers::of(&outcome.lines);
            let read = markers.first("nvme-read").expect("the guest read nothing");
            let written = disk(43).digest(BYTES).unwrap().to_string();
            assert_eq!(read.value("sha256"), written);
            let disguised = told.contains("iommufd's compatibility interface");
            assert_eq!(disguised, backend == Backend::Type1, "{told}");
        }
        Ok(())
    });
}
