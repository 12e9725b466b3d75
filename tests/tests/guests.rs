//! Guests with assigned devices, and each way in which they end.

use std::time::Duration;

use lab::airlock::{Run, check_by, number_before};
use lab::host::{Exit, Host, HostError, Outcome, Step};
use lab::kernel::KernelVersion;
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::timeline::Timeline;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    an_nvme_by_bzimage_and_by_pvh,
    an_nvme_on_a_recent_host,
    two_devices_and_two_cpus,
    reboot_power_off_and_panic_end_the_vm,
    a_killed_airlock_leaves_the_device_usable,
    the_timeline_is_in_order,
    the_first_instruction_does_not_wait_for_a_reset,
    a_device_with_2048_vectors_costs_what_its_driver_uses,
    eight_cpus_have_a_queue_each,
    interrupts_that_move_between_cpus_under_load,
);

const BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 16 << 20;
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);

fn disk() -> Disk {
    Disk::seeded(DISK_BYTES, 11)
}

/// A guest with the NVMe that reads from it and then does `tasks`.
fn reader(host: &Host, backend: Backend, tasks: &str) -> Result<Run, HostError> {
    Ok(Run::tasks(&format!("nvme,{tasks}"))
        .cmdline(&format!("lab.bytes={BYTES}"))
        .iommu(backend)
        .device(host.address("disk")?))
}

/// The guest read what the image holds, and each queue that it used
/// interrupted it.
fn assert_read(outcome: &Outcome) {
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read").expect("the guest read nothing");
    let written = disk().digest(BYTES).unwrap().to_string();
    assert_eq!(read.value("sha256"), written);
    assert_eq!(read.number("bytes"), Some(BYTES));
    let mut fired = 0;
    for queue in markers.all("interrupts") {
        if queue.value("name").starts_with("nvme") && queue.number("count") > Some(0) {
            assert!(queue.value("chip").starts_with("PCI-MSIX"), "{queue:?}");
            fired += 1;
        }
    }
    assert!(fired >= 2, "the admin queue and an I/O queue interrupt");
}

/// The disk passes the check, and each guest reads it.
fn assert_reads(host: &Host, backend: Backend, runs: &[Run]) -> Result<(), HostError> {
    host.bind_vfio(&["disk"])?;
    let verdict = host.run(&check_by(backend, &[host.address("disk")?]))?;
    assert_eq!(verdict.exit, Exit::Status(0), "{}", verdict.stdout);
    for run in runs {
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        assert_read(&outcome);
        if let Some(cpus) = Markers::of(&outcome.lines).first("cpus") {
            assert_eq!(cpus.number("online"), Some(2));
        }
    }
    Ok(())
}

fn an_nvme_by_bzimage_and_by_pvh(backend: Backend) {
    let machine = Machine::new(format!("nvme-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        let runs = [
            reader(host, backend, "poweroff")?,
            reader(host, backend, "poweroff")?.pvh(),
            reader(host, backend, "cpus,poweroff")?.cpus(2),
        ];
        assert_reads(host, backend, &runs)?;
        // The device goes back to the host as it was.
        host.bind("disk", "nvme")?;
        let sum = host.shell(&format!("head -c {BYTES} /dev/nvme0n1 | sha256sum"))?;
        let written = disk().digest(BYTES).unwrap().to_string();
        assert!(sum.starts_with(&written), "{sum}");
        Ok(())
    });
}

fn an_nvme_on_a_recent_host(backend: Backend) {
    let machine = Machine::new(format!("recent-{backend}"))
        .kernel(KernelVersion::Recent)
        .device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        let runs = [
            reader(host, backend, "poweroff")?,
            reader(host, backend, "cpus,poweroff")?.cpus(2).pvh(),
        ];
        assert_reads(host, backend, &runs)
    });
}

fn two_devices_and_two_cpus(backend: Backend) {
    let machine = Machine::new(format!("two-devices-{backend}"))
        .cpus(2)
        .device(Device::nvme("disk", disk()))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk", "nic"])?;
        let run = reader(host, backend, "net,cpus,poweroff")?
            .cmdline("lab.pings=5")
            .device(host.address("nic")?)
            .cpus(2);
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        assert_read(&outcome);
        let markers = Markers::of(&outcome.lines);
        assert_eq!(markers.first("cpus").unwrap().number("online"), Some(2));
        let net = markers.first("net").expect("the guest has no network");
        assert_eq!(net.value("driver"), "e1000e");
        assert_eq!(net.number("received"), Some(5), "{net:?}");
        let of_nic = markers
            .all("interrupts")
            .filter(|queue| queue.value("name").starts_with("eth0"));
        let total: u64 = of_nic.filter_map(|queue| queue.number("count")).sum();
        assert!(total >= 10, "five packets out and in: {total} interrupts");
        Ok(())
    });
}

