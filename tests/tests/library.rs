//! The crate `passthrough` by itself: its examples, and devices that somebody
//! else has opened.

use lab::airlock::{Run, installed};
use lab::host::{Exit, Host, HostError, Outcome, Step};
use lab::machine::{Device, Disk, Machine};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(files_from_a_launcher);

const BYTES: u64 = 1 << 20;
/// Nobody's user and group, on every Debian.
const NOBODY: u32 = 65534;

fn disk() -> Disk {
    Disk::seeded(4 << 20, 71)
}

fn machine(name: String) -> Machine {
    Machine::new(name).device(Device::nvme("disk", disk()))
}

fn example(host: &Host, name: &str, backend: Backend) -> Result<Outcome, HostError> {
    let device = host.address("disk")?.to_string();
    host.run(&Step::argv([installed(name), device, backend.to_string()]))
}

/// A driver in user space: an admin queue, one command, its interrupt and its
/// answer, twice on each backend; and the host's driver works afterwards.
#[test]
fn a_driver_in_user_space() {
    scenario(&machine("identify".to_owned()), |host| {
        host.bind_vfio(&["disk"])?;
        // It needs no KVM.
        host.shell("mv /dev/kvm /dev/none")?;
        for backend in [Backend::BOTH, Backend::BOTH].concat() {
            let outcome = example(host, "nvme_identify", backend)?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            let text = &outcome.stdout;
            assert!(text.contains("model 'QEMU NVMe Ctrl'"), "{text}");
            let by = match backend {
                Backend::Type1 => "type1 container",
                Backend::Iommufd => "iommufd",
            };
            assert!(text.contains(by), "{text}");
        }
        host.bind("disk", "nvme")?;
        assert_eq!(
            host.disk_digest("disk", BYTES)?,
            disk().digest(BYTES).unwrap()
        );
        let missing = Step::argv([installed("nvme_identify"), "0000:77:00.0".to_owned()]);
        let outcome = host.run(&missing)?;
        assert_eq!(outcome.exit, Exit::Status(1));
        assert!(
            outcome.stderr.contains("0000:77:00.0"),
            "{}",
            outcome.stderr
        );
        Ok(())
    });
}

/// The smallest monitor: its guest reads the device's identity by config space
/// and its version register through the BAR.
#[test]
fn the_smallest_monitor() {
    scenario(&machine("embed".to_owned()), |host| {
        host.bind_vfio(&["disk"])?;
        let id = |file: &str| -> Result<String, HostError> {
            let path = format!("/sys/bus/pci/devices/{}/{file}", host.address("disk")?);
            let text = host.shell(&format!("cat {path}"))?;
            Ok(text.trim().trim_start_matches("0x").to_owned())
        };
        let id = format!("{}{}", id("device")?, id("vendor")?);
        let id = id.trim_start_matches('0').to_owned();
        for backend in Backend::BOTH {
            let outcome = example(host, "embed", backend)?;
            assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
            // The controller is of version 1.4.
            let expected = format!("the guest read [{id}, 10400]");
            assert_eq!(outcome.stdout.trim(), expected);
        }
        Ok(())
    });
}

/// A process that may open none of the files gets them from one that may: a
/// shell that opens them and becomes nobody.
fn files_from_a_launcher(backend: Backend) {
    scenario(&machine(format!("launcher-{backend}")), |host| {
        host.bind_vfio(&["disk"])?;
        host.shell("chmod 666 /dev/kvm; chmod 600 /dev/vfio/vfio /dev/iommu")?;
        let device = host.address("disk")?;
        let run = Run::tasks("nvme,poweroff")
            .cmdline(&format!("lab.bytes={BYTES}"))
            .iommu(backend)
            .device(device)
            .arg("--on-viability-loss")
            .arg("warn");
        let (open, fds) = match backend {
            Backend::Iommufd => {
                let name = host.shell(&format!("ls /sys/bus/pci/devices/{device}/vfio-dev"))?;
                let cdev = format!("/dev/vfio/devices/{}", name.trim());
                let fds = format!("--fd iommufd=5 --fd {device}=6");
                (format!("5<>/dev/iommu 6<>{cdev}"), fds)
            }
            Backend::Type1 => {
                let group = host.group("disk")?.expect("a group");
                let fds = format!("--fd container=5 --fd group/{group}=6");
                (format!("5<>/dev/vfio/vfio 6<>/dev/vfio/{group}"), fds)
            }
        };
        let launch = |open: &str, fds: &str| {
            let script = format!(
                "exec {open}
                 exec prlimit --memlock=$((1024 * 1024 * 1024)) \\
                     setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \\
                     --bounding-set=-all --inh-caps=-all \\
                     {} {fds}",
                quoted(&run.step())
            );
            host.run(&Step::shell(script).limit(std::time::Duration::from_secs(90)))
        };
        let refused = launch("5</dev/null", "")?;
        assert_eq!(refused.exit, Exit::Status(1), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("may not open"),
            "{}",
            refused.stderr
        );
        let outcome = launch(&open, &fds)?;
        assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
        let markers = Markers::of(&outcome.lines);
        let read = markers.first("nvme-read").expect("the guest read nothing");
        assert_eq!(
            read.value("sha256"),
            disk().digest(BYTES).unwrap().to_string()
        );
        // The files went with the process.
        host.bind("disk", "nvme")?;
        assert_eq!(
            host.disk_digest("disk", BYTES)?,
            disk().digest(BYTES).unwrap()
        );
        Ok(())
    });
}

/// A step as words of a shell.
fn quoted(step: &Step) -> String {
    let words = step.words().iter();
    let quoted: Vec<_> = words.map(|word| format!("'{word}'")).collect();
    quoted.join(" ")
}
