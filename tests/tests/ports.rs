//! Devices behind the guest's root ports: found, used and reset there.

use lab::airlock::Run;
use lab::host::Exit;
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::scenario;

const BYTES: u64 = 1 << 20;

#[test]
fn resets_by_the_guest() {
    let disk = Disk::seeded(16 << 20, 17);
    let written = disk.digest(BYTES).unwrap().to_string();
    let machine = Machine::new("ports")
        .device(Device::nvme("disk", disk))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "nic"])?;
        let run = Run::tasks("ports,nvme,resets,net,poweroff")
            .cmdline(&format!("lab.bytes={BYTES}"))
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
/// back, while another CPU reads from the disk.
#[test]
fn moves_under_load() {
    const PLACES: [u64; 4] = [0xc01a_0000, 0xc016_0000, 0xc01c_0000, 0xc014_0000];
    const ROUNDS: usize = 8;
    let disk = Disk::seeded(16 << 20, 18);
    let written = disk.digest(BYTES).unwrap().to_string();
    let machine = Machine::new("moves")
        .cpus(2)
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
            .device(host.address("disk")?)
            .device(host.address("nic")?);
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains("slow"), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        let kept = markers.first("bar-kept").expect("the guest found no NIC");
        assert_eq!(kept.number("value"), Some(0x241), "{kept:?}");
        let moved: Vec<_> = markers.all("bar-moved").collect();
        assert_eq!(moved.len(), PLACES.len() * ROUNDS);
        for moved in moved {
            assert_eq!(moved.number("value"), Some(0x241), "{moved:?}");
            assert_eq!(moved.number("off"), Some(0xffff_ffff), "{moved:?}");
            // Where it was there is nothing, or the BAR that it had hidden.
            assert_ne!(moved.number("before"), Some(0x241), "{moved:?}");
        }
        let load = markers.first("unload").expect("the load went on for ever");
        assert!(load.number("reads") >= Some(2), "{load:?}");
        assert_eq!(load.value("sha256"), format!("{written},"));
        Ok(())
    });
}