fn reboot_power_off_and_panic_end_the_vm(backend: Backend) {
    let machine = Machine::new(format!("ends-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        // By the reset register of ACPI, by the keyboard controller, and by a
        // triple fault; then a panic, with and without a reset to follow.
        for (tasks, words, status) in [
            ("reboot", "", 3),
            ("reboot", "reboot=k", 3),
            ("reboot", "reboot=t", 5),
            ("panic", "", 4),
            ("panic", "panic=0", 4),
            ("poweroff", "", 0),
        ] {
            let run = reader(host, backend, tasks)?.cmdline(words);
            let outcome = host.run(&run.step())?;
            let told = format!("{tasks} {words}: {}", outcome.stderr);
            assert_eq!(outcome.exit, Exit::Status(status), "{told}");
            assert_read(&outcome);
            if tasks == "panic" {
                assert!(
                    outcome.stdout.contains("Kernel panic"),
                    "{}",
                    outcome.stdout
                );
                assert!(outcome.stderr.contains("panicked"), "{told}");
            }
        }
        Ok(())
    });
}

fn a_killed_airlock_leaves_the_device_usable(backend: Backend) {
    let machine = Machine::new(format!("killed-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        for (signal, exit) in [(9, Exit::Signal(9)), (15, Exit::Status(143))] {
            let mut guest = host.start(&reader(host, backend, "sleep")?.step())?;
            guest.wait_line("lab: sleep", BOOT)?;
            guest.signal(signal)?;
            assert_eq!(guest.wait()?.exit, exit);
            let outcome = host.run(&reader(host, backend, "poweroff")?.step())?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            assert_read(&outcome);
        }
        // Killed at any time while it starts, it leaves nothing behind either.
        for after in ["0.05", "0.15", "0.3", "0.6"] {
            let run = reader(host, backend, "sleep")?;
            let guest = host.start(&run.step())?;
            host.run(&Step::argv(["sleep", after]))?;
            guest.signal(9)?;
            assert_eq!(guest.wait()?.exit, Exit::Signal(9));
        }
        let outcome = host.run(&reader(host, backend, "poweroff")?.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        assert_read(&outcome);
        Ok(())
    });
}

fn the_timeline_is_in_order(backend: Backend) {
    let machine = Machine::new(format!("timeline-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        let path = "/run/lab/timeline.json";
        // More memory than can be populated before the guest wants it.
        let run = reader(host, backend, "poweroff")?
            .memory("2G")
            .timeline(path);
        host.run(&run.step())?.expect_success()?;
        let text = host.shell(&format!("cat {path}"))?;
        let times = Timeline::parse(&text).expect("a timeline");
        let points = times.points().iter().map(|point| point.name.as_str());
        // The reset goes on beside all of it.
        let (reset, others): (Vec<_>, Vec<_>) = points.partition(|name| *name == "devices-open");
        assert_eq!(reset.len(), 1);
        assert_eq!(
            others,
            [
                "start",
                "plan",
                "kernel-loaded",
                "first-vcpu-entry",
                "memory-mapped",
                "guest-ended"
            ],
            "RAM is mapped beside the running guest"
        );
        assert!(
            times.ns("devices-open") < times.ns("memory-mapped"),
            "{times}"
        );
        Ok(())
    });
}

/// Where an instruction takes a nanosecond, the kernel waits a tenth of a second for the
/// reset, and airlock gets to the guest in a fraction of that.
fn the_first_instruction_does_not_wait_for_a_reset(backend: Backend) {
    let machine = Machine::new(format!("beside-{backend}")).device(Device::nvme("disk", disk()));
    scenario(&machine.counting_instructions(), |host| {
        host.bind_vfio(&["disk"])?;
        let path = "/run/lab/timeline.json";
        let times = |map: &str| {
            let run = reader(host, backend, "poweroff")?.timeline(path);
            let outcome = host.run(&run.arg("--map").arg(map).step())?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            assert_read(&outcome);
            let text = host.shell(&format!("cat {path}"))?;
            Ok::<_, HostError>(Timeline::parse(&text).expect("a timeline"))
        };
        // The first run also brings airlock and the kernel into the page cache.
        times("beside-boot")?;
        let beside = times("beside-boot")?;
        let before = times("before-boot")?;
        let wait = beside.between("first-vcpu-entry", "devices-open");
        let wait = wait.expect("the devices opened");
        println!("devices open {wait:.0} ms after the first entry");
        assert!(wait > 50.0, "{beside}");
        assert!(
            before.ns("devices-open") < before.ns("first-vcpu-entry"),
            "{before}"
        );
        Ok(())
    });
}

