//! Prediction and claim: whatever the plan foretells of the kernel, the kernel
//! does. A claim goes by groups for either backend.

use std::time::Duration;

use lab::airlock::{Run, installed};
use lab::host::{Exit, Host, HostError, Step};
use lab::machine::{Device, Disk, Iommu, Machine, Slot};
use lab::{Backend, scenario};
use serde_json::Value;

const BOOT: Duration = Duration::from_secs(60);

/// What a plan says, its predictions and its claim apart.
struct Report {
    text: String,
    predicted: bool,
    claimed: bool,
}

/// Checks `device` and claims it. Prediction and claim must agree.
#[track_caller]
fn report(host: &Host, device: &str, options: &[&str]) -> Result<Report, HostError> {
    let address = host.address(device)?.to_string();
    let mut argv = vec![installed("airlock"), "check".to_owned(), address];
    argv.extend(["--claim", "--json"].map(str::to_owned));
    argv.extend(options.iter().map(|option| (*option).to_owned()));
    let outcome = host.run(&Step::argv(argv))?;
    let text = outcome.stdout;
    let plan: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", outcome.stderr);
    });
    let items = plan["items"].as_array().unwrap();
    let (claim, prediction): (Vec<_>, Vec<_>) =
        items.iter().partition(|item| item["check"] == "claim");
    assert!(!claim.is_empty(), "nothing was claimed: {text}");
    assert!(!text.contains("DISAGREE"), "{text}");
    let goes = |items: &[&Value]| items.iter().all(|item| item["outcome"] != "failed");
    let (predicted, claimed) = (goes(&prediction), goes(&claim));
    let status = if predicted && claimed { 0 } else { 1 };
    assert_eq!(outcome.exit, Exit::Status(status), "{text}");
    Ok(Report {
        text,
        predicted,
        claimed,
    })
}

/// Plan and kernel both say `expected`, and the plan says `words`.
#[track_caller]
fn agree(
    host: &Host,
    device: &str,
    options: &[&str],
    expected: bool,
    words: &[&str],
) -> Result<(), HostError> {
    let report = report(host, device, options)?;
    let Report { text, .. } = &report;
    assert_eq!(
        report.predicted, expected,
        "prediction for {device}: {text}"
    );
    assert_eq!(report.claimed, expected, "claim of {device}: {text}");
    for word in words {
        assert!(text.contains(word), "no '{word}' in {text}");
    }
    Ok(())
}

/// Puts a device on a driver, or on none.
fn put(host: &Host, device: &str, driver: &str) -> Result<(), HostError> {
    if !driver.is_empty() {
        return host.bind(device, driver);
    }
    let address = host.address(device)?;
    host.shell(&format!(
        "cd /sys/bus/pci/devices/{address} && if [ -e driver ]; then echo {address} > driver/unbind; fi"
    ))?;
    Ok(())
}

fn disk() -> Device {
    Device::nvme("disk", Disk::pattern(1 << 20))
}

#[test]
fn conventional_devices_behind_one_bridge() {
    let pair = vec![Device::e1000("old-a"), Device::e1000("old-b")];
    let machine = Machine::new("conventional").slot(Slot::ConventionalBridge(pair));
    scenario(&machine, |host| {
        listed(host)?;
        const DRIVERS: [&str; 4] = ["e1000", "", "vfio-pci", "pci-stub"];
        for first in DRIVERS {
            put(host, "old-a", first)?;
            for second in DRIVERS {
                put(host, "old-b", second)?;
                let goes = first == "vfio-pci" && second != "e1000";
                agree(host, "old-a", &[], goes, &[])?;
                let driver = host.driver("old-b")?.unwrap_or_default();
                assert_eq!(driver, second, "the claim changed nothing");
            }
        }
        // What the user reads in the most common case.
        put(host, "old-a", "vfio-pci")?;
        put(host, "old-b", "e1000")?;
        let words = ["owns the DMA", "Operation not permitted", "airlock bind"];
        agree(host, "old-a", &[], false, &words)?;
        // The group came back: its other device works on as before.
        let interface = host.address("old-b")?;
        host.shell(&format!("ls /sys/bus/pci/devices/{interface}/net"))?;
        put(host, "old-b", "vfio-pci")?;
        agree(host, "old-a", &[], true, &["has it back"])?;
        agree(host, "old-b", &[], true, &["has it back"])?;
        Ok(())
    });
}

