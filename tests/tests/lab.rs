//! The lab proves itself: what the other scenarios rely on.

use std::env;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lab::airlock::Run;
use lab::host::{Exit, HostError, Step, Stream};
use lab::machine::{Device, Disk, Iommu, Machine, Slot, process_name};
use lab::markers::Markers;
use lab::{Lab, scenario};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn steps_have_their_exit_status_output_and_input() {
    scenario(&Machine::new("steps"), |host| {
        let outcome = host.run(&Step::shell("echo out; echo err >&2; exit 3"))?;
        assert_eq!(outcome.exit, Exit::Status(3));
        assert_eq!(
            (outcome.stdout.as_str(), outcome.stderr.as_str()),
            ("out\n", "err\n")
        );
        let error = outcome.line("err").unwrap();
        assert_eq!(error.stream, Stream::Stderr);
        assert!(outcome.started_ns < error.ns && error.ns <= outcome.ended_ns);

        let killed = host.run(&Step::shell("kill -9 $$"))?;
        assert_eq!(killed.exit, Exit::Signal(9));

        let large: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let sum = host.run(&Step::argv(["cksum"]).stdin(large.clone()))?;
        let sum = sum.expect_success()?;
        let expected = Command::new("cksum")
            .stdin({
                let path = host.work_directory().join("large");
                fs::write(&path, &large).unwrap();
                fs::File::open(path).unwrap()
            })
            .output()
            .unwrap();
        assert_eq!(sum.stdout.as_bytes(), expected.stdout);
        assert_eq!(host.shell("cksum < /run/lab/work/large")?, sum.stdout);

        let refused = host.run(&Step::argv(["/no/such/program"]));
        assert!(
            matches!(refused, Err(HostError::Refused { .. })),
            "{refused:?}"
        );
        let failed = host.shell("echo reason >&2; false").unwrap_err();
        assert!(failed.to_string().contains("reason"), "{failed}");
        Ok(())
    });
}

#[test]
fn a_process_runs_beside_the_scenario() {
    scenario(&Machine::new("background"), |host| {
        let script = "echo ready; read word; echo got $word; sleep 1000";
        let mut process = host.start(&Step::shell(script))?;
        process.wait_line("ready", SOON)?;
        process.write(b"a-word\n")?;
        assert_eq!(process.wait_line("got", SOON)?.text, "got a-word");
        assert!(process.is_running());
        assert_eq!(host.shell("echo meanwhile")?, "meanwhile\n");
        process.signal(15)?;
        assert_eq!(process.wait()?.exit, Exit::Signal(15));

        let mut short = host.start(&Step::shell("echo one"))?;
        let ended = short.wait_line("two", SOON);
        assert!(
            matches!(&ended, Err(HostError::Ended { tail, .. }) if tail == &["one"]),
            "{ended:?}"
        );
        Ok(())
    });
}

