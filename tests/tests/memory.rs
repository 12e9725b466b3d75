//! Guest memory: what it's made of, where it lies, when devices get it, and
//! what is said when they can't.

use std::time::Duration;

use lab::airlock::{Run, airlock};
use lab::host::{Exit, Host, HostError, Outcome, Process, Step};
use lab::machine::{Device, Disk, Machine, Slot};
use lab::markers::Markers;
use lab::scenario;
use lab::timeline::Timeline;

const BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 16 << 20;
const BOOT: Duration = Duration::from_secs(60);
/// As many huge pages of 2 MiB as the usual guest of 512 MiB has.
const PAGES: u64 = 256;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const SHARED_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// Nobody in particular.
const USER: u32 = 65534;

fn disk() -> Disk {
    Disk::seeded(DISK_BYTES, 7)
}

fn machine(name: &str) -> Machine {
    Machine::new(name).device(Device::nvme("disk", disk()))
}

/// A guest with the NVMe that reads from it between `tasks`.
fn reader(host: &Host, tasks: &str) -> Result<Run, HostError> {
    Ok(Run::tasks(tasks)
        .cmdline(&format!("lab.bytes={BYTES}"))
        .device(host.address("disk")?))
}

/// The guest read by DMA what the image holds, and ended well.
#[track_caller]
fn assert_read(outcome: &Outcome) {
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read").expect("the guest read nothing");
    let written = disk().digest(BYTES).unwrap().to_string();
    assert_eq!(read.value("sha256"), written, "{}", outcome.stderr);
}

#[track_caller]
fn assert_refused(outcome: &Outcome, words: &[&str]) {
    let told = &outcome.stderr;
    assert_eq!(outcome.exit, Exit::Status(1), "{told}");
    for word in words {
        assert!(told.contains(word), "no '{word}' in: {told}");
    }
    assert_eq!(outcome.stdout, "", "no guest ran");
}

fn number(host: &Host, file: &str) -> Result<u64, HostError> {
    let text = host.shell(&format!("cat {file}"))?;
    Ok(text.trim().parse().expect("a number"))
}

/// What a process has in memory, in KiB.
#[derive(Debug, Default)]
struct Resident {
    /// The guest's RAM, and what of it is in huge pages.
    guest: u64,
    guest_huge: u64,
    /// Everything else, and what of it no other process shares: neither the
    /// program's file nor the C library's.
    monitor: u64,
    own: u64,
}

/// Sums up `/proc/PID/smaps`. Guest RAM is every map of at least 64 MiB.
fn resident(host: &Host, process: &Process) -> Result<(Resident, String), HostError> {
    let smaps = host.shell(&format!("cat /proc/{}/smaps", process.pid()))?;
    let mut sum = Resident::default();
    let mut size = 0;
    for line in smaps.lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let kib = || {
            let value = rest.trim().strip_suffix("kB")?;
            value.trim().parse::<u64>().ok()
        };
        match (name, kib()) {
            ("Size", Some(kib)) => size = kib,
            ("Rss", Some(kib)) if size < 64 << 10 => sum.monitor += kib,
            ("Anonymous", Some(kib)) if size < 64 << 10 => sum.own += kib,
            ("Rss" | "Shared_Hugetlb" | "Private_Hugetlb", Some(kib)) if size >= 64 << 10 => {
                sum.guest += kib;
                if name != "Rss" {
                    sum.guest_huge += kib;
                }
            }
            ("AnonHugePages" | "ShmemPmdMapped", Some(kib)) if size >= 64 << 10 => {
                sum.guest_huge += kib;
            }
            _ => {}
        }
    }
    Ok((sum, smaps))
}

/// Boots a guest that reads, looks at its memory while it stands still, and
/// has it read to the end.
fn look(host: &Host, run: &Run) -> Result<(Resident, String), HostError> {
    let mut guest = host.start(&run.step())?;
    guest.wait_line("lab: hold", BOOT)?;
    let looked = resident(host, &guest)?;
    guest.write(b"\n")?;
    assert_read(&guest.wait()?);
    Ok(looked)
}

