//! The three kinds of interrupts, each as a guest's driver uses it.

use std::time::Duration;

use lab::airlock::Run;
use lab::host::{Exit, Host, HostError};
use lab::machine::{Device, Machine, Slot};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(
    packets_by_msix_and_by_the_pin,
    an_interrupt_costs_no_exit_to_airlock,
    each_msi_arrives_once,
    each_interrupt_of_a_pin_arrives_once,
    two_cards_on_one_line,
);

const PINGS: u64 = 20;
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);

/// How an interrupt of a pin ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// KVM tells the host's kernel.
    Resampled,
    /// As on hosts whose KVM does not.
    Trapped,
}

impl End {
    fn of(self, run: Run) -> Run {
        match self {
            Self::Resampled => run,
            Self::Trapped => run.arg("--trap-intx"),
        }
    }
}

/// A guest whose network card is `nic`, told `words` on its command line. All
/// packets must come back, and all interrupts come in through `chip`.
fn pings(
    host: &Host,
    backend: Backend,
    nic: &str,
    words: &str,
    chip: &str,
    end: End,
) -> Result<(), HostError> {
    let run = Run::tasks("net,poweroff")
        .cmdline(&format!("lab.pings={PINGS} {words}"))
        .iommu(backend)
        .device(host.address(nic)?)
        .arg("--stats");
    let outcome = host.run(&end.of(run).step())?;
    let told = format!("{nic} {words}: {}", outcome.stderr);
    assert_eq!(outcome.exit, Exit::Status(0), "{told}");
    let markers = Markers::of(&outcome.lines);
    let net = markers.first("net").expect("the guest has no network");
    assert_eq!(net.number("received"), Some(PINGS), "{net:?}; {told}");
    let mut total = 0;
    for vector in markers.all("interrupts") {
        let through = vector.value("chip");
        assert!(through.starts_with(chip), "{vector:?}; {told}");
        total += vector.number("count").unwrap_or(0);
    }
    assert!(total >= PINGS, "{PINGS} packets with {total} interrupts");
    // A line that nobody serves, or that is never let go, is turned off by
    // the guest's kernel after 100,000 interrupts.
    assert!(
        total < 100 * PINGS,
        "{total} interrupts for {PINGS} packets"
    );
    let trapped = outcome.stderr.contains("ended by an access");
    assert_eq!(trapped, end == End::Trapped, "{told}");
    Ok(())
}

fn packets_by_msix_and_by_the_pin(backend: Backend) {
    let machine = Machine::new(format!("interrupt-kinds-{backend}"))
        .device(Device::e1000e("nic"))
        .slot(Slot::ConventionalBridge(vec![Device::e1000("old-nic")]));
    scenario(&machine, |host| {
        host.bind_vfio(&["nic", "old-nic"])?;
        let pings = |nic, words, chip, end| pings(host, backend, nic, words, chip, end);
        pings("nic", "", "PCI-MSIX", End::Resampled)?;
        pings("nic", "pci=nomsi", "IO-APIC", End::Resampled)?;
        // The driver tries MSI, finds that QEMU's card can't do it, and goes
        // back to the pin.
        pings("nic", "e1000e.IntMode=1", "IO-APIC", End::Resampled)?;
        // A card that has only its pin.
        pings("old-nic", "", "IO-APIC", End::Resampled)?;
        pings("old-nic", "", "IO-APIC", End::Trapped)?;
        pings("nic", "pci=nomsi", "IO-APIC", End::Trapped)?;
        Ok(())
    });
}

/// How often vCPUs of the nested host have left KVM for an access to a BAR
/// that is not mapped.
fn trapped_accesses(host: &Host) -> Result<u64, HostError> {
    let text = host.shell("cat /sys/kernel/debug/kvm/mmio_exits")?;
    Ok(text.trim().parse().expect("a number"))
}

