use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::fake::{FakeHost, request};
use super::*;
use crate::plan::{GuestRange, Plan};

const NVME: &str = "0000:00:1c.0/0000:01:00.0";

#[test]
fn a_function_is_read_with_everything_around_it() {
    let host = FakeHost::new();
    host.bridge("0000:00:1c.0", Some(3), "pcieport")
        .endpoint(NVME, Some(12), "vfio-pci")
        .file(
            "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/vfio-dev/vfio3/dev",
            "511:3",
        )
        .file("/sys/kernel/iommu_groups/12/type", "DMA-FQ\n")
        .file(
            "/sys/kernel/iommu_groups/12/reserved_regions",
            "0x00000000fee00000 0x00000000feefffff msi\n",
        );
    let survey = host.survey();
    let address = "0000:01:00.0".parse().unwrap();
    let function = &survey.functions[&address];
    assert_eq!(function.ids.unwrap().device, 0x10d3);
    assert_eq!(function.driver.as_deref(), Some("vfio-pci"));
    assert_eq!(function.vfio_device.as_deref(), Some("vfio3"));
    assert_eq!(function.parents, ["0000:00:1c.0".parse().unwrap()]);
    assert_eq!(function.unreadable, []);
    let group = &survey.groups[&function.group.unwrap()];
    assert_eq!(group.domain.as_deref(), Some("DMA-FQ"));
    assert_eq!(group.reserved[0].kind, ReservedKind::Msi);
    assert_eq!(group.members[0].address, Some(address));
    assert_eq!(group.node.state, NodeState::Accessible);
    let unit = survey.iommu.unit_of(address).unwrap();
    assert_eq!(unit.address_width, Some(39));
    assert_eq!(unit.can_remap_interrupts, Some(true));
    assert_eq!(survey.iommu.interrupt_remapping.state, Remapping::On);
    assert_eq!(
        survey.endpoints_behind("0000:00:1c.0".parse().unwrap()),
        [address]
    );
}

#[test]
fn interrupt_remapping_is_concluded_from_what_there_is() {
    let host = FakeHost::new();
    let state = || host.survey().iommu.interrupt_remapping.state;
    host.file(
        "/proc/interrupts",
        " CPU0\n 24: 0 PCI-MSIX-0000:00:01.0 0-edge x\n",
    );
    assert_eq!(state(), Remapping::Off);
    host.file(
        "/proc/interrupts",
        " CPU0\n 30: 0 IR-PCI-MSIX-0000:01:00.0 0-edge x\n",
    );
    assert_eq!(state(), Remapping::On);
    host.file(
        "/proc/interrupts",
        " CPU0\n 12: 7 GICv3 27 Level arch_timer\n",
    );
    assert_eq!(state(), Remapping::Unknown);
    host.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "f00f42\n");
    assert_eq!(state(), Remapping::Off);
    host.remove("/proc/interrupts");
    assert_eq!(state(), Remapping::Off);
}

#[test]
fn units_are_told_apart() {
    let host = FakeHost::without_iommu();
    host.file("/sys/class/iommu/ivhd0/amd-iommu/cap", "40f\n")
        .file("/sys/class/iommu/0000:00:1e.0/devices/0000:00:13.0", "")
        .file("/sys/class/iommu/smmu3.0x2b400000/devices/x", "");
    let units = host.survey().iommu.units;
    let kinds: Vec<_> = units.iter().map(|unit| unit.kind).collect();
    assert_eq!(
        kinds,
        [IommuKind::Virtio, IommuKind::AmdVi, IommuKind::Other]
    );
    assert_eq!(units[0].devices, ["0000:00:13.0".parse().unwrap()]);
    assert_eq!(units[1].capability, Some(0x40f));
    assert_eq!(units[1].address_width, None);
}

#[test]
fn a_survey_is_data() {
    let host = FakeHost::new();
    host.endpoint(NVME, Some(12), "vfio-pci")
        .holder(7, "qemu", "/dev/vfio/12");
    let survey = host.survey();
    let text = serde_json::to_string(&survey).unwrap();
    assert!(text.contains("\"0000:01:00.0\":{"), "{text}");
    assert_eq!(serde_json::from_str::<Survey>(&text).unwrap(), survey);
}

#[test]
fn a_machine_without_pci_is_named() {
    let host = FakeHost::new();
    host.remove("/sys/bus");
    let error = Survey::read(&host.host()).unwrap_err().to_string();
    assert!(error.contains("mount -t sysfs"), "{error}");
}

#[test]
fn the_control_file_alone_needs_no_search_through_processes() {
    let host = FakeHost::new();
    host.holder(7, "qemu", "/dev/vfio/12");
    assert_eq!(host.survey().holders, Holders::default());
    host.endpoint(NVME, Some(12), "vfio-pci");
    let holders = host.survey().holders;
    let expected = Holder {
        pid: 7,
        name: "qemu".to_owned(),
        file: "/dev/vfio/12".to_owned(),
    };
    assert_eq!(holders.seen, [expected]);
}