#[test]
fn an_nvme_on_every_backing() {
    scenario(&machine("backings").memory_mib(4096), |host| {
        host.bind_vfio(&["disk"])?;
        let run = || reader(host, "nvme,hold,poweroff");

        let (memory, smaps) = look(host, &run()?)?;
        println!("anonymous: {memory:?}");
        assert!(memory.own < 5 << 10, "{smaps}");
        assert!(!smaps.contains("memfd:guest-ram"), "{smaps}");
        assert_eq!(memory.guest, 512 << 10, "all of it is pinned");
        assert_eq!(memory.guest_huge, memory.guest);

        host.shell(&format!("echo advise > {SHARED_HUGE}"))?;
        let (memory, smaps) = look(host, &run()?)?;
        println!("memfd: {memory:?}");
        assert!(smaps.contains("memfd:guest-ram"), "{smaps}");
        assert_eq!((memory.guest, memory.guest_huge), (512 << 10, 512 << 10));
        // Only devices make a file worth it.
        let plain = Run::tasks("hold,poweroff");
        let mut guest = host.start(&plain.step())?;
        guest.wait_line("lab: hold", BOOT)?;
        let (_, smaps) = resident(host, &guest)?;
        assert!(!smaps.contains("memfd:guest-ram"), "{smaps}");
        guest.write(b"\n")?;
        assert_eq!(guest.wait()?.exit, Exit::Status(0));

        host.shell(&format!("echo {PAGES} > {POOL}/nr_hugepages"))?;
        let huge = run()?.arg("--memory-pages").arg("2M");
        let (memory, _) = look(host, &huge)?;
        println!("hugetlb: {memory:?}");
        assert_eq!(memory.guest_huge, 512 << 10);
        assert_eq!(number(host, &format!("{POOL}/free_hugepages"))?, PAGES);

        // One page too few, with and without a device: told with the numbers,
        // and nothing is touched.
        host.shell(&format!("echo {} > {POOL}/nr_hugepages", PAGES - 1))?;
        let plain = Run::tasks("poweroff").arg("--memory-pages").arg("2M");
        for run in [&huge, &plain] {
            assert_refused(
                &host.run(&run.step())?,
                &[
                    "512 MiB of guest memory need 256 huge pages of 2 MiB, and 255 are free",
                    &format!("echo 256 > {POOL}/nr_hugepages"),
                ],
            );
        }
        let check = airlock([
            "check".to_owned(),
            host.address("disk")?.to_string(),
            "--memory".into(),
            "512M".into(),
            "--memory-pages".into(),
            "2M".into(),
        ]);
        let verdict = host.run(&check)?;
        assert_eq!(verdict.exit, Exit::Status(1), "{}", verdict.stdout);
        assert!(
            verdict.stdout.contains("255 are free"),
            "{}",
            verdict.stdout
        );
        host.shell(&format!("echo 0 > {POOL}/nr_hugepages"))?;

        // From the one node that there is, and from one that there is not.
        let bound = reader(host, "nvme,poweroff")?.arg("--numa-node");
        assert_read(&host.run(&bound.arg("0").step())?);
        let outcome = host.run(&run()?.arg("--numa-node").arg("7").step())?;
        assert_refused(&outcome, &["no NUMA node 7", "it has 0"]);
        Ok(())
    });
}

/// When something happened, in milliseconds after the process's start.
fn timeline(host: &Host, run: Run) -> Result<Timeline, HostError> {
    const PATH: &str = "/run/lab/timeline.json";
    assert_read(&host.run(&run.timeline(PATH).step())?);
    let text = host.shell(&format!("cat {PATH}"))?;
    Ok(Timeline::parse(&text).expect("a timeline"))
}