fn an_interrupt_costs_no_exit_to_airlock(backend: Backend) {
    let machine = Machine::new(format!("interrupt-exits-{backend}")).device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        host.bind_vfio(&["nic"])?;
        for (words, end) in [
            ("", End::Resampled),
            ("pci=nomsi", End::Resampled),
            ("pci=nomsi", End::Trapped),
        ] {
            let run = Run::tasks("net,nap,net,nap,poweroff")
                .cmdline(&format!("lab.pings={PINGS} {words}"))
                .iommu(backend)
                .device(host.address("nic")?);
            let mut guest = host.start(&end.of(run).step())?;
            // When all is set up and each vector has fired: packets alone.
            guest.wait_line("lab: nap-end", BOOT)?;
            let before = trapped_accesses(host)?;
            guest.wait_line("lab: net", BOOT)?;
            let exits = trapped_accesses(host)? - before;
            let outcome = guest.wait()?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let markers = Markers::of(&outcome.lines);
            for net in markers.all("net") {
                assert_eq!(net.number("received"), Some(PINGS), "{net:?}");
            }
            // At least one interrupt a packet, and one access for each.
            match end {
                End::Resampled => assert!(exits < PINGS / 2, "{words}: {exits} exits"),
                End::Trapped => assert!(exits >= PINGS, "{words}: {exits} exits"),
            }
        }
        Ok(())
    });
}

fn each_msi_arrives_once(backend: Backend) {
    const RAISED: u64 = 50;
    let machine = Machine::new(format!("msi-{backend}")).device(Device::edu("edu"));
    scenario(&machine, |host| {
        host.bind_vfio(&["edu"])?;
        let run = Run::tasks("msi,poweroff")
            .cmdline(&format!("lab.raise={RAISED}"))
            .iommu(backend)
            .device(host.address("edu")?);
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        let msi = markers.first("msi").expect("the guest has no edu");
        assert_eq!(msi.number("raised"), Some(RAISED));
        assert_eq!(
            msi.number("counted"),
            Some(RAISED),
            "none lost, none invented"
        );
        assert_eq!(msi.number("off"), Some(0), "{msi:?}");
        Ok(())
    });
}

fn each_interrupt_of_a_pin_arrives_once(backend: Backend) {
    const RAISED: u64 = 50;
    let machine = Machine::new(format!("pin-{backend}")).device(Device::edu("edu"));
    scenario(&machine, |host| {
        host.bind_vfio(&["edu"])?;
        for end in [End::Resampled, End::Trapped] {
            let run = Run::tasks("pin,poweroff")
                .cmdline(&format!("lab.raise={RAISED}"))
                .iommu(backend)
                .device(host.address("edu")?)
                .arg("--stats");
            let outcome = host.run(&end.of(run).step())?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let markers = Markers::of(&outcome.lines);
            let pin = markers
                .first("pin")
                .expect("the guest has no uio_pci_generic");
            assert_eq!(
                pin.number("counted"),
                Some(RAISED),
                "{pin:?}, {}",
                outcome.stderr
            );
            let line = markers.first("interrupts").expect("no line");
            assert!(line.value("chip").starts_with("IO-APIC"), "{line:?}");
            // Neither lost, nor repeated: the handler ran no more often.
            assert_eq!(
                line.number("count"),
                Some(RAISED),
                "{line:?}, {}",
                outcome.stderr
            );
        }
        Ok(())
    });
}

fn two_cards_on_one_line(backend: Backend) {
    // There are eight lines: the first device and the ninth share one.
    let between: Vec<_> = (2..9).map(|number| format!("edu-{number}")).collect();
    let mut machine =
        Machine::new(format!("shared-line-{backend}")).device(Device::e1000e("first"));
    for name in &between {
        machine = machine.slot(Slot::Integrated(Device::edu(name)));
    }
    let machine = machine.device(Device::e1000e("ninth"));
    scenario(&machine, |host| {
        let mut names = vec!["first"];
        names.extend(between.iter().map(String::as_str));
        names.push("ninth");
        host.bind_vfio(&names)?;
        for end in [End::Resampled, End::Trapped] {
            let mut run = Run::tasks("net,poweroff")
                .cmdline(&format!("lab.pings={PINGS} pci=nomsi"))
                .iommu(backend)
                .limit(Duration::from_secs(180));
            for name in &names {
                run = run.device(host.address(name)?);
            }
            let outcome = host.run(&end.of(run).step())?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let markers = Markers::of(&outcome.lines);
            let cards: Vec<_> = markers.all("net").collect();
            assert_eq!(cards.len(), 2, "{cards:?}");
            assert_eq!(cards[0].value("irq"), cards[1].value("irq"));
            for card in cards {
                assert_eq!(card.number("received"), Some(PINGS), "{card:?}");
            }
        }
        Ok(())
    });
}