/// The machine that the scenarios stand on: a device with a group of its
/// own, and the cases that airlock must refuse.
#[test]
fn devices_stand_in_the_groups_that_their_topology_gives() {
    let machine = Machine::new("topologies")
        .device(Device::nvme("disk", Disk::pattern(1 << 20)))
        .slot(Slot::Port {
            acs: true,
            functions: vec![Device::e1000e("function-0"), Device::e1000e("function-1")],
        })
        .slot(Slot::Ports {
            acs: false,
            devices: vec![Device::e1000e("below-a"), Device::e1000e("below-b")],
        })
        .slot(Slot::ConventionalBridge(vec![
            Device::e1000("old-a"),
            Device::e1000("old-b"),
        ]))
        .slot(Slot::Integrated(Device::edu("edu")))
        .slot(Slot::Bypassed(Device::e1000e("free")));
    scenario(&machine, |host| {
        let group = |name: &str| host.group(name);
        let members = |name: &str| {
            let address = host.address(name)?;
            let listing = host.shell(&format!(
                "ls /sys/bus/pci/devices/{address}/iommu_group/devices"
            ))?;
            Ok::<_, HostError>(listing.lines().count())
        };
        assert_eq!(members("disk")?, 1);
        assert_eq!(group("function-0")?, group("function-1")?);
        assert_eq!(members("function-0")?, 2);
        assert_eq!(group("below-a")?, group("below-b")?);
        assert_eq!(members("below-a")?, 4, "two ports and what is below them");
        assert_eq!(group("old-a")?, group("old-b")?);
        assert_eq!(members("old-a")?, 3, "the bridge and both devices");
        assert_eq!(members("edu")?, 1);
        assert_eq!(group("free")?, None);
        assert_ne!(group("disk")?, group("function-0")?);

        assert_eq!(host.driver("disk")?.as_deref(), Some("nvme"));
        assert_eq!(host.driver("old-a")?.as_deref(), Some("e1000"));
        let absent = host.address("no-such-device");
        assert!(
            matches!(absent, Err(HostError::NoDevice { .. })),
            "{absent:?}"
        );
        Ok(())
    });
}

#[test]
fn a_device_goes_to_vfio_and_back_and_the_disk_holds_the_pattern() {
    let disk = Disk::seeded(1 << 20, 7);
    let machine = Machine::new("vfio").device(Device::nvme("disk", disk.clone()));
    scenario(&machine, |host| {
        let before = host.shell("sha256sum < /dev/nvme0n1")?;
        let expected = disk.digest(1 << 20).unwrap().to_string();
        assert_eq!(before.split_whitespace().next(), Some(expected.as_str()));

        host.bind_vfio(&["disk"])?;
        assert_eq!(host.driver("disk")?.as_deref(), Some("vfio-pci"));
        let group = host.group("disk")?.unwrap();
        host.shell(&format!(
            "test -c /dev/vfio/{group} && test -c /dev/vfio/devices/vfio0"
        ))?;
        host.shell("test -c /dev/kvm && test -c /dev/iommu")?;
        host.shell("test ! -e /dev/nvme0n1")?;

        host.bind("disk", "nvme")?;
        assert_eq!(host.driver("disk")?.as_deref(), Some("nvme"));
        let wrong = host.bind("disk", "no-such-driver");
        assert!(matches!(wrong, Err(HostError::Failed(_))), "{wrong:?}");
        Ok(())
    });
}

#[test]
fn the_iommu_is_as_the_machine_says() {
    let disk = || Device::nvme("disk", Disk::pattern(1 << 20));
    scenario(
        &Machine::new("no-iommu").iommu(None).device(disk()),
        |host| {
            assert_eq!(host.group("disk")?, None);
            Ok(())
        },
    );
    let wide = Iommu {
        address_bits: 48,
        interrupt_remapping: false,
    };
    let machine = Machine::new("wide")
        .cpus(2)
        .iommu(Some(wide))
        .device(disk());
    scenario(&machine, |host| {
        assert!(host.group("disk")?.is_some());
        // VT-d capability register, bits 21:16: the maximum guest address width, less 1.
        let capability = host.shell("cat /sys/class/iommu/dmar0/intel-iommu/cap")?;
        let capability = u64::from_str_radix(capability.trim(), 16).unwrap();
        assert_eq!((capability >> 16) & 0x3f, 47);
        let log = host.shell("dmesg")?;
        assert!(!log.contains("Enabled IRQ remapping"), "{log}");
        assert_eq!(host.shell("nproc")?, "2\n");
        Ok(())
    });
}

