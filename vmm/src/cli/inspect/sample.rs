//! An inspection for the tests of what is drawn: an NVMe controller.

use passthrough::Placement;
use passthrough::inspect::{
    Access, Area, Bytes, Capability, Detail, Difference, Identity, Inspection, Interrupt, Region,
    RegionKind, RegionPart, Resets, Source,
};

pub(super) fn nvme() -> Inspection {
    let part = |offset, size, access| RegionPart {
        area: Area { offset, size },
        access,
    };
    let region = |index, kind, size, address| Region {
        index,
        kind,
        size,
        address,
        mappable: None,
        parts: Vec::new(),
        reason: None,
    };
    let bar_kind = RegionKind::Memory64 { prefetchable: true };
    Inspection {
        device: "0000:01:00.0".parse().unwrap(),
        source: Source::Sysfs,
        placement: Placement::BehindPort,
        identity: Identity {
            vendor: 0x1b36,
            device: 0x0010,
            subsystem_vendor: 0x1af4,
            subsystem_device: 0x1100,
            class: 0x01_0802,
            revision: 2,
            ..Identity::default()
        },
        physical: Bytes(vec![0; 4096]),
        guest: Some(Bytes(vec![0; 4096])),
        refusal: None,
        resets: Resets {
            function: true,
            methods: vec!["flr".to_owned(), "bus".to_owned()],
            bus: Some(Vec::new()),
        },
        regions: vec![
            Region {
                parts: vec![
                    part(0, 0x2000, Access::Direct),
                    part(0x2000, 0x410, Access::MsixTable),
                    part(0x2410, 0xbf0, Access::Trapped),
                    part(0x3000, 0x1000, Access::MsixPendingBits),
                ],
                ..region(0, bar_kind, 0x4000, Some(0xfe80_0000))
            },
            region(4, RegionKind::Io, 0x20, Some(0xc000)),
            Region {
                reason: Some("it was turned off".to_owned()),
                ..region(6, RegionKind::Rom, 0x4_0000, None)
            },
            Region {
                parts: vec![part(0, 4096, Access::Trapped)],
                ..region(7, RegionKind::Config, 4096, None)
            },
        ],
        interrupts: vec![
            Interrupt {
                kind: "INTx".to_owned(),
                vectors: 1,
                guest: 0,
                reason: Some("no pin is delivered".to_owned()),
            },
            Interrupt {
                kind: "MSI-X".to_owned(),
                vectors: 65,
                guest: 65,
                reason: None,
            },
        ],
        capabilities: vec![
            Capability {
                id: 0x11,
                extended: false,
                name: "MSI-X".to_owned(),
                section: "PCIe 6.0 §7.7.2".to_owned(),
                offset: 0x40,
                size: 12,
                version: None,
                hidden: None,
                details: vec![Detail {
                    name: "table".to_owned(),
                    value: "BAR 0 at 0x2000".to_owned(),
                }],
            },
            Capability {
                id: 0x10,
                extended: true,
                name: "SR-IOV".to_owned(),
                section: "PCIe 6.0 §9.3.3".to_owned(),
                offset: 0x100,
                size: 64,
                version: Some(1),
                hidden: Some("guests make no virtual functions".to_owned()),
                details: Vec::new(),
            },
        ],
        registers: Vec::new(),
        differences: vec![
            Difference {
                offset: 0x3c,
                physical: Bytes(vec![0x0b, 0x01]),
                guest: Bytes(vec![0, 0]),
                name: "interrupt line and pin".to_owned(),
                section: "PCIe 6.0 §7.5.1.1.12".to_owned(),
                reason: "no pin is delivered".to_owned(),
            },
            Difference {
                offset: 0x100,
                physical: Bytes((1..=12).collect()),
                guest: Bytes(vec![0; 12]),
                name: "SR-IOV".to_owned(),
                section: String::new(),
                reason: "guests make no virtual functions".to_owned(),
            },
        ],
    }
}
