//! What airlock refuses: each with its own message, and the host as it was.

use std::time::Duration;

use lab::airlock::{Run, check, installed};
use lab::host::{Exit, Host, HostError, Outcome, Step};
use lab::machine::{Device, Disk, Iommu, Machine, Slot};
use lab::{Backend, scenario};

const DISK_BYTES: u64 = 1 << 20;
const BOOT: Duration = Duration::from_secs(60);

/// A guest that would boot.
fn good(host: &Host) -> Result<Run, HostError> {
    Ok(Run::tasks("poweroff").device(host.address("disk")?))
}

/// airlock ends with `status` and says all of `words` on standard error,
/// without a trace of a panic or of a guest.
fn assert_refused(outcome: &Outcome, status: i32, words: &[&str]) {
    let told = &outcome.stderr;
    assert_eq!(outcome.exit, Exit::Status(status), "{words:?}: {told}");
    for word in words {
        assert!(told.contains(word), "no '{word}' in: {told}");
    }
    for word in ["panicked", "RUST_BACKTRACE", "Linux version"] {
        assert!(!told.contains(word), "'{word}' in: {told}");
    }
    assert_eq!(outcome.stdout, "", "{words:?}");
}

fn refused(host: &Host, run: &Run, status: i32, words: &[&str]) -> Result<(), HostError> {
    assert_refused(&host.run(&run.step())?, status, words);
    Ok(())
}

fn machine(name: &str) -> Machine {
    Machine::new(name).device(Device::nvme("disk", Disk::pattern(DISK_BYTES)))
}

#[test]
fn files_and_sizes() {
    scenario(&machine("bad-files"), |host| {
        host.bind_vfio(&["disk"])?;
        let kernel = installed("bzImage");
        host.shell(&format!(
            "cd /run/lab && head -c 1000000 {kernel} > cut && head -c 100 {kernel} > stub
             head -c 1000000 vmlinux > cut-elf
             : > empty && echo '#!/bin/sh' > script && truncate -s 600M huge"
        ))?;
        let kernels: [(&str, &[&str]); 7] = [
            ("none", &["/run/lab/none", "No such file"]),
            ("", &["/run/lab/", "is a directory"]),
            ("script", &["/run/lab/script", "not a kernel"]),
            ("empty", &["/run/lab/empty", "not a kernel"]),
            ("stub", &["/run/lab/stub", "not a kernel"]),
            ("cut", &["/run/lab/cut", "truncated"]),
            ("cut-elf", &["/run/lab/cut-elf", "truncated"]),
        ];
        for (file, words) in kernels {
            refused(host, &good(host)?.kernel(installed(file)), 1, words)?;
        }
        let initrds: [(&str, &[&str]); 3] = [
            ("none", &["initrd /run/lab/none", "No such file"]),
            ("empty", &["initrd /run/lab/empty", "is empty"]),
            ("huge", &["/run/lab/huge", "does not fit", "--memory"]),
        ];
        for (file, words) in initrds {
            refused(host, &good(host)?.initrd(Some(installed(file))), 1, words)?;
        }
        let sizes: [(&str, i32, &[&str]); 7] = [
            ("16M", 1, &["bzImage", "does not fit", "--memory"]),
            ("0", 2, &["--memory", "multiple of 2 MiB"]),
            ("0M", 2, &["--memory", "multiple of 2 MiB"]),
            ("512", 2, &["--memory", "'512' is not a memory size"]),
            ("lots", 2, &["--memory", "'lots' is not a memory size"]),
            ("1T", 1, &["1024 GiB", "more than the host can give"]),
            ("64G", 1, &["64 GiB", "more than the host can give"]),
        ];
        for (size, status, words) in sizes {
            refused(host, &good(host)?.memory(size), status, words)?;
        }
        for cpus in ["0", "9"] {
            refused(host, &good(host)?.cpus(cpus), 1, &["CPUs", "1 to 8"])?;
        }
        refused(host, &good(host)?.cpus("many"), 2, &["--cpus"])?;
        let long = "x".repeat(5000);
        refused(
            host,
            &good(host)?.cmdline(&long),
            1,
            &["command line", "2047"],
        )?;

        assert_eq!(host.driver("disk")?.as_deref(), Some("vfio-pci"));
        host.run(&good(host)?.step())?.expect_success()?;
        Ok(())
    });
}

