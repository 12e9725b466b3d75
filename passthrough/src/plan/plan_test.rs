use super::*;
use crate::host::fake::{FakeHost, request};

const ISOLATED: &str = "0000:00:1c.0/0000:01:00.0";
const DEVICE: &str = "0000:01:00.0";

/// An endpoint alone in group 12 behind a root port in group 3.
fn isolated(driver: &str) -> FakeHost {
    let host = FakeHost::new();
    host.bridge("0000:00:1c.0", Some(3), "pcieport")
        .endpoint(ISOLATED, Some(12), driver);
    host
}

/// The failed items as `reason` and remedies, a line each.
fn failures(plan: &Plan) -> Vec<String> {
    plan.failures()
        .flat_map(|item| {
            let fixes = item.remedies.iter().map(|remedy| format!("fix: {remedy}"));
            std::iter::once(item.reason.clone()).chain(fixes)
        })
        .collect()
}

#[track_caller]
fn assert_no(plan: &Plan, expected: &[&str]) {
    assert!(!plan.is_go());
    assert_eq!(failures(plan), expected, "\n{plan}");
}

#[test]
fn a_device_that_is_ready() {
    let plan = isolated("vfio-pci").plan(&["01:00.0"]);
    assert!(plan.is_go(), "{plan}");
    assert_eq!(plan.devices, [DEVICE.parse().unwrap()]);
    assert_eq!(
        plan.to_string(),
        "✓ 0000:01:00.0 is on vfio-pci\n\
         ✓ 0000:01:00.0 can be reset by itself (flr, bus)\n\
         ✓ group 12 is viable: one device, isolated\n\
         ✓ /dev/vfio/12 may be opened\n\
         ✓ the IOMMU is on: Intel VT-d (dmar0, 39-bit addresses)\n\
         ✓ interrupt remapping is on\n\
         ✓ /dev/vfio/vfio may be opened\n\
         ✓ devices are taken by group and container (type1); iommufd is not used, and /dev/iommu is missing\n\
         ✓ /dev/kvm may be opened\n\
         ready: the device can be given to a guest"
    );
}

#[test]
fn a_plan_is_data() {
    let plan = isolated("nvme").plan(&[DEVICE, "x"]);
    let text = serde_json::to_string(&plan).unwrap();
    assert!(
        text.starts_with("{\"version\":2,\"devices\":[\"0000:01:00.0\"],"),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn without_devices_only_kvm_counts() {
    let host = FakeHost::without_iommu();
    host.remove("/dev/vfio");
    let plan = host.plan(&[]);
    assert!(plan.is_go());
    assert_eq!(
        plan.to_string(),
        "✓ /dev/kvm may be opened\nready: no device was asked for"
    );
}

#[test]
fn arguments_that_name_no_device() {
    let host = isolated("vfio-pci");
    let plan = host.plan(&["nvme0"]);
    assert_no(
        &plan,
        &[
            "'nvme0' is not a PCI address: write it as SSSS:BB:DD.F in hexadecimal, for example 0000:01:00.0 (see `lspci -D`)",
        ],
    );
    assert!(
        plan.to_string()
            .ends_with("not ready: 1 of 2 checks failed")
    );
    assert_no(
        &host.plan(&["0000:01:20.0"]),
        &["'0000:01:20.0' is not a PCI address: device 0x20 is above 0x1f"],
    );
    assert_no(
        &host.plan(&["02:00.0"]),
        &[
            "there is no PCI function 0000:02:00.0 on this host",
            "fix: lspci -D",
        ],
    );
    assert_no(
        &host.plan(&["01:00.1"]),
        &[
            "there is no PCI function 0000:01:00.1 on this host; in that slot there is 0000:01:00.0",
            "fix: lspci -D",
        ],
    );
}

#[test]
fn the_same_device_twice() {
    let host = isolated("vfio-pci");
    let plan = host.plan(&[DEVICE, "01:00.0", DEVICE]);
    assert_eq!(plan.devices.len(), 1);
    assert_no(
        &plan,
        &[
            "0000:01:00.0 is given twice (as '0000:01:00.0' and as '01:00.0')",
            "fix: name each device once",
            "0000:01:00.0 is given twice",
            "fix: name each device once",
        ],
    );
}

#[test]
fn a_device_on_its_host_driver() {
    let host = isolated("nvme");
    let steps = "airlock bind 0000:01:00.0";
    let reason = "0000:01:00.0 is on the host driver 'nvme'; a guest can get it only from vfio-pci";
    assert_no(&host.plan(&[DEVICE]), &[reason, &format!("fix: {steps}")]);

    host.remove("/sys/bus/pci/drivers/vfio-pci").user(1000, "0");
    let expected = format!("fix: sudo {steps}");
    assert_no(&host.plan(&[DEVICE]), &[reason, &expected]);
}

#[test]
fn a_device_without_a_driver_or_on_a_stub() {
    let fix = "fix: airlock bind 0000:01:00.0";
    assert_no(
        &isolated("").plan(&[DEVICE]),
        &[
            "0000:01:00.0 has no driver; a guest can get it only from vfio-pci",
            fix,
        ],
    );
    let plan = isolated("pci-stub").plan(&[DEVICE]);
    let found = &failures(&plan)[0];
    assert_eq!(
        found,
        "0000:01:00.0 is on pci-stub, which only keeps it unused; a guest can get it only from vfio-pci"
    );
}

#[test]
fn a_host_without_an_iommu() {
    let host = FakeHost::without_iommu();
    host.endpoint(DEVICE, None, "vfio-pci");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "0000:01:00.0 is in no IOMMU group: the firmware has an IOMMU (ACPI table DMAR), but the kernel does not use it",
            "fix: add intel_iommu=on to the kernel's command line and reboot",
        ],
    );
    host.file("/proc/cmdline", "quiet intel_iommu=off intremap=off");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "0000:01:00.0 is in no IOMMU group: the kernel's command line turns the IOMMU off ('intel_iommu=off')",
            "fix: take 'intel_iommu=off' off the kernel's command line and reboot",
        ],
    );
    host.endpoint("0000:01:00.1", None, "nvme");
    assert_eq!(
        failures(&host.plan(&["01:00.1"]))[2..],
        [
            "0000:01:00.1 is on the host driver 'nvme'; a guest can get it only from vfio-pci",
            "fix: get an IOMMU in front of it first: vfio-pci refuses a device without a group",
        ]
    );
    host.file("/proc/cmdline", "quiet").remove("/sys/firmware");
    let found = failures(&host.plan(&[DEVICE])).join("\n");
    assert!(found.contains("the firmware announces no IOMMU"), "{found}");
    assert!(
        found.contains("turn on VT-d (Intel) or AMD-Vi (AMD)"),
        "{found}"
    );
}

