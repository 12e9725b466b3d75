//! Both kernels of nested hosts: what scenarios rely on is there and works.

use lab::host::{Host, HostError};
use lab::kernel::KernelVersion;
use lab::machine::{Device, Disk, Machine};
use lab::scenario;

/// Half of a machine's memory of 3 GiB.
const NODE: &str = "memory-backend-ram,size=1536M,id";

fn machine(name: &str, version: KernelVersion) -> Machine {
    Machine::new(name)
        .kernel(version)
        .device(Device::nvme("disk", Disk::pattern(1 << 20)))
        .qemu_args(["-object".to_owned(), format!("{NODE}=near")])
        .qemu_args(["-object".to_owned(), format!("{NODE}=far")])
        .qemu_args(["-numa", "node,nodeid=0,memdev=near,cpus=0"])
        .qemu_args(["-numa", "node,nodeid=1,memdev=far"])
}

/// The kernel's version, as two numbers.
fn release(host: &Host) -> Result<(u32, u32), HostError> {
    let text = host.shell("uname -r")?;
    let mut numbers = text.split(['.', '-']).map(|part| part.trim().parse());
    let mut next = || numbers.next().unwrap().expect("no number");
    Ok((next(), next()))
}

/// A device that nobody uses sleeps once it's on vfio-pci.
fn power(host: &Host) -> Result<(), HostError> {
    let status = format!(
        "cat /sys/bus/pci/devices/{}/power/runtime_status",
        host.address("disk")?
    );
    assert_eq!(host.shell(&status)?, "active\n");
    host.bind_vfio(&["disk"])?;
    // The kernel lets it fall asleep a moment later.
    host.shell(&format!(
        "until [ \"$({status})\" = suspended ]; do sleep 0.1; done"
    ))?;
    Ok(())
}

/// Memory comes from the node that a policy names.
fn nodes(host: &Host) -> Result<(), HostError> {
    let nodes = host.shell("cat /sys/devices/system/node/online")?;
    assert_eq!(nodes, "0-1\n");
    for node in 0..2 {
        let taken = host.shell(&format!(
            "cd /sys/devices/system/node/node{node}
             before=$(sed -n 's/.* Shmem: *\\([0-9]*\\) kB/\\1/p' meminfo)
             mkdir /tmp/node{node}
             mount -t tmpfs -o mpol=bind:{node} tmpfs /tmp/node{node}
             head -c 16M /dev/zero >/tmp/node{node}/file
             after=$(sed -n 's/.* Shmem: *\\([0-9]*\\) kB/\\1/p' meminfo)
             umount /tmp/node{node}
             echo $((after - before))"
        ))?;
        let taken: u32 = taken.trim().parse().expect("a number");
        assert!((16 << 10..20 << 10).contains(&taken), "{node}: {taken} KiB");
    }
    Ok(())
}

/// Huge pages: for files in memory when asked for, and of 1 GiB.
fn huge_pages(host: &Host) -> Result<(), HostError> {
    let enabled = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    for choice in ["advise", "never"] {
        let now = host.shell(&format!("echo {choice} >{enabled}; cat {enabled}"))?;
        assert!(now.contains(&format!("[{choice}]")), "{now}");
    }
    let pages = "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages";
    let got = host.shell(&format!("echo 1 >{pages}; cat {pages}; echo 0 >{pages}"))?;
    assert_eq!(got, "1\n");
    Ok(())
}

fn relied_on(name: &str, version: KernelVersion, expected: impl Fn((u32, u32)) -> bool) {
    scenario(&machine(name, version), |host| {
        let release = release(host)?;
        assert!(expected(release), "{version} is {release:?}");
        huge_pages(host)?;
        nodes(host)?;
        power(host)?;
        host.shell("test -c /dev/iommu && test -c /dev/vfio/vfio")?;
        // Its modules are its own.
        host.shell("grep -q virtio_vfio_pci /lib/modules/$(uname -r)/modules.dep")?;
        Ok(())
    });
}

#[test]
fn longterm() {
    relied_on("longterm", KernelVersion::Longterm, |release| {
        release == (6, 12)
    });
}

#[test]
fn recent() {
    relied_on("recent", KernelVersion::Recent, |release| release >= (7, 2));
}
