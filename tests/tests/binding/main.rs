//! Devices go to VFIO and come back, whatever happens in between.

mod ends;
mod give_back;
mod hotplug;
mod in_use;
mod variants;

use std::time::Duration;

use lab::airlock::airlock;
use lab::host::{Exit, Host, HostError, Outcome};
use lab::machine::Disk;
use lab::markers::Markers;
use serde_json::Value;

/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);
/// What the kernel and airlock do between themselves.
const SOON: Duration = Duration::from_secs(30);

const BYTES: u64 = 1 << 20;

fn disk() -> Disk {
    Disk::seeded(4 << 20, 23)
}

/// airlock with these words; a word that names a device becomes its address.
fn run(host: &Host, words: &[&str]) -> Result<Outcome, HostError> {
    let words = words.iter().map(|word| match host.address(word) {
        Ok(address) => address.to_string(),
        Err(_) => (*word).to_owned(),
    });
    host.run(&airlock(words))
}

/// The same, and it succeeds.
#[track_caller]
fn succeeds(host: &Host, words: &[&str]) -> Result<String, HostError> {
    let outcome = run(host, words)?;
    let told = format!("{words:?}: {}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.exit, Exit::Status(0), "{told}");
    Ok(outcome.stdout)
}

/// The same, and it is refused with all of `reasons` on standard error.
#[track_caller]
fn refused(host: &Host, words: &[&str], reasons: &[&str]) -> Result<(), HostError> {
    let outcome = run(host, words)?;
    let told = format!("{words:?}: {}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.exit, Exit::Status(1), "{told}");
    for reason in reasons {
        assert!(outcome.stderr.contains(reason), "no '{reason}' in {told}");
    }
    Ok(())
}

/// What airlock holds, as `airlock bindings --json` says.
fn bindings(host: &Host) -> Result<Vec<Value>, HostError> {
    let text = succeeds(host, &["bindings", "--json"])?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// All that binding changes about these devices, a line each.
fn state(host: &Host, devices: &[&str]) -> Result<String, HostError> {
    let mut script = String::new();
    for device in devices {
        let address = host.address(device)?;
        script.push_str(&format!(
            "cd /sys/bus/pci/devices/{address}
             driver=$(readlink driver || true)
             vfs=$(cat sriov_numvfs 2>/dev/null || true)
             echo {device}: ${{driver##*/}} $(cat driver_override power/control) $vfs
             "
        ));
    }
    host.shell(&script)
}

/// Everything is as it was, and nothing is noted for later.
#[track_caller]
fn assert_as_before(host: &Host, devices: &[&str], before: &str) -> Result<(), HostError> {
    assert_eq!(state(host, devices)?, before);
    let journals = host.shell("ls -A /run/airlock/bindings 2>/dev/null || true")?;
    assert_eq!(journals, "", "journals are left");
    Ok(())
}

/// The host has its NVMe back when it reads what the image holds.
#[track_caller]
fn assert_disk_works(host: &Host) -> Result<(), HostError> {
    let expected = disk().digest(BYTES).unwrap();
    assert_eq!(host.disk_digest("disk", BYTES)?, expected);
    Ok(())
}

/// The guest's NIC is on `driver`, and packets came and went.
#[track_caller]
fn assert_guest_had_network(outcome: &Outcome, driver: &str) {
    let markers = Markers::of(&outcome.lines);
    let told = || panic!("the guest had no network: {}", outcome.stdout);
    let net = markers.first("net").unwrap_or_else(told);
    assert_eq!(net.value("driver"), driver);
    assert_eq!(net.number("received"), Some(3), "{net:?}");
}

/// The host has its NIC back when packets come and go.
#[track_caller]
fn assert_nic_works(host: &Host, nic: &str) -> Result<(), HostError> {
    let answered = host.ping(nic, 2)?;
    if answered != 2 {
        let log = host.shell("dmesg | tail -n 20")?;
        panic!("{answered} of 2 packets came back to {nic}; the kernel's log:\n{log}");
    }
    Ok(())
}
