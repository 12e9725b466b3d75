use std::collections::BTreeMap;

use super::state::State;
use crate::host::{
    DriverOverride, Function, Group, GroupId, GroupMember, Header, HugePagePool, Ids,
    InterruptRemapping, Iommu, IommuKind, IommuUnit, Kernel, ModuleState, Modules, Node, NodeState,
    Process, Remapping, Reset, Survey, VariantAlias, VfioPieces,
};

/// What `Survey::read` would make of the fake kernel, as far as binding looks.
pub(super) fn survey(state: &State) -> Survey {
    let mut functions = BTreeMap::new();
    let mut groups: BTreeMap<GroupId, Group> = BTreeMap::new();
    for (name, device) in &state.devices {
        let address = name.address();
        if let Some(id) = device.group {
            let group = groups.entry(id).or_insert_with(|| empty_group(id));
            group.members.push(GroupMember {
                name: name.name().to_owned(),
                address,
                driver: device.driver.clone(),
            });
        }
        let Some(address) = address else { continue };
        let physical = device.physical.as_ref();
        let function = Function {
            address,
            ids: ids(&device.id),
            header: if device.bridge {
                Header::Bridge
            } else {
                Header::Endpoint
            },
            driver: device.driver.clone().filter(|_| !device.leaving),
            driver_override: match &device.driver_override {
                _ if device.vfio_device.is_some() => DriverOverride::NotAsked,
                Some(driver) => DriverOverride::Only(driver.clone()),
                None => DriverOverride::Any,
            },
            group: device.group,
            parents: Vec::new(),
            numa_node: None,
            physical_function: physical.and_then(|physical| physical.address()),
            virtual_functions_max: None,
            resources: Vec::new(),
            reset: Reset::default(),
            link: None,
            power_state: None,
            boot_display: false,
            routing: None,
            vfio_device: device.vfio_device.clone(),
            cdev: None,
            unreadable: Vec::new(),
        };
        functions.insert(address, function);
    }
    Survey {
        kernel: Kernel::from_release("6.12.0"),
        process: Process {
            effective_uid: Some(0),
            ..Process::default()
        },
        kvm: node("/dev/kvm"),
        vfio: vfio(state),
        iommu: iommu(),
        functions,
        groups,
        uses: BTreeMap::new(),
        huge_pages: Vec::<HugePagePool>::new(),
        holders: crate::host::Holders {
            seen: state.holders.clone(),
            hidden: 0,
        },
    }
}

/// An id is written `15b3:101e`.
fn ids(id: &str) -> Option<Ids> {
    let (vendor, device) = id.split_once(':')?;
    Some(Ids {
        vendor: u16::from_str_radix(vendor, 16).ok()?,
        device: u16::from_str_radix(device, 16).ok()?,
        subsystem_vendor: 0,
        subsystem_device: 0,
        class: 0x02_0000,
    })
}

fn node(path: &str) -> Node {
    Node {
        path: path.to_owned(),
        state: NodeState::Accessible,
    }
}

fn empty_group(id: GroupId) -> Group {
    Group {
        id,
        domain: None,
        name: None,
        members: Vec::new(),
        reserved: Vec::new(),
        node: node(&format!("/dev/vfio/{id}")),
        unreadable: Vec::new(),
    }
}

fn iommu() -> Iommu {
    Iommu {
        units: vec![IommuUnit {
            name: "dmar0".to_owned(),
            kind: IommuKind::IntelVtd,
            address_width: Some(39),
            can_remap_interrupts: Some(true),
            capability: None,
            extended_capability: None,
            devices: Vec::new(),
        }],
        interrupt_remapping: InterruptRemapping {
            state: Remapping::On,
            evidence: "the fake has it".to_owned(),
        },
        firmware_table: None,
        arguments: Vec::new(),
    }
}

fn vfio(state: &State) -> VfioPieces {
    let drivers = state.drivers.iter();
    let drivers = drivers.filter(|(bus, driver)| bus == "pci" && driver.vfio);
    let drivers: Vec<_> = drivers.map(|(_, driver)| driver.name.clone()).collect();
    let variants = state.aliases.iter().map(|(pattern, module)| VariantAlias {
        pattern: pattern.clone(),
        module: module.clone(),
    });
    VfioPieces {
        container: node("/dev/vfio/vfio"),
        iommufd: node("/dev/iommu"),
        pci_driver: drivers.iter().any(|driver| driver == "vfio-pci"),
        drivers,
        groups: true,
        cdevs: true,
        modules: Modules {
            states: BTreeMap::from([("vfio_pci".to_owned(), ModuleState::Present)]),
            variants: variants.collect(),
        },
        type1: true,
        unsafe_interrupts: None,
        unsafe_interrupts_iommufd: None,
        unsafe_noiommu: None,
    }
}
