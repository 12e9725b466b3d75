use super::*;
use crate::machine::{Disk, Iommu};

fn files() -> QemuFiles {
    QemuFiles {
        kernel: "/k".into(),
        initrd: "/i".into(),
        work: "/a,b".into(),
        console: "/c".into(),
        disks: [("disk".to_owned(), PathBuf::from("/d.img"))].into(),
    }
}

fn plan(machine: &Machine) -> QemuPlan {
    command_line(machine, &files()).unwrap()
}

/// The values of the option, in order.
fn values<'a>(plan: &'a QemuPlan, option: &str) -> Vec<&'a str> {
    plan.args
        .windows(2)
        .filter(|pair| pair[0] == option)
        .map(|pair| pair[1].as_str())
        .collect()
}

fn devices(machine: &Machine) -> Vec<String> {
    let base = values(&plan(&Machine::new("base")), "-device").len();
    values(&plan(machine), "-device")[base..]
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_base_is_the_machine_that_was_seen_to_work() {
    let plan = plan(
        &Machine::new("m")
            .cpus(2)
            .memory_mib(1024)
            .cmdline("x=1")
            .cpu_flag("-smap"),
    );
    assert_eq!(
        values(&plan, "-machine"),
        ["q35,accel=tcg,kernel-irqchip=split"]
    );
    assert_eq!(values(&plan, "-cpu"), [format!("{CPU},-smap")]);
    assert_eq!(values(&plan, "-smp"), ["2"]);
    assert_eq!(values(&plan, "-m"), ["1024"]);
    assert_eq!(
        values(&plan, "-append"),
        [format!(
            "console=ttyS0 panic=-1 quiet {CLOCKS} intel_iommu=on x=1"
        )]
    );
    assert_eq!(
        values(&plan, "-device")[0],
        "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=39"
    );
    assert_eq!(
        values(&plan, "-fsdev"),
        [
            "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on",
            "local,id=work,path=/a,,b,security_model=none,multidevs=remap"
        ]
    );
}

#[test]
fn the_iommu_can_be_wider_without_remapping_or_absent() {
    let wide = Iommu {
        address_bits: 48,
        interrupt_remapping: false,
    };
    let with = plan(&Machine::new("m").iommu(Some(wide)));
    assert_eq!(
        values(&with, "-device")[0],
        "intel-iommu,intremap=off,caching-mode=on,device-iotlb=on,aw-bits=48"
    );
    let without = plan(&Machine::new("m").iommu(None));
    assert!(!without.args.iter().any(|arg| arg.contains("iommu")));
}

#[test]
fn an_nvme_gets_a_port_and_a_drive_of_its_own() {
    let machine = Machine::new("m")
        .device(Device::nvme("disk", Disk::pattern(512)).property("msix_qsize=17"));
    assert_eq!(
        devices(&machine),
        [
            "pcie-root-port,id=port1,bus=pcie.0,addr=0x3.0,chassis=1,slot=1",
            "nvme,serial=disk,drive=disk-drive,id=disk,bus=port1,addr=0x0.0,msix_qsize=17",
        ]
    );
    assert_eq!(
        values(&plan(&machine), "-drive"),
        ["if=none,id=disk-drive,format=raw,file=/d.img"]
    );
}

#[test]
fn an_nvme_with_virtual_functions_has_a_subsystem_and_room_for_their_queues() {
    let machine = Machine::new("m").device(Device::nvme_sriov("disk", Disk::pattern(512), 4));
    assert_eq!(
        devices(&machine),
        [
            "pcie-root-port,id=port1,bus=pcie.0,addr=0x3.0,chassis=1,slot=1,bus-reserve=2",
            "nvme-subsys,id=disk-subsystem",
            "nvme,serial=disk,subsys=disk-subsystem,sriov_max_vfs=4,sriov_vq_flexible=8,\
             sriov_vi_flexible=8,max_ioqpairs=10,msix_qsize=17,id=disk,bus=port1,addr=0x0.0",
            "nvme-ns,drive=disk-drive,bus=disk,nsid=1,shared=on",
        ]
    );
}

#[test]
fn an_absent_device_leaves_its_place_and_its_network() {
    let machine = Machine::new("m").slot(Slot::Ports {
        acs: false,
        devices: vec![
            Device::edu("there"),
            Device::e1000e("late")
                .property("mac=52:54:00:00:00:09")
                .absent(),
        ],
    });
    let ports_and_devices = devices(&machine);
    assert_eq!(ports_and_devices.len(), 3, "{ports_and_devices:?}");
    let plan = plan(&machine);
    assert_eq!(
        plan.absent["late"],
        "e1000e,netdev=late-net,id=late,bus=port2,addr=0x0,mac=52:54:00:00:00:09"
    );
    assert_eq!(plan.locations["late"].chain, [(3, 1), (0, 0)]);
    assert_eq!(values(&plan, "-netdev"), ["user,id=late-net,restrict=on"]);
}

#[test]
fn virtios_nic_is_a_device_as_any_other() {
    let machine = Machine::new("m").device(Device::virtio_net("nic"));
    assert_eq!(
        devices(&machine)[1],
        "virtio-net-pci,netdev=nic-net,disable-legacy=on,iommu_platform=on,id=nic,bus=port1,addr=0x0.0"
    );
}

#[test]
fn topologies_have_their_bridges_and_flags() {
    let multifunction = Machine::new("m").slot(Slot::Port {
        acs: true,
        functions: vec![Device::edu("a"), Device::edu("b")],
    });
    assert_eq!(
        devices(&multifunction)[1..],
        [
            "edu,id=a,bus=port1,addr=0x0.0,multifunction=on",
            "edu,id=b,bus=port1,addr=0x0.1",
        ]
    );
    let ports = Machine::new("m").slot(Slot::Ports {
        acs: false,
        devices: vec![Device::edu("a"), Device::edu("b")],
    });
    assert_eq!(
        devices(&ports),
        [
            "pcie-root-port,id=port1,bus=pcie.0,addr=0x3.0,chassis=1,slot=1,multifunction=on,disable-acs=on",
            "edu,id=a,bus=port1,addr=0x0",
            "pcie-root-port,id=port2,bus=pcie.0,addr=0x3.1,chassis=2,slot=2,disable-acs=on",
            "edu,id=b,bus=port2,addr=0x0",
        ]
    );
    let bridge = Machine::new("m").slot(Slot::ConventionalBridge(vec![Device::e1000("a")]));
    assert_eq!(
        devices(&bridge)[1..],
        [
            "pcie-pci-bridge,id=port1-bridge,bus=port1,addr=0x0",
            "e1000,netdev=a-net,id=a,bus=port1-bridge,addr=0x1",
        ]
    );
    assert_eq!(
        values(&plan(&bridge), "-netdev"),
        ["user,id=a-net,restrict=on"]
    );
    let bypassed = Machine::new("m").slot(Slot::Bypassed(Device::edu("a")));
    assert_eq!(
        devices(&bypassed)[0],
        "pxb-pcie,id=pxb3,bus=pcie.0,addr=0x3,bus_nr=64,bypass_iommu=on"
    );
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let machine = Machine::new("m")
        .device(Device::edu("a"))
        .device(Device::edu("a"));
    assert_eq!(
        command_line(&machine, &files()).unwrap_err().to_string(),
        "machine 'm' has two devices named 'a'"
    );
    let machine = Machine::new("m").slot(Slot::Port {
        acs: true,
        functions: Vec::new(),
    });
    assert!(matches!(
        command_line(&machine, &files()),
        Err(QemuError::Count {
            given: 0,
            max: 8,
            ..
        })
    ));
    let machine = (0..25).fold(Machine::new("m"), |machine, n| {
        machine.device(Device::edu(format!("e{n}")))
    });
    assert_eq!(
        command_line(&machine, &files()),
        Err(QemuError::TooManySlots("m".into()))
    );
    let machine = Machine::new("m").device(Device::nvme("other", Disk::pattern(512)));
    assert_eq!(
        command_line(&machine, &files()),
        Err(QemuError::NoImage("other".into()))
    );
}

#[test]
fn each_device_has_its_location() {
    let plan = plan(
        &Machine::new("m")
            .slot(Slot::Integrated(Device::edu("root")))
            .slot(Slot::ConventionalBridge(vec![Device::edu("deep")]))
            .slot(Slot::Bypassed(Device::edu("free"))),
    );
    let of = |name: &str| {
        (
            plan.locations[name].root_bus,
            plan.locations[name].chain.clone(),
        )
    };
    assert_eq!(of("root"), (0, vec![(3, 0)]));
    assert_eq!(of("deep"), (0, vec![(4, 0), (0, 0), (1, 0)]));
    assert_eq!(of("free"), (72, vec![(0, 0), (0, 0)]));
}

#[test]
fn time_goes_by_instructions_where_a_machine_wants_it() {
    let machine = Machine::new("m");
    assert_eq!(values(&plan(&machine), "-icount"), [""; 0]);
    let counting = plan(&machine.counting_instructions());
    assert_eq!(values(&counting, "-icount"), ["shift=0,sleep=off"]);
    assert!(values(&counting, "-rtc")[0].ends_with("clock=vm"));
}
