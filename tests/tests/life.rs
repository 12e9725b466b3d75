//! What becomes of a device between its start and its end: it sleeps as deep
//! as the host likes, and is reset along with its bus where it can't be reset
//! by itself.

use std::time::{Duration, Instant};

use devices::pci::PciAddress;
use lab::airlock::{Run, airlock, check};
use lab::host::{Exit, Host, HostError, Outcome};
use lab::machine::{Device, Machine, Slot};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    the_host_suspends_what_the_guest_has_put_to_sleep,
    a_device_without_a_reset_is_reset_along_with_its_idle_neighbour,
);

const PINGS: u64 = 5;
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);
/// How soon the host suspends a device that it may.
const SOON: Duration = Duration::from_secs(20);

/// A guest whose task `life` is this script.
fn guest(host: &Host, backend: Backend, script: &str) -> Result<Run, HostError> {
    let tasks = format!("task_life() {{\n{script}\n}}\n");
    let initrd = host.guest_initrd("life.cpio", &[], &tasks)?;
    Ok(Run::tasks("life,poweroff")
        .initrd(Some(initrd))
        .iommu(backend)
        .cmdline(&format!("lab.pings={PINGS}"))
        .arg("--log=debug"))
}

/// Every network card had its packets back, each time.
fn assert_network(outcome: &Outcome, times: usize) -> Markers {
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    let markers = Markers::of(&outcome.lines);
    let nets: Vec<_> = markers.all("net").collect();
    assert_eq!(nets.len(), times, "{nets:?}\n{}", outcome.stderr);
    for net in nets {
        assert_eq!(net.number("received"), Some(PINGS), "{net:?}");
    }
    markers
}

fn runtime_status(host: &Host, device: &str) -> Result<String, HostError> {
    let address = host.address(device)?;
    let path = format!("/sys/bus/pci/devices/{address}/power/runtime_status");
    Ok(host.shell(&format!("cat {path}"))?.trim().to_owned())
}

/// Waits for a status of the device, and fails when another stays.
fn await_status(host: &Host, device: &str, expected: &str) -> Result<(), HostError> {
    let deadline = Instant::now() + SOON;
    loop {
        let status = runtime_status(host, device)?;
        if status == expected {
            return Ok(());
        }
        assert!(
            Instant::now() < deadline,
            "{device} is {status}, not {expected}"
        );
    }
}

fn the_host_suspends_what_the_guest_has_put_to_sleep(backend: Backend) {
    let machine = Machine::new(format!("suspend-{backend}")).device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["nic"])?;
        // By its registers: the guest's kernel leaves one without a driver awake.
        let script = "task_net
            unbind 8086:10d3
            config=$device/config
            power=$(byte $config 52)
            until [ $power -eq 0 ] || [ $(byte $config $power) -eq 1 ]; do
                power=$(byte $config $((power + 1)))
            done
            # The way back costs it its BARs' addresses.
            dd if=$config of=/bars bs=4 skip=4 count=6 2>/dev/null
            for round in 1 2; do
                poke $config $((power + 4)) 003
                marker asleep \"state=$(($(byte $config $((power + 4))) & 3))\"
                task_hold
                marker still \"vendor=$(byte $config 0) command=$(byte $config 4)\"
                poke $config $((power + 4)) 000
                marker awake
                task_hold
            done
            dd if=/bars of=$config bs=4 seek=4 conv=notrunc 2>/dev/null
            rebind
            task_net";
        let run = guest(host, backend, script)?.device(host.address("nic")?);
        let mut process = host.start(&run.step())?;
        for _ in 0..2 {
            process.wait_line("lab: asleep", BOOT)?;
            await_status(host, "nic", "suspended")?;
            process.write(b"\n")?;
            process.wait_line("lab: awake", BOOT)?;
            await_status(host, "nic", "active")?;
            process.write(b"\n")?;
        }
        let outcome = process.wait()?;
        let markers = assert_network(&outcome, 2);
        for asleep in markers.all("asleep") {
            assert_eq!(asleep.number("state"), Some(3), "{asleep:?}");
        }
        for still in markers.all("still") {
            assert_eq!(still.number("vendor"), Some(0x86), "{still:?}");
        }
        let count = |text: &str| outcome.stderr.matches(text).count();
        assert_eq!(count("the host may suspend it"), 2, "{}", outcome.stderr);
        assert_eq!(count("the host keeps it awake"), 2, "{}", outcome.stderr);
        Ok(())
    });
}

