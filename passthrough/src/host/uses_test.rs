use super::*;
use crate::host::fake::FakeHost;

const NVME: &str = "0000:01:00.0";
const SATA: &str = "0000:00:1f.2";
const NIC: &str = "0000:02:00.0";

/// The uses as `device: text`.
fn uses(host: &FakeHost) -> Vec<String> {
    let uses = read(&host.host());
    uses.iter()
        .flat_map(|(device, uses)| uses.iter().map(move |what| format!("{device} {what}")))
        .collect()
}

/// Block device `name` with `number` at `place` below /sys/devices.
fn block(host: &FakeHost, number: &str, name: &str, place: &str) {
    let target = format!("../../devices/{place}");
    host.link(&format!("/sys/dev/block/{number}"), &target)
        .link(&format!("/sys/class/block/{name}"), &target)
        .file(&format!("/sys/devices/{place}/dev"), number);
}

fn sata_disk(host: &FakeHost) {
    let disk = format!("pci0000:00/{SATA}/ata1/host0/target0:0:0/0:0:0:0/block/sda");
    block(host, "8:0", "sda", &disk);
    block(host, "8:2", "sda2", &format!("{disk}/sda2"));
}

#[test]
fn a_partition_of_a_disk() {
    let host = FakeHost::new();
    sata_disk(&host);
    host.file(
        "/proc/self/mountinfo",
        "22 1 0:21 / /proc rw - proc proc rw\n\
         25 1 8:2 / /boot rw,relatime shared:1 - ext4 /dev/sda2 rw\nnonsense\n",
    );
    assert_eq!(
        uses(&host),
        ["0000:00:1f.2 has the disk of /boot behind it (sda2 is mounted there)"]
    );
}

#[test]
fn btrfs_is_found_by_its_source() {
    let host = FakeHost::new();
    sata_disk(&host);
    host.link("/dev/mapper/root", "../sda2").file(
        "/proc/1/mountinfo",
        "25 1 0:30 /@ / rw - btrfs /dev/mapper/root rw\n26 1 0:31 / /x rw - overlay ../../sda2 rw\n",
    );
    assert_eq!(
        uses(&host),
        ["0000:00:1f.2 has the disk of / behind it (sda2 is mounted there)"]
    );
}

#[test]
fn what_dm_and_md_are_made_of() {
    let host = FakeHost::new();
    sata_disk(&host);
    let nvme = format!("pci0000:00/0000:00:1d.0/{NVME}/nvme/nvme0/nvme0n1");
    block(&host, "259:0", "nvme0n1", &nvme);
    // dm-0 on a partition of md0, which is a mirror of both disks.
    block(&host, "253:0", "dm-0", "virtual/block/dm-0");
    block(&host, "9:0", "md0", "virtual/block/md0");
    block(&host, "259:9", "md0p1", "virtual/block/md0/md0p1");
    host.file("/sys/devices/virtual/block/dm-0/slaves/md0p1/x", "")
        .file("/sys/devices/virtual/block/md0/slaves/sda2/x", "")
        .file("/sys/devices/virtual/block/md0/slaves/nvme0n1/x", "")
        .file(
            "/proc/self/mountinfo",
            "25 1 253:0 / / rw - xfs /dev/dm-0 rw\n",
        );
    assert_eq!(
        uses(&host),
        [
            "0000:00:1f.2 has the disk of / behind it (dm-0 is mounted there)",
            "0000:01:00.0 has the disk of / behind it (dm-0 is mounted there)",
        ]
    );
}

#[test]
fn an_nvme_disk_with_several_ways() {
    let host = FakeHost::new();
    let folder = "virtual/nvme-subsystem/nvme-subsys0";
    block(&host, "259:0", "nvme0n1", &format!("{folder}/nvme0n1"));
    host.link(
        &format!("/sys/devices/{folder}/nvme0"),
        &format!("../../../pci0000:00/0000:00:1d.0/{NVME}/nvme/nvme0"),
    )
    .file(
        "/proc/swaps",
        "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n/swapfile file 1 0 -3\n",
    );
    assert_eq!(uses(&host), ["0000:01:00.0 has swap behind it (nvme0n1)"]);
}

#[test]
fn the_default_route_through_a_bridge_and_a_bond() {
    let host = FakeHost::new();
    host.link("/sys/class/net/br0", "../../devices/virtual/net/br0")
        .link("/sys/class/net/bond0", "../../devices/virtual/net/bond0")
        .link(
            "/sys/class/net/eth0",
            &format!("../../devices/pci0000:00/0000:00:1c.0/{NIC}/net/eth0"),
        );
    let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  IFACE 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n\
                  IFACE 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
    host.file("/proc/self/net/route", routes.replace("IFACE", "eth0"));
    let expected = "0000:02:00.0 carries the default route (by eth0)";
    assert_eq!(uses(&host), [expected]);

    host.file("/sys/devices/virtual/net/br0/lower_bond0/x", "")
        .file("/sys/devices/virtual/net/bond0/lower_eth0/x", "")
        .link("/sys/class/net/br0", "../../devices/virtual/net/br0")
        .file("/proc/self/net/route", routes.replace("IFACE", "br0"));
    assert_eq!(
        uses(&host),
        ["0000:02:00.0 carries the default route (by br0)"]
    );

    let zeros = "0".repeat(32);
    let v6 = |flags: &str, interface: &str| {
        format!("{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 {flags} {interface}\n")
    };
    host.remove("/proc/self/net/route").file(
        "/proc/1/net/ipv6_route",
        v6("00000003", "eth0") + &v6("00200200", "lo"),
    );
    assert_eq!(uses(&host), [expected]);
    host.file("/proc/1/net/ipv6_route", v6("00000203", "eth0"));
    assert_eq!(uses(&host), [""; 0], "a route that rejects leads nowhere");
}

#[test]
fn rings_end() {
    let host = FakeHost::new();
    for (name, lower) in [("a", "b"), ("b", "a")] {
        host.link(
            &format!("/sys/class/net/{name}"),
            &format!("../../devices/virtual/net/{name}"),
        )
        .file(
            &format!("/sys/devices/virtual/net/{name}/lower_{lower}/x"),
            "",
        );
    }
    host.file(
        "/proc/self/net/route",
        "a 00000000 0 0003 0 0 0 00000000 0 0 0\n../x 00000000 0 0003 0 0 0 00000000 0 0 0\n",
    );
    assert_eq!(uses(&host), [""; 0]);
}