#[test]
fn kvm_missing_or_forbidden() {
    scenario(&machine("no-kvm"), |host| {
        host.bind_vfio(&["disk"])?;
        let run = good(host)?;
        let as_nobody = |run: &Run| {
            let command = format!(
                "exec setpriv --reuid=65534 --clear-groups -- {}",
                quoted(run)
            );
            Step::shell(command)
        };
        host.shell("chmod 0755 /run/lab && chmod 0600 /dev/kvm /dev/vfio/vfio /dev/iommu")?;
        let plain = Run::tasks("poweroff");
        let outcome = host.run(&as_nobody(&plain))?;
        assert_refused(&outcome, 1, &["no permission to use /dev/kvm", "group"]);
        for backend in Backend::BOTH {
            let outcome = host.run(&as_nobody(&good(host)?.iommu(backend)))?;
            let words = ["/dev/kvm", backend.file(), "may not open", "fix:"];
            assert_refused(&outcome, 1, &words);
        }

        host.shell("mv /dev/kvm /dev/kvm.away")?;
        refused(host, &plain, 1, &["no /dev/kvm", "modprobe"])?;
        refused(host, &run, 1, &["/dev/kvm does not exist", "modprobe"])?;
        host.shell("mv /dev/kvm.away /dev/kvm")?;
        host.run(&run.step())?.expect_success()?;
        Ok(())
    });
}

/// The command as a shell takes it.
fn quoted(run: &Run) -> String {
    let title = run.step().title();
    let (front, rest) = title.split_once("--cmdline ").unwrap();
    let (cmdline, back) = rest.split_once(" --memory").unwrap();
    format!("{front}--cmdline '{cmdline}' --memory{back}")
}

#[test]
fn devices_that_cannot_be_had() {
    let machine = machine("bad-devices")
        .slot(Slot::ConventionalBridge(vec![
            Device::e1000("old-a"),
            Device::e1000("old-b"),
        ]))
        .slot(Slot::Bypassed(Device::e1000e("free")));
    scenario(&machine, |host| {
        let disk = host.address("disk")?;
        let old_a = host.address("old-a")?.to_string();
        let old_b = host.address("old-b")?.to_string();
        let free = host.address("free")?.to_string();
        let with = |device: &str| Run::tasks("poweroff").device(device);
        let both = |device: &str, words: &[&str]| {
            refused(host, &with(device), 1, words)?;
            let verdict = host.run(&Step::argv([
                installed("airlock"),
                "check".into(),
                device.into(),
            ]))?;
            assert_eq!(verdict.exit, Exit::Status(1), "{}", verdict.stdout);
            for word in words {
                assert!(
                    verdict.stdout.contains(word),
                    "no '{word}' in {}",
                    verdict.stdout
                );
            }
            Ok::<_, HostError>(())
        };
        for text in ["nvme0", "1:0", "0000:01:00.9", "0000:01:20.0", ""] {
            both(text, &[&format!("'{text}' is not a PCI address")])?;
        }
        both("0000:7f:00.0", &["no PCI function 0000:7f:00.0", "lspci"])?;
        both(
            &disk.to_string(),
            &["is on the host driver 'nvme'", "fix:", "airlock bind"],
        )?;
        both(&free, &[&free, "in no IOMMU group"])?;
        assert_eq!(
            host.driver("disk")?.as_deref(),
            Some("nvme"),
            "nothing was touched"
        );

        host.bind_vfio(&["disk", "old-a"])?;
        let twice = Run::tasks("poweroff").device(disk).device("01:00.0");
        refused(host, &twice, 1, &["is given twice"])?;
        both(&old_a, &["not viable", &old_b, "e1000", "fix:"])?;
        assert_eq!(host.driver("old-b")?.as_deref(), Some("e1000"));

        // One guest has the group; another is told who.
        let mut first = host.start(&Run::tasks("nvme,sleep").device(disk).step())?;
        first.wait_line("lab: sleep", BOOT)?;
        let pid = first.pid().to_string();
        both(&disk.to_string(), &["is in use", "airlock", &pid])?;
        first.signal(15)?;
        first.wait()?;
        let verdict = host.run(&check(&[disk]))?;
        assert_eq!(verdict.exit, Exit::Status(0), "{}", verdict.stdout);
        host.run(&with(&disk.to_string()).step())?
            .expect_success()?;
        Ok(())
    });
}

#[test]
fn hosts_that_are_not_safe() {
    let unsafe_interrupts = Iommu {
        interrupt_remapping: false,
        ..Iommu::default()
    };
    scenario(
        &machine("no-remapping").iommu(Some(unsafe_interrupts)),
        |host| {
            host.bind_vfio(&["disk"])?;
            refused(host, &good(host)?, 1, &["interrupt remapping is off"])?;
            for backend in Backend::BOTH {
                let forced = good(host)?.iommu(backend);
                let forced = forced.arg("--allow-unsafe-interrupts");
                let parameter = backend.unsafe_interrupts();
                // Asking airlock is not enough: the kernel has a say of its own.
                refused(host, &forced, 1, &["interrupt", parameter])?;
                host.shell(&format!("echo Y > {parameter}"))?;
                host.run(&forced.step())?.expect_success()?;
            }
            Ok(())
        },
    );
    scenario(&machine("no-iommu").iommu(None), |host| {
        refused(host, &good(host)?, 1, &["in no IOMMU group"])
    });
}