#[test]
fn a_step_beyond_its_limit_ends_the_machine_and_shows_all_consoles() {
    let lab = Lab::shared().unwrap();
    let host = lab.boot(&Machine::new("limit")).unwrap();
    host.shell("echo a word from the kernel > /dev/kmsg")
        .unwrap();
    host.shell("echo a word on the console > /dev/console")
        .unwrap();
    let step = Step::shell("echo first; echo last words; sleep 1000").limit(Duration::from_secs(2));
    let error = host.run(&step).unwrap_err();
    let HostError::TimeLimit { tails, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(tails.output, ["first", "last words"]);
    let console = tails.console.join("\n");
    assert!(console.contains("a word on the console"), "{console}");
    let text = error.to_string();
    assert!(
        text.contains("last words") && text.contains("limit"),
        "{text}"
    );

    let after = host.run(&Step::argv(["true"]));
    assert!(matches!(after, Err(HostError::Gone { .. })), "{after:?}");
}

#[test]
fn a_machine_that_cannot_boot_says_why_at_once() {
    let lab = Lab::shared().unwrap();
    let panics = Machine::new("no-init").cmdline("rdinit=/no/such/init");
    let refused = Machine::new("bad-argument").qemu_args(["-device", "no-such-device"]);
    for (machine, expected) in [
        (panics, "Kernel panic"),
        (refused, "'no-such-device' is not a valid"),
    ] {
        let error = lab.boot(&machine).unwrap_err();
        // Not the time limit: the end of QEMU was seen.
        assert!(matches!(error, HostError::Gone { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(machine.name()) && text.contains(expected),
            "{text}"
        );
    }
}

/// On a busy machine the nested host's first measure of its clock is off; here
/// it is told a wrong one.
#[test]
fn guests_keep_time_though_the_host_misjudged_its_clock() {
    let measured = std::cell::Cell::new(0.0);
    scenario(&Machine::new("right-clock"), |host| {
        let line = host.shell("grep -m 1 MHz /proc/cpuinfo")?;
        measured.set(
            line.rsplit(' ')
                .next()
                .unwrap()
                .trim()
                .parse::<f64>()
                .unwrap(),
        );
        Ok(())
    });
    let wrong_khz = (measured.get() * 1000.0 * 0.999) as u64;
    let machine = Machine::new("wrong-clock").cmdline(format!("tsc_early_khz={wrong_khz}"));
    scenario(&machine, |host| {
        // The host knows better by now: it has refined the value.
        host.shell("until dmesg | grep -q 'Refined TSC'; do sleep 0.1; done")?;
        let run = Run::tasks("nap,poweroff").limit(Duration::from_secs(30));
        let outcome = host.run(&run.step())?.expect_success()?;
        let markers = Markers::of(&outcome.lines);
        let ns = |name: &str| markers.first(name).unwrap().ns;
        let nap = Duration::from_nanos(ns("nap-end") - ns("nap"));
        assert!(
            nap > Duration::from_millis(900) && nap < Duration::from_secs(5),
            "{nap:?}"
        );
        Ok(())
    });
}

/// The variable by which the test below tells itself that it is the one to kill.
const VICTIM: &str = "LAB_TEST_VICTIM";

#[test]
fn qemu_dies_with_a_process_that_is_killed() {
    let machine = Machine::new("victim");
    if env::var_os(VICTIM).is_some() {
        let _host = Lab::shared().unwrap().boot(&machine).unwrap();
        println!("booted");
        thread::sleep(Duration::from_secs(1000));
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "qemu_dies_with_a_process_that_is_killed",
            "--nocapture",
        ])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let booted = std::io::BufRead::lines(output).any(|line| line.unwrap().contains("booted"));
    let ran = qemu_runs(machine.name());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(booted && ran, "the machine was not there before the kill");
    let deadline = Instant::now() + Duration::from_secs(10);
    while qemu_runs(machine.name()) {
        assert!(Instant::now() < deadline, "QEMU outlived its process");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a QEMU of the machine `name` is among the processes.
fn qemu_runs(name: &str) -> bool {
    let name = process_name(name);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|line| {
            line.starts_with(b"/")
                && line
                    .split(|byte| *byte == 0)
                    .any(|arg| arg == name.as_bytes())
        })
}
