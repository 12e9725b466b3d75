use std::time::Duration;

use lab::airlock::{Run, installed};
use lab::host::{Exit, Host, HostError, Process, Step};
use lab::machine::{Device, Machine};
use lab::{Backend, on_both_backends, scenario};

use super::{
    BOOT, SOON, assert_as_before, assert_disk_works, assert_nic_works, bindings, disk, refused,
    state, succeeds,
};

const ALL: [&str; 2] = ["disk", "nic"];

on_both_backends!(what_a_guest_uses_is_not_taken_from_it);

fn what_a_guest_uses_is_not_taken_from_it(backend: Backend) {
    let machine = Machine::new(format!("in-use-{backend}"))
        .device(Device::nvme("disk", disk()))
        .device(Device::e1000e("nic"));
    scenario(&machine, |host| {
        let before = state(host, &ALL)?;
        held_by_a_running_airlock(host, backend)?;
        assert_as_before(host, &ALL, &before)?;
        for part in [
            unbound_and_released,
            unbound_and_stopped,
            unbound_and_warned,
        ] {
            part(host, backend)?;
            assert_as_before(host, &ALL, &before)?;
        }
        assert_disk_works(host)?;
        assert_nic_works(host, "nic")
    });
}

/// A guest that shows all the time that it lives.
fn guest(host: &Host, backend: Backend, device: &str) -> Result<Run, HostError> {
    let run = Run::tasks("beat").iommu(backend);
    Ok(run.device(host.address(device)?))
}

fn start(host: &Host, run: &Run) -> Result<Process, HostError> {
    let mut process = host.start(&run.step())?;
    process.wait_line("lab: beat", BOOT)?;
    Ok(process)
}

/// Of two that want the same device one gets it, the other is told who has it.
/// Neither opens it.
#[test]
fn of_two_that_bind_one_is_refused() {
    let machine = Machine::new("bind-twice").device(Device::nvme("disk", disk()));
    scenario(&machine, |host| {
        let before = state(host, &["disk"])?;
        let address = host.address("disk")?;
        let airlock = installed("airlock");
        let told = host.shell(&format!(
            "status() {{ if wait $1; then echo done; else echo refused; fi; }}
             {airlock} bind {address} >/dev/null 2>/run/first & first=$!
             {airlock} bind {address} >/dev/null 2>/run/second & second=$!
             status $first; status $second; cat /run/first /run/second"
        ))?;
        let count = |word: &str| told.lines().filter(|line| *line == word).count();
        assert_eq!((count("done"), count("refused")), (1, 1), "{told}");
        assert!(told.contains("is bound already"), "{told}");
        assert_eq!(bindings(host)?.len(), 1, "{told}");
        succeeds(host, &["release", "disk"])?;
        assert_as_before(host, &["disk"], &before)
    });
}

fn held_by_a_running_airlock(host: &Host, backend: Backend) -> Result<(), HostError> {
    let mut running = start(host, &guest(host, backend, "disk")?.bind())?;
    let pid = running.pid().to_string();
    let held = bindings(host)?;
    assert_eq!((held.len(), &held[0]["state"]), (1, &"live".into()));
    assert_eq!(held[0]["owner"]["pid"].to_string(), pid);
    refused(host, &["bind", "disk"], &["is bound already", &pid])?;
    refused(host, &["release", "disk"], &[&pid])?;
    succeeds(host, &["release", "--stale"])?;
    succeeds(host, &["release", "--all"])?;
    let second = host.run(&guest(host, backend, "disk")?.bind().step())?;
    assert_eq!(second.exit, Exit::Status(1), "{}", second.stderr);
    assert!(second.stderr.contains(&pid), "{}", second.stderr);

    assert_eq!(host.driver("disk")?.as_deref(), Some("vfio-pci"));
    running.wait_line("lab: beat", SOON)?;
    running.signal(15)?;
    assert_eq!(running.wait()?.exit, Exit::Status(143));
    Ok(())
}

/// A guest with the NIC, bound before it; somebody unbinds it by hand.
fn with_policy(
    host: &Host,
    backend: Backend,
    policy: &str,
) -> Result<(Process, Process), HostError> {
    succeeds(host, &["bind", "nic"])?;
    let run = guest(host, backend, "nic")?
        .arg("--on-viability-loss")
        .arg(policy);
    let running = start(host, &run)?;
    let pid = running.pid().to_string();
    refused(host, &["release", "nic"], &["in use", "airlock", &pid])?;
    assert_eq!(host.driver("nic")?.as_deref(), Some("vfio-pci"));
    let address = host.address("nic")?;
    let unbind = format!("echo {address} > /sys/bus/pci/drivers/vfio-pci/unbind");
    let unbinding = host.start(&Step::shell(unbind))?;
    Ok((running, unbinding))
}

fn unbound_and_released(host: &Host, backend: Backend) -> Result<(), HostError> {
    let (mut running, unbinding) = with_policy(host, backend, "release")?;
    let address = host.address("nic")?.to_string();
    running.wait_line(&address, SOON)?;
    unbinding.wait()?.expect_success()?;
    assert_eq!(host.driver("nic")?, None);
    // The guest goes on without it.
    running.wait_line("lab: beat", SOON)?;
    running.wait_line("lab: beat", SOON)?;
    succeeds(host, &["release", "nic"])?;
    assert_nic_works(host, "nic")?;
    running.signal(15)?;
    assert_eq!(running.wait()?.exit, Exit::Status(143));
    Ok(())
}

fn unbound_and_stopped(host: &Host, backend: Backend) -> Result<(), HostError> {
    let (mut running, unbinding) = with_policy(host, backend, "stop")?;
    let address = host.address("nic")?.to_string();
    running.wait_line(&address, SOON)?;
    let outcome = running.wait()?;
    assert!(
        matches!(outcome.exit, Exit::Status(status) if status != 0),
        "{:?}",
        outcome.exit
    );
    unbinding.wait()?.expect_success()?;
    assert_eq!(host.driver("nic")?, None);
    succeeds(host, &["release", "nic"])?;
    assert_nic_works(host, "nic")
}

fn unbound_and_warned(host: &Host, backend: Backend) -> Result<(), HostError> {
    let (mut running, unbinding) = with_policy(host, backend, "warn")?;
    let address = host.address("nic")?.to_string();
    running.wait_line(&address, SOON)?;
    // The guest keeps it, and whoever unbinds it waits.
    std::thread::sleep(Duration::from_secs(2));
    assert!(unbinding.is_running());
    running.wait_line("lab: beat", SOON)?;
    // Nobody else waits for ever.
    refused(host, &["release", "nic"], &["in use"])?;
    running.signal(15)?;
    assert_eq!(running.wait()?.exit, Exit::Status(143));
    unbinding.wait()?.expect_success()?;
    succeeds(host, &["release", "nic"])?;
    assert_nic_works(host, "nic")
}
