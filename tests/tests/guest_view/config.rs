//! Config space as guests find it, byte by byte.

use lab::airlock::installed;
use lab::host::{Exit, Host, HostError, Step};
use lab::machine::{Device, DeviceModel, Machine};
use lab::{Backend, on_both_backends, scenario};
use serde_json::Value;

use super::guest::{NIC, NVME, disk, finish, run};

on_both_backends!(every_difference_is_explained);

/// Vendor-specific capabilities, AER and ATS.
const RNG: &str = "1af4:1044";

/// The registers, by the beginning of their names, that a guest's kernel and
/// drivers have written by then, or that the device changes: what stands there
/// is nobody's difference.
const DYNAMIC: &[&str] = &[
    "command: ",
    "BAR ",
    "expansion ROM",
    "message control: enable",
];

fn inspect(host: &Host, device: &str, option: &str) -> Result<String, HostError> {
    let mut argv = vec![installed("airlock"), "inspect".to_owned()];
    argv.extend((!option.is_empty()).then(|| option.to_owned()));
    argv.push(host.address(device)?.to_string());
    let outcome = host.run(&Step::argv(argv))?;
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    assert_eq!(outcome.stderr, "");
    Ok(outcome.stdout)
}

fn bytes(digits: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.as_bytes().chunks(2).map(pair).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("no number") as usize
}

/// Of what a guest found, each bit is the host's, or in a difference that tells
/// its value, or in a register that changes in use; gives those that are not.
fn unexplained(inspection: &Value, found: &[u8]) -> Vec<String> {
    let mut expected = bytes(inspection["physical"].as_str().unwrap());
    expected.resize(found.len(), 0);
    for difference in inspection["differences"].as_array().unwrap() {
        let from = number(&difference["offset"]);
        let guest = bytes(difference["guest"].as_str().unwrap());
        expected[from..from + guest.len()].copy_from_slice(&guest);
    }
    // Who answers for each bit, by the rules: of several the last one.
    let mut rules = vec![[""; 8]; found.len()];
    for register in inspection["registers"].as_array().unwrap() {
        let handling = register["handling"].as_object().unwrap();
        let stays = handling.contains_key("constant") || handling.contains_key("value");
        let name = register["name"].as_str().unwrap();
        let (from, bits) = (number(&register["offset"]), number(&register["bits"]));
        for at in 0..number(&register["size"]) {
            let bits = bits >> (at % 4 * 8);
            for bit in (0..8).filter(|bit| bits >> bit & 1 != 0) {
                rules[from + at][bit] = if stays { "" } else { name };
            }
        }
    }
    let mut wrong = Vec::new();
    for (at, byte) in found.iter().enumerate() {
        let other = byte ^ expected[at];
        for bit in (0..8).filter(|bit| other >> bit & 1 != 0) {
            let name = rules[at][bit];
            if !DYNAMIC.iter().any(|known| name.starts_with(known)) {
                let device = &inspection["device"];
                wrong.push(format!("{device} {at:#x} bit {bit} '{name}': {byte:#x}"));
            }
        }
    }
    wrong
}

fn every_difference_is_explained(backend: Backend) {
    let entropy = DeviceModel::Other("virtio-rng-pci".to_owned());
    let entropy = ["aer=on", "ats=on", "disable-legacy=on", "iommu_platform=on"]
        .into_iter()
        .fold(Device::new("rng", entropy), Device::property);
    let machine = Machine::new(format!("views-{backend}"))
        .device(Device::nvme("disk", disk()))
        .device(Device::e1000e("nic"))
        .device(entropy);
    let devices = [("disk", NVME), ("nic", NIC), ("rng", RNG)];
    scenario(&machine, |host| {
        for driver in ["host", "vfio"] {
            for (name, id) in devices {
                let text = inspect(host, name, "")?;
                let lower = text.to_lowercase();
                for part in [id, "capabilities", "regions", "host against guest"] {
                    assert!(lower.contains(part), "{driver}: {part}: {text}");
                }
                let raw = inspect(host, name, "--raw")?;
                let (vendor, device) = id.split_once(':').unwrap();
                let first = format!(
                    "000:  {} {} {} {} ",
                    &vendor[2..],
                    &vendor[..2],
                    &device[2..],
                    &device[..2]
                );
                let row = raw.lines().find(|line| line.starts_with(&first));
                assert!(
                    row.is_some_and(|row| row.matches(&first[6..]).count() == 2),
                    "{raw}"
                );
            }
            host.bind_vfio(&["disk", "nic", "rng"])?;
        }
        let mut script = String::new();
        for (_, id) in devices {
            script += &format!("guest-pci doors {id}\n");
        }
        let mut run = run(host, backend, &script)?;
        let mut inspections = Vec::new();
        for (name, _) in devices {
            run = run.device(host.address(name)?);
            let inspection = inspect(host, name, "--json")?;
            inspections.push(serde_json::from_str(&inspection).expect("no JSON"));
        }
        let markers = finish(host, &run)?;
        let doors: Vec<_> = markers.all("doors").collect();
        assert_eq!(doors.len(), devices.len());
        let mut wrong = Vec::new();
        for (inspection, doors) in inspections.iter().zip(doors) {
            assert_eq!(doors.number("size"), Some(4096));
            assert_eq!(doors.number("other"), Some(0), "{}", doors.value("first"));
            wrong.extend(unexplained(inspection, &bytes(doors.value("bytes"))));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        Ok(())
    });
}