#[test]
fn permission_is_asked_for_without_opening() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kvm");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    let node = node::Node::read(&Host::at(folder.path()), "/kvm");
    let root = process::Process::read(&Host::system()).is_root();
    match node.state {
        NodeState::Accessible => assert!(root, "mode 0 is for the superuser"),
        NodeState::Denied { mode, .. } => assert!(!root && mode == 0),
        NodeState::Missing => panic!("it is there"),
    }
    let none = node::Node::read(&Host::at(folder.path()), "/none");
    assert_eq!(none.state, NodeState::Missing);
}

#[test]
fn ten_thousand_functions_cost_a_few_looks_each() {
    let host = FakeHost::new();
    let place = "0000:00:00.0";
    host.endpoint(place, Some(0), "e1000e")
        .attribute(place, "resource", "")
        .attribute(place, "numa_node", "0\n")
        .attribute(place, "driver_override", "(null)\n")
        .attribute(place, "current_link_speed", "8.0 GT/s PCIe\n")
        .attribute(place, "current_link_width", "4\n");
    let count: u32 = 10_000;
    for n in 1..count {
        // One folder with as many names: making them all would take minutes.
        let (bus, device, function) = (n >> 8, n >> 3 & 0x1f, n & 7);
        let name = format!("/sys/bus/pci/devices/0000:{bus:02x}:{device:02x}.{function}");
        host.link(&name, "../../../devices/pci0000:00/0000:00:00.0")
            .link(&format!("/sys/kernel/iommu_groups/{n}"), "0");
    }
    let tree = host.host();
    let survey = Survey::read(&tree).unwrap();
    assert_eq!(survey.functions.len(), count as usize);
    assert_eq!(survey.groups.len(), count as usize);
    // 14 for a function, 4 for its group, some for the host. A tenth of a
    // millisecond in a sysfs, all together.
    let looks = tree.operations();
    assert!(looks <= u64::from(count) * 18 + 80, "{looks} looks");
    assert!(
        survey
            .functions
            .values()
            .all(|function| function.unreadable.is_empty())
    );
}

#[test]
fn what_a_function_tells_of_itself() {
    let host = FakeHost::new();
    host.endpoint(NVME, Some(12), "nvme")
        .attribute(NVME, "numa_node", "1\n")
        .attribute(NVME, "driver_override", "vfio-pci\n")
        .attribute(NVME, "current_link_speed", "2.5 GT/s PCIe\n")
        .attribute(NVME, "current_link_width", "1\n")
        .attribute(NVME, "reset", "");
    let function = |host: &FakeHost| {
        let survey = host.survey();
        survey.functions[&"0000:01:00.0".parse().unwrap()].clone()
    };
    let found = function(&host);
    assert_eq!(found.numa_node, Some(1));
    assert_eq!(
        found.driver_override,
        DriverOverride::Only("vfio-pci".to_owned())
    );
    assert_eq!(found.reset.methods, ["flr", "bus"]);
    let rate = |speed, width| LinkRate { speed, width };
    let link = found.link.unwrap();
    assert_eq!(
        (link.max, link.current),
        (rate(8000, 4), Some(rate(2500, 1)))
    );
    assert!(found.is_express());

    // One that sleeps is not woken for its link.
    host.attribute(NVME, "power_state", "D3hot\n")
        .attribute(NVME, "numa_node", "-1\n")
        .attribute(NVME, "driver_override", "(null)\n");
    let found = function(&host);
    assert_eq!(found.link.unwrap().current, None);
    assert_eq!(found.numa_node, None);
    assert_eq!(found.driver_override, DriverOverride::Any);
}

#[test]
fn what_may_wait_for_a_guest_is_not_asked() {
    let asked = |driver: &str, class: &str| {
        let host = FakeHost::new();
        host.endpoint(NVME, Some(12), driver)
            .attribute(NVME, "driver_override", "vfio-pci\n");
        if !class.is_empty() {
            host.file(&format!("{class}/dev"), "");
        }
        let survey = host.survey();
        let function = &survey.functions[&"0000:01:00.0".parse().unwrap()];
        function.driver_override != DriverOverride::NotAsked
    };
    assert!(asked("nvme", ""));
    assert!(
        asked("nvme", "/sys/class/vfio/12"),
        "an unbind of it ends by itself"
    );
    assert!(asked("", ""));
    assert!(asked("", "/sys/class/vfio/13"));
    // On its way out of VFIO a device has no driver, but its group is there.
    assert!(!asked("", "/sys/class/vfio/12"));
    assert!(!asked("", "/sys/class/vfio/noiommu-12"));
    assert!(
        !asked("", "/sys/class/vfio-dev/vfio0"),
        "a kernel without groups"
    );
    assert!(!asked("vfio-pci", ""));
    assert!(!asked("mlx5_vfio_pci", ""));
}