#[test]
fn the_first_instruction_does_not_wait_for_memory() {
    scenario(&machine("first-instruction").memory_mib(6144), |host| {
        host.bind_vfio(&["disk"])?;
        let run = |size: &str| Ok::<_, HostError>(reader(host, "nvme,poweroff")?.memory(size));
        // The first run also brings airlock and the kernel into the page cache.
        timeline(host, run("512M")?)?;
        for size in ["512M", "2G", "4G"] {
            let times = timeline(host, run(size)?)?;
            let after = |name| times.between("start", name).expect(name);
            let (entry, mapped) = (after("first-vcpu-entry"), after("memory-mapped"));
            println!(
                "{size}: first vCPU entry after {entry:.0} ms, memory mapped after {mapped:.0} ms"
            );
            if size != "512M" {
                assert!(entry < mapped, "{size}: {times}");
            }
        }
        // The old order, with one thread and with several.
        for threads in ["1", "3"] {
            let run = run("2G")?
                .arg("--map")
                .arg("before-boot")
                .arg("--prefault-threads")
                .arg(threads);
            let times = timeline(host, run)?;
            let after = |name| times.between("start", name).expect(name);
            let (entry, mapped) = (after("first-vcpu-entry"), after("memory-mapped"));
            println!(
                "2G before-boot by {threads}: mapped after {mapped:.0} ms, entry after {entry:.0} ms"
            );
            assert!(mapped < entry, "{times}");
        }
        // While it populates, a signal ends it, and no guest was there.
        let run = run("4G")?.arg("--map").arg("before-boot");
        let guest = host.start(&run.step())?;
        host.shell("sleep 1.5")?;
        guest.signal(15)?;
        let outcome = guest.wait()?;
        assert_eq!(outcome.exit, Exit::Status(143), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
        Ok(())
    });
}

/// The command as a user without rights, who may lock `soft` bytes, and raise
/// that to `hard`.
fn as_user(run: &Run, soft: u64, hard: u64) -> Step {
    let title = run.step().title();
    let (front, rest) = title.split_once("--cmdline ").unwrap();
    let (cmdline, back) = rest.split_once(" --memory").unwrap();
    Step::shell(format!(
        "exec prlimit --memlock={soft}:{hard} setpriv --reuid={USER} --clear-groups -- \
         {front}--cmdline '{cmdline}' --memory{back}"
    ))
    .limit(Duration::from_secs(120))
}

/// Gives the user the files that devices and the guest need.
fn let_in(host: &Host, device: &str) -> Result<(), HostError> {
    let group = host.group(device)?.expect("it has a group");
    host.shell(&format!(
        "chmod 0755 /run/lab && chmod 0666 /dev/kvm /dev/vfio/vfio && chown {USER} /dev/vfio/{group}"
    ))?;
    Ok(())
}

const MIB: u64 = 1 << 20;

#[test]
fn the_limit_on_locked_memory_is_raised_or_explained() {
    scenario(&machine("memlock"), |host| {
        host.bind_vfio(&["disk"])?;
        let_in(host, "disk")?;
        let run = reader(host, "nvme,poweroff")?;
        // The guest's memory and not a byte more.
        assert_read(&host.run(&as_user(&run, 8 * MIB, 512 * MIB))?);
        let outcome = host.run(&as_user(&run, 8 * MIB, 512 * MIB - 4096))?;
        assert_refused(
            &outcome,
            &[
                "512 MiB of guest memory must be locked",
                "may lock 8 MiB, and no more than 511.9 MiB by its hard limit",
                "fix: sudo prlimit --pid $$ --memlock=536870912:536870912",
            ],
        );
        Ok(())
    });
}

/// The limit goes down after the plan was made: the map that the guest's
/// bus-master bit waits for fails, while nothing has reached memory.
#[test]
fn a_failure_to_map_ends_the_vm_with_the_same_report() {
    let machine = Machine::new("map-fails").memory_mib(4096).slot(Slot::Port {
        acs: true,
        functions: vec![Device::edu("edu")],
    });
    scenario(&machine, |host| {
        host.bind_vfio(&["edu"])?;
        let_in(host, "edu")?;
        let lower = |pid: u32| {
            let (low, all) = (8 * MIB, u64::MAX >> 1);
            host.shell(&format!("prlimit --pid {pid} --memlock={low}:{all}"))
        };
        let reasons = [
            "cannot give the device access to guest memory",
            "cannot map 0x80000000 bytes of IOVA at 0x0",
            "may pin only 0x800000 bytes (RLIMIT_MEMLOCK)",
            "ulimit -l",
        ];
        // No driver sets the bit before the task does.
        let run = Run::tasks("hold,msi,poweroff")
            .memory("2G")
            .device(host.address("edu")?);
        for fails in [false, true] {
            let mut guest = host.start(&as_user(&run, 8 * MIB, 4096 * MIB))?;
            guest.wait_line("lab: hold", BOOT)?;
            if fails {
                lower(guest.pid())?;
            }
            guest.write(b"\n")?;
            let outcome = guest.wait()?;
            let told = &outcome.stderr;
            if !fails {
                assert_eq!(outcome.exit, Exit::Status(0), "{told}");
                continue;
            }
            assert_eq!(outcome.exit, Exit::Status(1), "{told}");
            assert!(told.contains("guest device"), "{told}");
            for reason in reasons {
                assert!(told.contains(reason), "no '{reason}' in: {told}");
            }
            assert!(outcome.line("lab: msi").is_none(), "{}", outcome.stdout);
        }
        // Before the start it's the same report, and no guest was there.
        let before = run.arg("--map").arg("before-boot");
        let guest = host.start(&as_user(&before, 8 * MIB, 4096 * MIB))?;
        host.shell("sleep 1")?;
        lower(guest.pid())?;
        assert_refused(&guest.wait()?, &reasons);
        Ok(())
    });
}

/// QEMU reserves nothing where RAM would be. So the kernel's list is covered
/// by another: the guest must be laid out by it, and what DMA reaches is real.
#[test]
fn ram_goes_round_what_is_reserved() {
    scenario(&machine("reserved").memory_mib(4096), |host| {
        host.bind_vfio(&["disk"])?;
        let group = host.group("disk")?.expect("it has a group");
        let list = format!("/sys/kernel/iommu_groups/{group}/reserved_regions");
        let reserve = |lines: &str| {
            host.shell(&format!(
                "printf '{lines}0x00000000fee00000 0x00000000feefffff msi\\n' > /run/lab/regions
                 mount --bind /run/lab/regions {list}"
            ))
        };
        let uncover = || host.shell(&format!("umount {list}"));

        reserve("0x0000000010100000 0x00000000104fffff reserved\\n")?;
        let run = reader(host, "nvme,poweroff")?
            .memory("1G")
            .cmdline("ignore_loglevel");
        let outcome = host.run(&run.step())?;
        assert_read(&outcome);
        // What the guest's kernel was told: RAM up to the hole, in whole huge
        // pages, and again behind it.
        for piece in [
            "0x0000000000100000-0x000000000fffffff] usable",
            "0x0000000010600000-0x00000000405fffff] usable",
        ] {
            assert!(outcome.stdout.contains(piece), "{}", outcome.stdout);
        }
        uncover()?;

        // A hole where kernels begin.
        reserve("0x0000000001000000 0x00000000010fffff reserved\\n")?;
        let outcome = host.run(&reader(host, "poweroff")?.step())?;
        assert_refused(
            &outcome,
            &["bzImage does not fit", "what follows is reserved"],
        );
        uncover()?;

        // Too little below a hole that never ends; and nothing at all at the bottom.
        let refused = |lines: &str, words: &[&str]| {
            reserve(lines)?;
            let address = host.address("disk")?.to_string();
            let check = airlock(["check", &address, "--memory", "512M"]);
            let verdict = host.run(&check)?;
            assert_eq!(verdict.exit, Exit::Status(1), "{}", verdict.stdout);
            let outcome = host.run(&reader(host, "poweroff")?.step())?;
            assert_refused(&outcome, words);
            for word in words {
                assert!(verdict.stdout.contains(word), "{}", verdict.stdout);
            }
            uncover()
        };
        refused(
            "0x0000000010100000 0x00000000fedfffff reserved\\n0x00000000fef00000 0x00000fffffffffff reserved\\n",
            &[
                "does not fit what the IOMMU reaches: 0x0-0x100fffff",
                "at most 256 MiB of memory",
            ],
        )?;
        refused(
            "0x0000000000000000 0x00000000000fffff reserved\\n",
            &["guest RAM 0x0-0x1fffffff does not fit", "reserved"],
        )?;
        assert_read(&host.run(&reader(host, "nvme,poweroff")?.step())?);
        Ok(())
    });
}
