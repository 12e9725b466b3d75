//! What vectors cost the host: those that a guest's driver uses, however many
//! the device has, and nothing once it has let go of them.

use std::time::Duration;

use lab::airlock::{Run, number_before};
use lab::host::{Exit, Host, HostError, Outcome, Process};
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    fifty_rebinds_leave_nothing_behind,
    a_device_arms_what_its_driver_uses,
);

const BYTES: u64 = 1 << 20;
const CPUS: usize = 2;
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);
/// How long fifty rounds may take.
const REBINDS: Duration = Duration::from_secs(150);

fn disk(seed: u64) -> Disk {
    Disk::seeded(4 << 20, seed)
}

/// A guest that reads from the NVMe `name` and then does `tasks`.
fn reader(host: &Host, backend: Backend, name: &str, tasks: &str) -> Result<Run, HostError> {
    Ok(Run::tasks(&format!("nvme,{tasks}"))
        .cmdline(&format!("lab.bytes={BYTES}"))
        .iommu(backend)
        .device(host.address(name)?)
        .limit(BOOT + REBINDS)
        .arg("--stats"))
}

/// The guest read the image's bytes `times` times.
fn assert_read(outcome: &Outcome, disk: &Disk, times: usize) {
    let written = disk.digest(BYTES).unwrap().to_string();
    let markers = Markers::of(&outcome.lines);
    let reads: Vec<_> = markers.all("nvme-read").collect();
    assert_eq!(reads.len(), times, "{}", outcome.stdout);
    for read in reads {
        assert_eq!(read.number("bytes"), Some(BYTES));
        assert_eq!(read.value("sha256"), written);
    }
}

/// What a guest's interrupts hold on the host at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    /// The names of the host's interrupts that are VFIO's: those that are armed.
    interrupts: Vec<String>,
    /// The open eventfds of airlock.
    eventfds: usize,
}

impl Held {
    fn by(host: &Host, guest: &Process) -> Result<Self, HostError> {
        let interrupts = vfio_interrupts(host)?;
        let links = host.shell(&format!("ls -l /proc/{}/fd", guest.pid()))?;
        Ok(Self {
            interrupts,
            eventfds: links.matches("anon_inode:[eventfd]").count(),
        })
    }
}

/// The names of the host's interrupts that are VFIO's, in order.
fn vfio_interrupts(host: &Host) -> Result<Vec<String>, HostError> {
    let text = host.shell("cat /proc/interrupts")?;
    let names = text.lines().filter_map(|line| line.split_once(" vfio-"));
    let mut names: Vec<_> = names.map(|(_, name)| name.trim().to_owned()).collect();
    names.sort();
    Ok(names)
}

/// How many vectors a device's MSI-X capability says that it has.
fn vectors_of(host: &Host, name: &str) -> Result<usize, HostError> {
    let address = host.address(name)?;
    let path = format!("/sys/bus/pci/devices/{address}/config");
    let text = host.shell(&format!("od -An -v -tu1 {path}"))?;
    let bytes: Vec<usize> = text
        .split_whitespace()
        .map(|byte| byte.parse().expect("a byte"))
        .collect();
    // From one capability to the next, PCI Local Bus Specification 3.0, 6.7.
    let mut at = bytes[0x34];
    while bytes[at] != 0x11 {
        at = bytes[at + 1];
        assert_ne!(at, 0, "{name} has no MSI-X");
    }
    Ok((bytes[at + 2] | (bytes[at + 3] & 7) << 8) + 1)
}

/// Neither the router nor a device lost an interrupt.
fn assert_none_lost(told: &str) {
    let lost: Vec<_> = told.split("lost: ").skip(1).collect();
    assert_eq!(lost.len(), 2, "the router's and the device's: {told}");
    for count in lost {
        let digits = count.split(|c: char| !c.is_ascii_digit()).next();
        assert_eq!(digits, Some("0"), "{told}");
    }
}

fn fifty_rebinds_leave_nothing_behind(backend: Backend) {
    const ROUNDS: u64 = 50;
    let machine = Machine::new(format!("rebinds-{backend}")).device(Device::nvme("disk", disk(21)));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        // How many GSIs are in use can be seen at the end only, and with a
        // driver that has the device: the first guest is the measure.
        let mut gsis = Vec::new();
        for rounds in [0, ROUNDS] {
            let run = reader(host, backend, "disk", "hold,rebind,nvme,hold")?
                .cmdline(&format!("lab.rounds={rounds}"));
            let mut guest = host.start(&run.step())?;
            guest.wait_line("lab: hold", BOOT)?;
            let before = Held::by(host, &guest)?;
            assert_eq!(before.interrupts.len(), 2, "one a queue: {before:?}");
            guest.write(b"\n")?;
            guest.wait_line("lab: hold", REBINDS)?;
            let after = Held::by(host, &guest)?;
            guest.signal(15)?;
            let outcome = guest.wait()?;
            let told = &outcome.stderr;
            assert_eq!(outcome.exit, Exit::Status(143), "{told}");
            let markers = Markers::of(&outcome.lines);
            let rebind = markers.first("rebind").expect("the guest rebound nothing");
            assert_eq!(rebind.number("rounds"), Some(rounds), "{}", outcome.stdout);
            assert_read(&outcome, &disk(21), 2);
            assert_eq!(after, before, "after {rounds} rounds; {told}");
            assert_none_lost(told);
            // Each round took vectors anew: two queues, at the least.
            assert!(number_before(told, "made,") >= 2 * rounds, "{told}");
            gsis.push(number_before(told, "GSIs in use"));
            assert_eq!(vfio_interrupts(host)?, [""; 0], "airlock has ended");
        }
        assert_eq!(gsis[0], gsis[1], "GSIs without and with {ROUNDS} rounds");
        Ok(())
    });
}

fn a_device_arms_what_its_driver_uses(backend: Backend) {
    // (Vectors, pairs of I/O queues.) With one vector the admin queue and the
    // I/O queue share it.
    const KINDS: [(usize, usize); 3] = [(1, 1), (64, 63), (2048, 64)];
    let name = |vectors| format!("disk-{vectors}");
    let mut machine = Machine::new(format!("vectors-{backend}"));
    for (seed, (vectors, pairs)) in (31..).zip(KINDS) {
        machine = machine.device(
            Device::nvme(name(vectors), disk(seed))
                .property(format!("msix_qsize={vectors}"))
                .property(format!("max_ioqpairs={pairs}")),
        );
    }
    scenario(&machine, |host| {
        for (seed, (vectors, _)) in (31..).zip(KINDS) {
            let name = name(vectors);
            assert_eq!(vectors_of(host, &name)?, vectors);
            host.bind_vfio(&[&name])?;
            let run = reader(host, backend, &name, "hold,poweroff")?.cpus(CPUS);
            let mut guest = host.start(&run.step())?;
            guest.wait_line("lab: hold", BOOT)?;
            let held = Held::by(host, &guest)?;
            guest.write(b"\n")?;
            let outcome = guest.wait()?;
            let told = format!("{vectors} vectors: {held:?}; {}", outcome.stderr);
            assert_eq!(outcome.exit, Exit::Status(0), "{told}");
            assert_read(&outcome, &disk(seed), 1);
            // The admin queue's and one a CPU.
            let used = vectors.min(1 + CPUS);
            assert_eq!(held.interrupts.len(), used, "{told}");
            assert!(
                held.interrupts.iter().all(|name| name.starts_with("msix[")),
                "{told}"
            );
            assert_none_lost(&told);
        }
        Ok(())
    });
}