#[test]
fn a_host_that_changes_while_it_is_read() {
    let host = FakeHost::new();
    let other = "0000:00:1c.0/0000:01:00.1";
    host.endpoint(NVME, Some(12), "vfio-pci");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Comes and goes, in the order in which the kernel does it.
                host.endpoint(other, Some(12), "nvme");
                host.remove("/sys/kernel/iommu_groups/12/devices/0000:01:00.1")
                    .remove("/sys/bus/pci/devices/0000:01:00.1")
                    .remove(&format!("/sys/devices/pci0000:00/{other}"))
                    .remove("/sys/class/iommu/dmar0/devices/0000:01:00.1");
            }
        });
        for _ in 0..300 {
            let survey = host.survey();
            let plan = Plan::make(&survey, &request(&["01:00.0"]));
            let group = &survey.groups[&GroupId(12)];
            let verdict = crate::viability::Verdict::judge(&survey, GroupId(12)).unwrap();
            // Who was seen in the group and is not known to be harmless blocks.
            assert_eq!(verdict.members.len(), group.members.len());
            let harmless = verdict.members.iter().all(|member| !member.state.blocks());
            assert_eq!(plan.is_go(), harmless, "{plan}");
            for function in survey.functions.values() {
                for what in &function.unreadable {
                    assert!(!what.reason.is_empty(), "{what:?}");
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Bytes that are like what the kernel writes, or not at all.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        "[0-9a-fx:. \n]{0,80}".prop_map(String::into_bytes),
        "pci:v[0-9A-F]{4,9}d[0-9A-F]{8}sv[0-9A-F]{8}sd[0-9A-Fé]{8}bc".prop_map(String::into_bytes),
        "(0x[0-9a-f]{0,17} ){0,4}(direct|msi|x)?\n".prop_map(String::into_bytes),
        "Max locked memory( [0-9]{0,22}){0,3}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_garbage_panics(
        texts in proptest::collection::vec(garbage(), 32),
        links in proptest::collection::vec("[0-9a-f:./]{1,20}|[^\\x00]{1,10}", 5),
        memory: u64,
    ) {
        let host = FakeHost::new();
        host.endpoint(NVME, Some(12), "vfio-pci");
        let folder = format!("/sys/devices/pci0000:00/{NVME}");
        let files = [
            format!("{folder}/modalias"),
            format!("{folder}/resource"),
            "/sys/kernel/iommu_groups/12/type".to_owned(),
            "/sys/kernel/iommu_groups/12/name".to_owned(),
            "/sys/kernel/iommu_groups/12/reserved_regions".to_owned(),
            "/sys/class/iommu/dmar0/intel-iommu/cap".to_owned(),
            "/sys/class/iommu/dmar0/intel-iommu/ecap".to_owned(),
            "/sys/class/iommu/ivhd0/amd-iommu/cap".to_owned(),
            "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts".to_owned(),
            "/proc/sys/kernel/osrelease".to_owned(),
            "/proc/self/status".to_owned(),
            "/proc/self/limits".to_owned(),
            "/proc/self/uid_map".to_owned(),
            "/proc/interrupts".to_owned(),
            "/proc/cmdline".to_owned(),
            "/proc/9/comm".to_owned(),
            format!("{folder}/numa_node"),
            format!("{folder}/reset_method"),
            format!("{folder}/driver_override"),
            format!("{folder}/power_state"),
            format!("{folder}/max_link_speed"),
            format!("{folder}/max_link_width"),
            format!("{folder}/boot_vga"),
            format!("{folder}/sriov_totalvfs"),
            format!("{folder}/config"),
            "/proc/self/mountinfo".to_owned(),
            "/proc/swaps".to_owned(),
            "/proc/self/net/route".to_owned(),
            "/proc/1/net/ipv6_route".to_owned(),
            "/lib/modules/6.12.107/modules.alias".to_owned(),
            "/lib/modules/6.12.107/modules.dep".to_owned(),
            "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages".to_owned(),
        ];
        for (file, text) in files.iter().zip(&texts) {
            host.file(file, text);
        }
        for (name, target) in ["driver", "iommu_group", "physfn"].iter().zip(&links) {
            host.link(&format!("{folder}/{name}"), target);
        }
        host.link("/proc/9/fd/3", &links[3]).link("/proc/self/exe", &links[4]);
        let survey = host.survey();
        let mut request = request(&["0000:01:00.0", "1:0.0", &links[4]]);
        request.memory_bytes = Some(memory);
        request.huge_pages = Some(2 << 20);
        request.ram = vec![GuestRange { start: memory.rotate_left(7), size: memory }];
        request.force = vec![links[2].clone()];
        let plan = Plan::make(&survey, &request);
        prop_assert!(!plan.is_go(), "the device is given twice");
        prop_assert!(plan.to_string().ends_with("failed"));
        let text = serde_json::to_string(&(&survey, &plan)).unwrap();
        prop_assert_eq!(serde_json::from_str::<(Survey, Plan)>(&text).unwrap(), (survey, plan));
    }
}