#[test]
fn a_device_that_the_iommu_does_not_cover() {
    let host = FakeHost::new();
    host.endpoint(DEVICE, None, "vfio-pci");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "0000:01:00.0 is in no IOMMU group: the host's IOMMU (dmar0) does not cover it, so nothing confines its DMA",
            "fix: put the device into a slot that the IOMMU covers; in a virtual machine, behind its IOMMU (QEMU: no bypass_iommu)",
        ],
    );
}

#[test]
fn a_noiommu_group() {
    let host = FakeHost::without_iommu();
    host.endpoint(DEVICE, Some(0), "vfio-pci")
        .remove("/sys/class/iommu/dmar0")
        .file("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "0000:01:00.0 is in noiommu group 0: nothing confines its DMA, so it can't go to a guest",
            "fix: add intel_iommu=on to the kernel's command line and reboot",
        ],
    );
    let group = &host.survey().groups[&crate::host::GroupId(0)];
    assert_eq!(group.node.path, "/dev/vfio/noiommu-0");
}

#[test]
fn another_member_on_a_host_driver() {
    let host = isolated("vfio-pci");
    host.endpoint("0000:00:1c.0/0000:01:00.1", Some(12), "snd_hda_intel");
    let fix = "fix: airlock bind 0000:01:00.1";
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "group 12 is not viable: 0000:01:00.1 is on the host driver 'snd_hda_intel' (rule: DMA ownership, Linux 5.19 and later)",
            fix,
        ],
    );
    let plan = host.kernel("5.10.0-28-amd64").plan(&[DEVICE]);
    assert!(failures(&plan)[0].ends_with("(rule: allow-list, Linux up to 5.18)"));
}

#[test]
fn a_group_is_checked_once_for_all_its_devices() {
    let host = isolated("vfio-pci");
    host.endpoint("0000:00:1c.0/0000:01:00.1", Some(12), "vfio-pci");
    let plan = host.plan(&[DEVICE, "01:00.1"]);
    assert!(plan.is_go(), "{plan}");
    let viable = "✓ group 12 is viable: 0000:01:00.0 is on vfio-pci; 0000:01:00.1 is on vfio-pci\n";
    assert_eq!(plan.to_string().matches(viable).count(), 1, "{plan}");
    assert!(
        plan.to_string()
            .ends_with("ready: the 2 devices can be given to a guest")
    );
}

#[test]
fn a_bridge_is_not_given() {
    let host = isolated("vfio-pci");
    let plan = host.plan(&["00:1c.0"]);
    assert_no(
        &plan,
        &[
            "0000:00:1c.0 is a bridge: VFIO gives only endpoints to guests (header type 0)",
            "fix: name a device behind it: 0000:01:00.0",
        ],
    );
    host.bridge("0000:00:1d.0", Some(4), "pcieport");
    assert_eq!(
        failures(&host.plan(&["00:1d.0"]))[1],
        "fix: name an endpoint; there is none behind this bridge"
    );
}

