//! Guests whose RAM ends where an IOMMU's addresses do.

use lab::airlock::Run;
use lab::host::{Exit, Host, HostError};
use lab::machine::{Device, Disk, Iommu, Machine};
use lab::markers::Markers;
use lab::{Backend, on_both_backends, scenario};

on_both_backends!(an_aperture_of_39_bits, an_aperture_of_48_bits);

const BYTES: u64 = 1 << 20;
const MIB: u64 = 1 << 20;
/// Where a VT-d with 39 bits ends.
const END: u64 = 1 << 39;
/// What of a guest's RAM stays at the bottom, and what goes to the top.
const LOW: u64 = 256 * MIB;
const HIGH: u64 = 256 * MIB;

fn disk() -> Disk {
    Disk::seeded(4 << 20, 91)
}

fn machine(name: String, address_bits: u8) -> Machine {
    Machine::new(name)
        .iommu(Some(Iommu {
            address_bits,
            ..Iommu::default()
        }))
        .device(Device::nvme("disk", disk()))
}

/// Leaves a guest 256 MiB at the bottom and what begins 256 MiB below the end
/// of 39 bits: what is between counts as reserved. The kernel itself says
/// nothing of the kind, so its list is covered by another.
fn reserve_all_between(host: &Host) -> Result<(), HostError> {
    let group = host.group("disk")?.expect("it has a group");
    host.shell(&format!(
        "printf '%#018x %#018x reserved\\n' {LOW} {} > /run/lab/regions
         mount --bind /run/lab/regions /sys/kernel/iommu_groups/{group}/reserved_regions",
        END - HIGH - 1
    ))?;
    Ok(())
}

fn guest(host: &Host, backend: Backend, mib: u64) -> Result<Run, HostError> {
    Ok(Run::tasks("nvme,poweroff")
        .cmdline(&format!("lab.bytes={BYTES} ignore_loglevel"))
        .memory(format!("{mib}M"))
        .iommu(backend)
        .device(host.address("disk")?))
}

/// The guest has RAM up to `last` and reads its disk into it: Linux takes the
/// pages of its cache from the top.
fn assert_reads(host: &Host, run: &Run, last: u64) -> Result<(), HostError> {
    let outcome = host.run(&run.step())?;
    assert_eq!(outcome.exit, Exit::Status(0), "{}", outcome.stderr);
    let start = END - HIGH;
    let piece = format!("[mem {start:#018x}-{last:#018x}] usable");
    assert!(outcome.stdout.contains(&piece), "{}", outcome.stdout);
    let markers = Markers::of(&outcome.lines);
    let read = markers.first("nvme-read").expect("the guest read nothing");
    assert_eq!(
        read.value("sha256"),
        disk().digest(BYTES).unwrap().to_string()
    );
    Ok(())
}

fn an_aperture_of_39_bits(backend: Backend) {
    scenario(&machine(format!("39-bits-{backend}"), 39), |host| {
        host.bind_vfio(&["disk"])?;
        reserve_all_between(host)?;
        let mib = (LOW + HIGH) / MIB;
        assert_reads(host, &guest(host, backend, mib)?, END - 1)?;
        // One huge page more is one too many.
        let outcome = host.run(&guest(host, backend, mib + 2)?.step())?;
        assert_eq!(outcome.exit, Exit::Status(1), "{}", outcome.stderr);
        for words in ["0x7fffffffff", "39 bits", "at most 512 MiB"] {
            assert!(
                outcome.stderr.contains(words),
                "{words}: {}",
                outcome.stderr
            );
        }
        // Nothing was opened for that.
        assert!(!outcome.stdout.contains("lab:"), "{}", outcome.stdout);
        Ok(())
    });
}

fn an_aperture_of_48_bits(backend: Backend) {
    scenario(&machine(format!("48-bits-{backend}"), 48), |host| {
        host.bind_vfio(&["disk"])?;
        reserve_all_between(host)?;
        let mib = (LOW + HIGH) / MIB;
        for more in [0, 2] {
            let run = guest(host, backend, mib + more)?;
            assert_reads(host, &run, END + more * MIB - 1)?;
        }
        Ok(())
    });
}