/// `airlock devices` shows the pair in one group, to any user.
fn listed(host: &Host) -> Result<(), HostError> {
    let group = host.group("old-a")?.unwrap().to_string();
    let (first, second) = (host.address("old-a")?, host.address("old-b")?);
    let list = |option: &str| {
        let airlock = installed("airlock");
        let nobody = "exec setpriv --reuid=65534 --clear-groups --";
        let script = format!("chmod 0755 /run/lab && {nobody} {airlock} devices {option}");
        let text = host.run(&Step::shell(script))?.expect_success()?.stdout;
        assert!(!text.contains('\x1b'), "colour in a pipe: {text}");
        Ok::<_, HostError>(text)
    };
    let tree = list("--tree")?;
    for (joint, branch, address) in [("│", "├─", first), ("╰", "└─", second)] {
        let mut lines = tree.lines();
        let line = lines.find(|line| line.contains(&format!("{branch} {address}")));
        let line = line.unwrap_or_else(|| panic!("{tree}"));
        assert!(line.starts_with(joint), "{tree}");
        assert!(line.contains(&format!(" {group}  ")), "{tree}");
        assert!(line.contains("Ethernet controller (e1000)"), "{tree}");
    }
    let table = list("")?;
    let mut lines = table.lines();
    let line = lines.find(|line| line.starts_with(&first.to_string()));
    assert!(
        line.is_some_and(|line| line.contains(&format!("{group} (3)"))),
        "{table}"
    );
    let json: Value = serde_json::from_str(&list("--json")?).unwrap();
    let mut devices = json["devices"].as_array().unwrap().iter();
    let device = devices.find(|device| device["address"] == first.to_string());
    assert_eq!(device.unwrap()["group"].to_string(), group);
    Ok(())
}

#[test]
fn ports_without_acs_share_a_group_and_a_holder_keeps_it() {
    let machine = Machine::new("no-acs").device(disk()).slot(Slot::Ports {
        acs: false,
        devices: vec![Device::e1000e("below-a"), Device::e1000e("below-b")],
    });
    scenario(&machine, |host| {
        host.bind_vfio(&["below-a"])?;
        let other = host.address("below-b")?.to_string();
        agree(host, "below-a", &[], false, &[&other, "e1000e"])?;
        // The ports are on pcieport, which does no DMA.
        put(host, "below-b", "")?;
        agree(host, "below-a", &[], true, &["pcieport"])?;
        host.bind_vfio(&["below-b"])?;
        agree(host, "below-b", &[], true, &[])?;

        let disk = host.address("disk")?;
        host.bind_vfio(&["disk"])?;
        for backend in Backend::BOTH {
            let run = |tasks| Run::tasks(tasks).iommu(backend).device(disk).step();
            let mut guest = host.start(&run("nvme,sleep"))?;
            guest.wait_line("lab: sleep", BOOT)?;
            let pid = guest.pid().to_string();
            let words = ["is in use", &pid, "another process uses the group", "busy"];
            agree(host, "disk", &[], false, &words)?;
            // The claim takes nothing from the guest; it ends as it would have.
            assert!(guest.is_running());
            guest.signal(15)?;
            guest.wait()?;
            agree(host, "disk", &[], true, &[])?;
            // What was claimed can be run.
            host.run(&run("nvme,poweroff"))?.expect_success()?;
        }
        Ok(())
    });
}

#[test]
fn interrupt_remapping_off() {
    let iommu = Iommu {
        interrupt_remapping: false,
        ..Iommu::default()
    };
    let machine = Machine::new("forging").iommu(Some(iommu)).device(disk());
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        let words = [
            "interrupt remapping is off",
            "interrupts of the group are not isolated",
        ];
        const ALLOW: &str = "--allow-unsafe-interrupts";
        let backends = Backend::BOTH.map(|backend| backend.to_string());
        for backend in &backends {
            agree(host, "disk", &["--iommu", backend], false, &words)?;
            let options = ["--iommu", backend, ALLOW];
            agree(host, "disk", &options, false, &words[1..])?;
        }
        // A claim is by group: it follows type1's parameter. The plan follows
        // that of its backend.
        for backend in Backend::BOTH {
            host.shell(&format!("echo Y > {}", backend.unsafe_interrupts()))?;
        }
        for backend in &backends {
            let options = ["--iommu", backend, ALLOW];
            agree(host, "disk", &options, true, &["unsafe"])?;
            // The kernel was told to take it. The user was not asked: airlock
            // refuses.
            let refused = report(host, "disk", &["--iommu", backend])?;
            assert!(!refused.predicted && refused.claimed, "{}", refused.text);
        }
        Ok(())
    });
}

/// The largest guest that an IOMMU of `bits` reaches, and one just beyond it:
/// memory leaves out the GiB below 4 GiB.
fn reach(bits: u8) -> (String, String) {
    let gib = 1u64 << (bits - 30);
    (format!("{}G", gib - 1), format!("{gib}G"))
}

fn memory_within(bits: u8) {
    let iommu = Iommu {
        address_bits: bits,
        ..Iommu::default()
    };
    let name = format!("reach-{bits}");
    let machine = Machine::new(name).iommu(Some(iommu)).device(disk());
    scenario(&machine, |host| {
        host.bind_vfio(&["disk"])?;
        let (fits, beyond) = reach(bits);
        for memory in ["512M", "4G", &fits] {
            agree(
                host,
                "disk",
                &["--memory", memory],
                true,
                &["maps guest addresses"],
            )?;
        }
        let words = ["can't be mapped", "0xfef00000-"];
        agree(host, "disk", &["--memory", &beyond], false, &words)?;
        Ok(())
    });
}

#[test]
fn memory_within_39_bits() {
    memory_within(39);
}

#[test]
fn memory_within_48_bits() {
    memory_within(48);
}