fn a_device_with_2048_vectors_costs_what_its_driver_uses(backend: Backend) {
    let device = Device::nvme("disk", disk())
        .property("msix_qsize=2048")
        .property("max_ioqpairs=64");
    let machine = Machine::new(format!("many-vectors-{backend}"))
        .cpus(2)
        .device(device);
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        for idle in ["host", "guest"] {
            let run = reader(host, backend, "poweroff")?
                .cpus(2)
                .arg("--cpu")
                .arg(format!("idle={idle}"))
                .arg("--stats");
            let outcome = host.run(&run.step())?;
            let told = &outcome.stderr;
            assert_eq!(outcome.exit, Exit::Status(0), "{told}");
            assert_read(&outcome);
            // The admin queue, one queue a CPU, and some that a probing driver
            // tries: far from what the device has.
            let routes = number_before(told, "made,");
            assert!((2..=8).contains(&routes), "{told}");
            // Some for the pin as well, before the driver turns MSI-X on.
            let set_irqs = number_before(told, "SET_IRQS calls");
            assert!(set_irqs <= 16 + 2 * routes, "{told}");
            assert!(number_before(told, "got an irqfd") <= routes, "{told}");
            // Once it has its irqfd, no interrupt of a vector passes through
            // user space.
            let interrupts = Markers::of(&outcome.lines);
            let counts = interrupts.all("interrupts");
            let total: u64 = counts.filter_map(|queue| queue.number("count")).sum();
            let injected = told.split("user space: ").nth(1).unwrap_or_default();
            let injected = number_before(injected, ",");
            assert!(injected * 4 < total, "{injected} of {total}: {told}");
            assert!(told.contains("lost: 0"), "{told}");
        }
        Ok(())
    });
}

fn eight_cpus_have_a_queue_each(backend: Backend) {
    let machine = Machine::new(format!("eight-cpus-{backend}"))
        .device(Device::nvme("disk", disk()).property("max_ioqpairs=64"));
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        // A short read uses only some: the others are unmasked all the same, and
        // cost no entry in the routing table.
        let run = reader(host, backend, "cpus,poweroff")?
            .cpus(8)
            .arg("--stats");
        let outcome = host.run(&run.step())?;
        let told = &outcome.stderr;
        assert_eq!(outcome.exit, Exit::Status(0), "{told}");
        assert_read(&outcome);
        let markers = Markers::of(&outcome.lines);
        assert_eq!(markers.first("cpus").unwrap().number("online"), Some(8));
        let routes = number_before(told, "made,");
        let promoted = number_before(told, "got an irqfd");
        assert!(routes >= 9, "{told}");
        assert!(promoted < routes, "{told}");
        let tables = told.split("routing tables: ").nth(1).unwrap_or_default();
        assert!(number_before(tables, ", with") <= promoted, "{told}");
        Ok(())
    });
}

fn interrupts_that_move_between_cpus_under_load(backend: Backend) {
    const PINGS: u64 = 2000;
    let machine = Machine::new(format!("affinity-{backend}"))
        .cpus(2)
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["nic"])?;
        let run = Run::tasks("affinity,poweroff")
            .cmdline(&format!("lab.pings={PINGS}"))
            .iommu(backend)
            .device(host.address("nic")?)
            .cpus(2)
            .arg("--stats");
        let outcome = host.run(&run.step())?;
        let told = &outcome.stderr;
        assert_eq!(outcome.exit, Exit::Status(0), "{told}");
        let markers = Markers::of(&outcome.lines);
        let moved = markers.first("affinity").expect("the guest has no network");
        assert_eq!(moved.number("received"), Some(PINGS), "{moved:?}; {told}");
        assert!(moved.number("moves") > Some(20), "{moved:?}; {told}");
        // The guest masks a vector to move it: the irqfd goes, and comes back
        // when it fires.
        assert!(number_before(told, "taken away") > 10, "{told}");
        assert!(told.contains("lost: 0"), "{told}");
        assert!(!outcome.stdout.contains("NETDEV WATCHDOG"), "a timeout");
        Ok(())
    });
}
