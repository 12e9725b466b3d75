//! A virtual function whose physical function is another guest's: only who
//! knows that guest's token gets it.

use std::time::Duration;

use lab::airlock::Run;
use lab::host::{Exit, Host, HostError};
use lab::kernel::KernelVersion;
use lab::machine::{Device, Disk, Machine};
use lab::{Backend, scenario};

const TOKEN: &str = "8d1f2a90-6c11-4c2e-9a6d-0123456789ab";
const OTHER: &str = "00000000-6c11-4c2e-9a6d-0123456789ab";
/// A guest boots in a few seconds; a busy machine is several times slower.
const BOOT: Duration = Duration::from_secs(60);

fn run(tasks: &str, backend: Backend, device: &str, token: Option<&str>) -> Run {
    let token = token.map(|token| format!(",vf-token={token}"));
    Run::tasks(tasks)
        .memory("256M")
        .iommu(backend)
        .device(format!("{device}{}", token.unwrap_or_default()))
}

/// One guest has the physical function and has set the token; the host makes a
/// virtual function, and other guests ask for that.
fn token(host: &Host, backend: Backend) -> Result<(), HostError> {
    host.bind_vfio(&["disk"])?;
    let physical = host.address("disk")?.to_string();
    let mut owner = host.start(&run("beat", backend, &physical, Some(TOKEN)).step())?;
    owner.wait_line("lab: beat", BOOT)?;
    // Made after the physical function was opened, which resets it and so
    // would break those that are there. VFIO keeps them for itself.
    let virtual_ = host.shell(&format!(
        "cd /sys/bus/pci/devices/{physical}
         echo 1 >sriov_numvfs
         basename \"$(readlink virtfn0)\"
         test \"$(basename \"$(readlink virtfn0/driver)\")\" = vfio-pci"
    ))?;
    let virtual_ = virtual_.trim();
    for (token, taken) in [(None, false), (Some(OTHER), false), (Some(TOKEN), true)] {
        let outcome = host.run(&run("poweroff", backend, virtual_, token).step())?;
        let told = format!("{backend} {token:?}: {}", outcome.stderr);
        if taken {
            assert_eq!(outcome.exit, Exit::Status(0), "{told}");
        } else {
            assert_eq!(outcome.exit, Exit::Status(1), "{told}");
            let words = match token {
                // The plan knows, and nothing is opened.
                None => "its owner's VF token is needed",
                Some(_) => "the token is missing or another one",
            };
            assert!(told.contains(words), "{told}");
            assert!(told.contains("vf-token="), "{told}");
        }
        assert!(!outcome.stderr.contains(TOKEN), "it is a secret: {told}");
    }
    host.shell(&format!(
        "echo 0 >/sys/bus/pci/devices/{physical}/sriov_numvfs"
    ))?;
    owner.signal(15)?;
    assert_eq!(owner.wait()?.exit, Exit::Status(143));
    Ok(())
}

fn machine(name: &str, version: KernelVersion) -> Machine {
    Machine::new(name)
        .kernel(version)
        .cmdline("vfio_pci.enable_sriov=1")
        .device(Device::nvme_sriov("disk", Disk::seeded(4 << 20, 81), 2))
}

#[test]
fn both_ways_want_the_token() {
    scenario(&machine("vf-token", KernelVersion::Recent), |host| {
        token(host, Backend::Type1)?;
        token(host, Backend::Iommufd)
    });
}

/// Before Linux 6.18 a token goes by group only.
#[test]
fn an_older_kernel_takes_it_by_group() {
    scenario(
        &machine("vf-token-older", KernelVersion::Longterm),
        |host| {
            token(host, Backend::Type1)?;
            let device = host.address("disk")?.to_string();
            let run = run("poweroff", Backend::Iommufd, &device, Some(TOKEN));
            let outcome = host.run(&run.step())?;
            assert_eq!(outcome.exit, Exit::Status(1), "{}", outcome.stderr);
            assert!(
                outcome.stderr.contains("--iommu type1"),
                "{}",
                outcome.stderr
            );
            Ok(())
        },
    );
}
