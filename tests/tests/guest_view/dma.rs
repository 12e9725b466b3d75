//! What a device of a guest can reach besides the guest's memory: other devices
//! of the guest, and nothing else.

use lab::airlock::Run;
use lab::host::{Exit, Host, HostError};
use lab::kernel::KernelVersion;
use lab::machine::{Device, DeviceModel, Machine, Slot};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

use super::guest::{finish, run};

on_both_backends!(dma_to_nowhere_is_stopped);

const EDU: &str = "1234:11e8";
/// QEMU's shared memory device: its BAR 2 is plain memory.
const MEMORY: &str = "1af4:1110";

/// edu, which may reach any address, and a device whose BAR is memory.
fn machine(name: String, version: KernelVersion) -> Machine {
    let edu = Device::edu("edu").property("dma_mask=0xffffffffffffffff");
    let shared = DeviceModel::Other("ivshmem-plain".to_owned());
    Machine::new(name)
        .kernel(version)
        .slot(Slot::Integrated(edu))
        .slot(Slot::Integrated(
            Device::new("memory", shared).property("memdev=shared"),
        ))
        .qemu_args(["-object", "memory-backend-ram,id=shared,size=1M,share=on"])
}

/// A guest with 512 MiB has edu write to 2 GiB. The host's IOMMU stops that, and
/// says so; the guest goes on.
fn dma_to_nowhere_is_stopped(backend: Backend) {
    const NOWHERE: u64 = 0x8000_0000;
    let machine = machine(format!("stray-{backend}"), KernelVersion::Longterm);
    scenario(&machine, |host| {
        host.bind_vfio(&["edu"])?;
        let script = format!("guest-pci stray {EDU} {NOWHERE}");
        let run = run(host, backend, &script)?.device(host.address("edu")?);
        let markers = finish(host, &run)?;
        assert_eq!(
            markers.first("stray").unwrap().number("address"),
            Some(NOWHERE)
        );
        let log = host.shell("dmesg | grep DMAR")?;
        let address = host.address("edu")?.to_string();
        let short = address.trim_start_matches("0000:");
        let faults = |line: &&str| {
            line.contains(&format!("[{short}]")) && line.contains("fault addr 0x80000000")
        };
        assert!(log.lines().any(|line| faults(&line)), "{log}");
        Ok(())
    });
}

/// Both devices in one guest: which rounds of [`lab::guest::peer`] arrived, and
/// what airlock said.
fn peers(host: &Host, backend: Backend) -> Result<(Vec<u64>, String), HostError> {
    host.bind_vfio(&["edu", "memory"])?;
    let run: Run = run(host, backend, &format!("guest-pci peer {EDU} {MEMORY} 2"))?
        .device(host.address("edu")?)
        .device(host.address("memory")?);
    let outcome = host.run(&run.step())?;
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    let markers = Markers::of(&outcome.lines);
    assert!(markers.first("failed").is_none(), "{}", outcome.stdout);
    let rounds = markers
        .all("peer")
        .filter_map(|peer| peer.number("arrived"));
    Ok((rounds.collect(), outcome.stderr))
}

/// Peer to peer: while the BAR stands, after it was off, where it was moved to,
/// and back. By address with type1, by dma-buf with iommufd.
#[test]
fn devices_reach_each_other() {
    let machine = machine("peers".to_owned(), KernelVersion::Recent);
    scenario(&machine, |host| {
        for backend in Backend::BOTH {
            let (arrived, told) = peers(host, backend)?;
            assert_eq!(arrived, [1; 4], "{backend}: {told}");
            // Its BAR 0 has 256 bytes, which a dma-buf can't have.
            let warnings = told.lines().filter(|line| line.contains("peer to peer"));
            let warnings: Vec<_> = warnings.collect();
            match backend {
                Backend::Type1 => assert!(warnings.is_empty(), "{told}"),
                Backend::Iommufd => {
                    assert_eq!(warnings.len(), 1, "{told}");
                    assert!(warnings[0].contains("0x1000 bytes"), "{told}");
                    assert!(warnings[0].contains("less than one"), "{told}");
                }
            }
        }
        Ok(())
    });
}

/// A kernel that can't: a warning with the reason, and the guest runs on.
#[test]
fn devices_that_cannot_reach_each_other() {
    let machine = machine("no-peers".to_owned(), KernelVersion::Longterm);
    scenario(&machine, |host| {
        let (arrived, told) = peers(host, Backend::Type1)?;
        assert_eq!(arrived, [1; 4], "{told}");
        let (arrived, told) = peers(host, Backend::Iommufd)?;
        assert_eq!(arrived, [0; 4], "{told}");
        assert_eq!(told.matches("peer to peer").count(), 1, "{told}");
        assert!(
            told.contains("Linux 6.19") && told.contains("--iommu type1"),
            "{told}"
        );
        Ok(())
    });
}
