//! Devices behind the guest's root ports: found, used and reset there.

use lab::airlock::Run;
use lab::host::Exit;
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    resets_by_the_guest,
    moves_under_load,
    large_bars_behind_a_port,
);

const BYTES: u64 = 1 << 20;

fn resets_by_the_guest(backend: Backend) {
    let disk = Disk::seeded(16 << 20, 17);
    let written = disk.digest(BYTES).unwrap().to_string();
    let machine = Machine::new(format!("ports-{backend}"))
        .device(Device::nvme("disk", disk))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "nic"])?;
        let run = Run::tasks("ports,nvme,resets,net,poweroff")
            .cmdline(&format!("lab.bytes={BYTES}"))
            .iommu(backend)
            .device(host.address("disk")?)
            .device(host.address("nic")?);
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        // A port for each device, with the same link at both ends.
        let ports: Vec<_> = markers.all("port").collect();
        assert_eq!(ports.len(), 2, "{ports:?}");
        for (number, port) in (1..).zip(&ports) {
            assert_eq!(port.value("address"), format!("0000:00:{number:02x}.0"));
            assert_eq!(port.value("device"), format!("0000:{number:02x}:00.0"));
            assert_eq!(port.value("driver"), "pcieport");
            assert_eq!(port.value("speed"), port.value("device-speed"));
            assert_eq!(port.value("width"), port.value("device-width"));
        }
        // What it read once it reads after each reset, the port's among them.
        assert!(
            markers.first("reset-failed").is_none(),
            "{}",
            outcome.stdout
        );
        let methods: Vec<_> = markers.all("reset").map(|m| m.value("method")).collect();
        assert!(methods.contains(&"bus"), "{methods:?}");
        let reads: Vec<_> = markers.all("nvme-read").collect();
        assert_eq!(reads.len(), 1 + methods.len(), "{methods:?}");
        assert!(reads.iter().all(|read| read.value("sha256") == written));
        let net = markers.first("net").expect("the guest has no network");
        assert_eq!(net.number("received"), net.number("sent"), "{net:?}");
        Ok(())
    });
}

/// The NIC's registers go round in its port's window, over its other BARs and
/// back, while another CPU reads from the disk. On one CPU of the host, which goes
/// from one to the other: see [`Machine::cpus`].
fn moves_under_load(backend: Backend) {
    const PLACES: [u64; 4] = [0xc01a_0000, 0xc016_0000, 0xc01c_0000, 0xc014_0000];
    const ROUNDS: usize = 8;
    let disk = Disk::seeded(16 << 20, 18);
    let written = disk.digest(BYTES).unwrap().to_string();
    let machine = Machine::new(format!("moves-{backend}"))
        .device(Device::nvme("disk", disk))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "nic"])?;
        let moves: Vec<_> = PLACES
            .repeat(ROUNDS)
            .iter()
            .map(|at| format!("{at:#x}"))
            .collect();
        let run = Run::tasks("load,bar,unload,poweroff")
            .cmdline(&format!("lab.bytes={BYTES} lab.bar=8086:10d3,0,0x241"))
            .cmdline(&format!("lab.move={}", moves.join(",")))
            .cpus(2)
            .iommu(backend)
            .device(host.address("disk")?)
            .device(host.address("nic")?);
        let outcome = host.run(&run.step())?;
        let said = (&outcome.stderr, &outcome.stdout);
        assert_eq!(outcome.exit, Exit::Status(0), "{said:#?}");
        assert!(!outcome.stderr.contains("slow"), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        // The device control register. Flow control comes on by itself once the
        // link is up (Intel 82574 datasheet §10.2.2.1, bits 28:27).
        let control = |value: Option<u64>| value.map(|value| value & !0x1800_0000);
        let kept = markers.first("bar-kept").expect("the guest found no NIC");
        assert_eq!(control(kept.number("value")), Some(0x241), "{kept:?}");
        let moved: Vec<_> = markers.all("bar-moved").collect();
        assert_eq!(moved.len(), PLACES.len() * ROUNDS);
        for moved in moved {
            assert_eq!(control(moved.number("value")), Some(0x241), "{moved:?}");
            assert_eq!(moved.number("off"), Some(0xffff_ffff), "{moved:?}");
            // Where it was there is nothing, or the BAR that it had hidden.
            assert_ne!(control(moved.number("before")), Some(0x241), "{moved:?}");
        }
        let load = markers.first("unload").expect("the load went on for ever");
        assert!(load.number("reads") >= Some(2), "{load:?}");
        assert_eq!(load.value("sha256"), format!("{written},"));
        Ok(())
    });
}

/// A controller with its queues in a memory BAR of its own, and a BAR of 16 GiB
/// besides: both are prefetchable, and above 4 GiB behind their port.
fn large_bars_behind_a_port(backend: Backend) {
    let disk = Disk::seeded(16 << 20, 19);
    let written = disk.digest(BYTES).unwrap().to_string();
    let disk = Device::nvme("disk", disk)
        .property("legacy-cmb=on")
        .property("cmb_size_mb=64")
        .property("pmrdev=memory");
    let machine = Machine::new(format!("large-bars-{backend}"))
        .device(disk)
        .qemu_args([
            "-object",
            "memory-backend-ram,size=16G,share=on,reserve=off,id=memory",
        ]);
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        let run = Run::tasks("ports,nvme,bar,poweroff")
            .cmdline(&format!("lab.bytes={BYTES} lab.bar=1b36:0010,2,0x5a"))
            .iommu(backend)
            .device(host.address("disk")?);
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("slow"), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        let port = markers.first("port").expect("no port");
        assert_eq!(port.value("device"), "0000:01:00.0");
        let read = markers.first("nvme-read").expect("the guest read nothing");
        assert_eq!(read.value("sha256"), written);
        for (index, size) in [(2, 64 << 20), (4, 16 << 30)] {
            let mut bars = markers.all("bar");
            let bar = bars.find(|bar| bar.number("index") == Some(index));
            let bar = bar.expect("no such BAR");
            assert_eq!(bar.number("size"), Some(size), "{bar:?}");
            assert!(bar.number("start") >= Some(4 << 30), "{bar:?}");
        }
        let kept = markers.first("bar-kept").expect("the guest found no BAR");
        assert_eq!(kept.number("value"), Some(0x5a), "{kept:?}");
        Ok(())
    });
}