#[test]
fn physical_and_virtual_functions() {
    let host = isolated("ixgbe");
    host.virtual_function("0000:00:1c.0/0000:01:10.0", Some(13), "vfio-pci", DEVICE)
        .virtual_function("0000:00:1c.0/0000:01:10.2", Some(14), "ixgbevf", DEVICE);
    let plan = host.plan(&["01:10.0"]);
    assert!(plan.is_go(), "a VF of a PF that the host drives\n{plan}");
    let found = failures(&host.plan(&[DEVICE]));
    assert_eq!(
        found[..3],
        [
            "0000:01:00.0 is a physical function with 2 VFs enabled (0000:01:10.0, 0000:01:10.2): it can't go to a guest while they exist",
            "fix: echo 0 > /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs",
            "fix: or leave it to the host and give VFs to the guest",
        ]
    );

    let host = isolated("vfio-pci");
    host.virtual_function("0000:00:1c.0/0000:01:10.0", Some(13), "vfio-pci", DEVICE);
    assert_no(
        &host.plan(&["01:10.0"]),
        &[
            "0000:01:10.0 is a VF of 0000:01:00.0, which is itself on vfio-pci: its owner's VF token is needed, and it may reset the VF at any time",
            "fix: give 0000:01:00.0 back to its host driver first",
            "fix: or, if that is wanted, give the token that its owner has set (vf-token=UUID)",
        ],
    );
    let mut asked = request(&["0000:01:10.0"]);
    asked.with_token = vec!["0000:01:10.0".parse().unwrap()];
    let plan = Plan::make(&host.survey(), &asked);
    assert!(plan.is_go(), "{plan}");
    assert!(plan.to_string().contains("its token was given"), "{plan}");
}

#[test]
fn memory_that_firmware_keeps() {
    let host = isolated("vfio-pci");
    let regions = "/sys/kernel/iommu_groups/12/reserved_regions";
    host.file(
        regions,
        "0x7b000000 0x7b7fffff direct-relaxable\n0xfee00000 0xfeefffff msi\n",
    );
    assert!(host.plan(&[DEVICE]).is_go());
    host.file(regions, "0x7b000000 0x7b7fffff direct\n");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "the firmware keeps memory 0x7b000000-0x7b7fffff mapped for group 12 (RMRR), so the kernel won't give its devices away",
            "fix: look in the firmware's setup for shared memory or management access of this slot and turn it off, or use another slot",
        ],
    );
}

#[test]
fn what_cannot_be_read_is_refused() {
    let host = isolated("");
    host.file(&format!("/sys/devices/pci0000:00/{ISOLATED}/driver/x"), "");
    let plan = host.plan(&[DEVICE]);
    assert!(!plan.is_go());
    let found = &failures(&plan)[0];
    assert!(
        found.starts_with("cannot make sense of /sys/bus/pci/devices/0000:01:00.0/driver: "),
        "{found}"
    );

    // Ranges that make no sense do not change what the device is.
    let host = isolated("vfio-pci");
    host.file(
        &format!("/sys/devices/pci0000:00/{ISOLATED}/resource"),
        "zzz\n",
    );
    let plan = host.plan(&[DEVICE]);
    assert!(plan.is_go(), "{plan}");
    assert!(
        plan.to_string().contains("! cannot make sense of"),
        "{plan}"
    );
}

#[test]
fn a_group_in_use() {
    let host = isolated("vfio-pci");
    host.holder(4242, "qemu-system-x86", "/dev/vfio/12");
    assert_no(
        &host.plan(&[DEVICE]),
        &[
            "group 12 is in use: 'qemu-system-x86' (pid 4242) has /dev/vfio/12 open",
            "fix: shut that virtual machine down, or end the process: kill 4242",
        ],
    );
    host.holder(4242, "qemu-system-x86", "/dev/vfio/13");
    assert!(
        host.plan(&[DEVICE]).is_go(),
        "another group does not matter"
    );
    host.holder(4242, "qemu-system-x86", "/dev/vfio/vfio");
    assert!(host.plan(&[DEVICE]).is_go(), "nor does the container");

    let vfio = format!("/sys/devices/pci0000:00/{ISOLATED}/vfio-dev/vfio3/dev");
    host.file(&vfio, "")
        .holder(7, "vmm", "/dev/vfio/devices/vfio3");
    let found = failures(&host.plan(&[DEVICE]));
    assert_eq!(
        found[0],
        "group 12 is in use: 'vmm' (pid 7) has /dev/vfio/devices/vfio3 open"
    );
}

#[test]
fn processes_that_cannot_be_looked_at_are_counted() {
    let mut survey = isolated("vfio-pci").survey();
    survey.holders.hidden = 231;
    let plan = Plan::make(&survey, &request(&[DEVICE]));
    assert!(plan.is_go());
    let line = "✓ no process seen has group 12 open (231 can't be looked at)\n";
    assert!(plan.to_string().contains(line), "{plan}");
}