/// What a guest does to the first of its cards.
const RESET: &str = "task_net
    unbind 8086:10d3
    echo bus >$device/reset_method
    echo 1 >$device/reset && marker reset
    rebind
    task_net";

/// `airlock inspect` says that a reset of `one` hits `other`.
fn assert_shares(
    host: &Host,
    options: &[&str],
    one: PciAddress,
    other: PciAddress,
) -> Result<(), HostError> {
    let device = one.to_string();
    let words = [&["inspect", &device], options].concat();
    let text = host.run(&airlock(words))?.expect_success()?.stdout;
    let resets = format!("resets: only by a hot reset of its bus, along with {other}\n");
    assert!(text.contains(&resets), "{text}");
    Ok(())
}

fn a_device_without_a_reset_is_reset_along_with_its_idle_neighbour(backend: Backend) {
    let machine = Machine::new(format!("hot-reset-{backend}"))
        .slot(Slot::Port {
            acs: true,
            functions: vec![Device::e1000e("card"), Device::e1000e("neighbour")],
        })
        .slot(Slot::ConventionalBridge(vec![
            Device::e1000("old-a"),
            Device::e1000("old-b"),
        ]))
        // With ports as ACPI's hotplug has them, QEMU tells of no link after a
        // reset, and the kernel takes it for failed (ENOTTY).
        .qemu_args([
            "-global",
            "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        ]);
    scenario(&machine, |host| {
        // All of its ways are forbidden, as if it had none.
        let card = host.address("card")?;
        host.shell(&format!("echo >/sys/bus/pci/devices/{card}/reset_method"))?;
        for (one, other) in [("card", "neighbour"), ("old-a", "old-b")] {
            let (one, other) = (host.address(one)?, host.address(other)?);
            assert_shares(host, &[], one, other)?;
            let advice = format!("bind {other} to vfio-pci as well");
            let text = host.run(&check(&[one]))?.stdout;
            assert!(text.contains(&advice), "{text}");
        }
        host.bind_vfio(&["card", "neighbour", "old-a", "old-b"])?;
        for (one, other) in [("card", "neighbour"), ("old-a", "old-b")] {
            let (one, other) = (host.address(one)?, host.address(other)?);
            let text = host.run(&check(&[one]))?.stdout;
            assert!(text.contains("when the guest resets it"), "{text}");
            assert_shares(host, &["--open"], one, other)?;
        }

        let run = guest(host, backend, RESET)?.device(card);
        let outcome = host.run(&run.step())?;
        let markers = assert_network(&outcome, 2);
        assert!(markers.first("reset").is_some(), "{}", outcome.stderr);
        let hot = format!("{card}: hot reset of ");
        assert!(outcome.stderr.contains(&hot), "{}", outcome.stderr);
        assert!(
            !outcome.stderr.contains("was not reset"),
            "{}",
            outcome.stderr
        );

        // Nobody else's is reset along, not even this guest's own.
        let neighbour = host.address("neighbour")?;
        let run = guest(host, backend, RESET)?.device(card).device(neighbour);
        let outcome = host.run(&run.step())?;
        assert_network(&outcome, 4);
        let refusal = format!("a reset of its bus would disturb {neighbour}");
        assert!(outcome.stderr.contains(&refusal), "{}", outcome.stderr);
        assert!(!outcome.stderr.contains(&hot), "{}", outcome.stderr);
        Ok(())
    });
}
