//! What `airlock inspect` says, against the host and against what guests find.

use lab::airlock::{Run, installed};
use lab::host::{Exit, Host, HostError, Step};
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::scenario;
use serde_json::Value;

/// `airlock inspect --json`, with further arguments.
fn inspect(host: &Host, device: &str, more: &[&str]) -> Result<Value, HostError> {
    let mut argv = vec![installed("airlock"), "inspect".into(), "--json".into()];
    argv.extend(more.iter().map(ToString::to_string));
    argv.push(host.address(device)?.to_string());
    let outcome = host.run(&Step::argv(argv))?;
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    Ok(serde_json::from_str(&outcome.stdout).expect("no JSON"))
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().expect("no digits").as_bytes();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("no number") as usize
}

/// Every byte that differs lies in a difference that shows it and says why.
fn assert_explained(inspection: &Value) {
    let (physical, guest) = (bytes(&inspection["physical"]), bytes(&inspection["guest"]));
    let mut explained = vec![false; guest.len()];
    let differences = inspection["differences"].as_array().unwrap();
    let names: Vec<_> = differences
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    for name in ["command", "BAR 0", "link capabilities: power states"] {
        let found = names.iter().any(|names| names.contains(name));
        assert!(found, "{name}: {differences:?}");
    }
    for difference in differences {
        let from = number(&difference["offset"]);
        let shown = bytes(&difference["physical"]);
        let range = from..from + shown.len();
        assert_eq!(shown, physical[range.clone()], "{difference}");
        assert_eq!(
            bytes(&difference["guest"]),
            guest[range.clone()],
            "{difference}"
        );
        assert_ne!(difference["reason"], "", "{difference}");
        explained[range].fill(true);
    }
    for at in 0..physical.len() {
        assert!(
            physical[at] == guest[at] || explained[at],
            "{at:#x} differs silently"
        );
    }
}

/// Of what a guest `found`, everything that the rules say is constant is as
/// the inspection has it. Of several rules for one bit the last one counts.
fn assert_constants(inspection: &Value, found: &[u8]) {
    let guest = bytes(&inspection["guest"]);
    let mut constant = vec![0; guest.len()];
    for register in inspection["registers"].as_array().unwrap() {
        let handling = register["handling"].as_object().unwrap();
        let stays = handling.contains_key("constant") || handling.contains_key("value");
        let (from, bits) = (
            number(&register["offset"]),
            number(&register["bits"]) as u32,
        );
        for at in 0..number(&register["size"]) {
            let bits = bits.to_le_bytes()[at % 4];
            let other = constant[from + at] & !bits;
            constant[from + at] = other | if stays { bits } else { 0 };
        }
    }
    for (at, mask) in constant.iter().enumerate() {
        let (told, found) = (guest[at] & mask, found[at] & mask);
        assert_eq!(found, told, "at {at:#x}, of the bits {mask:#x}");
    }
    let bits: u32 = constant.iter().map(|mask| mask.count_ones()).sum();
    assert!(bits > 30_000, "the rules leave only {bits} bits constant");
}

#[test]
fn what_is_told_is_what_the_guest_finds() {
    let machine = Machine::new("inspect")
        .device(Device::nvme("disk", Disk::seeded(1 << 20, 5)))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        let mut views = Vec::new();
        for device in ["disk", "nic"] {
            let driver = host.driver(device)?;
            let inspection = inspect(host, device, &[])?;
            assert_eq!(inspection["source"], "sysfs");
            assert_eq!(inspection["placement"], "behind-port");
            let address = host.address(device)?;
            let config = format!("od -An -v -tx1 /sys/bus/pci/devices/{address}/config");
            let config = host.shell(&format!("{config} | tr -d ' \\n'"))?;
            assert_eq!(inspection["physical"], config);
            // The guest gets all interrupts that the device has.
            for kind in inspection["interrupts"].as_array().unwrap() {
                assert_eq!(kind["guest"], kind["vectors"], "{device}: {kind}");
            }
            assert_explained(&inspection);
            assert_eq!(host.driver(device)?, driver, "it is left where it is");
            views.push(inspection);
        }
        host.bind_vfio(&["disk", "nic"])?;
        for (device, by_sysfs) in ["disk", "nic"].into_iter().zip(&views) {
            let inspection = inspect(host, device, &["--open"])?;
            assert_eq!(inspection["source"], "vfio");
            assert_explained(&inspection);
            let view = |inspection: &Value| bytes(&inspection["guest"]);
            let pairs = view(by_sysfs)
                .into_iter()
                .zip(view(&inspection))
                .enumerate();
            let other: Vec<_> = pairs.filter(|(_, (a, b))| a != b).collect();
            assert!(
                other.is_empty(),
                "{device}: VFIO makes another view: {other:x?}"
            );
        }
        let mut run = Run::tasks("nvme,dump,poweroff").cmdline("lab.bytes=65536");
        for device in ["disk", "nic"] {
            run = run.device(host.address(device)?);
        }
        let outcome = host.run(&run.step())?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        for (id, inspection) in ["0x1b36:0x0010", "0x8086:0x10d3"].into_iter().zip(&views) {
            let found = markers.all("dump").find(|marker| marker.value("id") == id);
            let found = found.expect("the guest has no such device").value("bytes");
            assert_constants(inspection, &bytes(&found.into()));
        }
        Ok(())
    });
}
