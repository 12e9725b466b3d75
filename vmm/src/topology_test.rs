use super::*;
use crate::platform;
use devices::pci::{BarInfo, BarKind, Change, ConfigSpace, EffectSink, Register};
use passthrough::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal};

const WIDE: BarKind = BarKind::Memory64 {
    prefetchable: false,
};

/// A device whose PCI Express capability, if it has one, says that it is of
/// type `express`; with one BAR.
fn device(express: Option<u16>, kind: BarKind, size: u64) -> Arc<dyn DeviceBackend> {
    let mut values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x5678_1234),
        Register::constant(0x08, 4, 0xff00_0000),
    ]);
    if let Some(kind) = express {
        for register in [
            Register::constant(0x06, 2, 0x10),
            Register::constant(0x34, 1, 0x60),
            Register::constant(0x60, 2, 0x10),
            Register::constant(0x62, 2, u32::from(kind << 4 | 2)),
            // Four lanes of 8 GT/s.
            Register::constant(0x6c, 4, 0x43),
            Register::constant(0x72, 2, 0x43),
        ] {
            values.define(register);
        }
    }
    let index = BarIndex::new(0).unwrap();
    let bar = BarInfo { index, kind, size };
    Arc::new(FakeDevice::new(&values, 4096, &[bar], &Journal::default()).unwrap())
}

fn topology(devices: Vec<Arc<dyn DeviceBackend>>) -> Result<Topology, TopologyError> {
    let hosts = (0..devices.len() as u16).map(|n| PciAddress::from_requester_id(0x100 + 8 * n));
    let roms = vec![RomSource::Off; devices.len()];
    let space = Arc::new(FakeSpace::new(&Journal::default()));
    Topology::new(hosts.collect(), roms, Opened { space, devices })
}

#[derive(Debug)]
struct Ignore;

impl EffectSink for Ignore {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

fn build(topology: Topology) -> RootComplex {
    let root = RootComplex::new(Arc::new(Ignore));
    let journal = Journal::default();
    let ports = Ports {
        router: Arc::new(FakeRouter::new(&journal)),
        mapper: Arc::new(FakeMapper::new(&journal)),
    };
    topology.build(&root, &ports).unwrap();
    root
}

fn read(root: &RootComplex, address: &str, offset: u16) -> u32 {
    let mut data = [0; 4];
    root.config_read(address.parse().unwrap(), offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn each_kind_of_device_has_its_place() {
    let small = 0x1000;
    let topology = topology(vec![
        device(Some(0), WIDE, small),
        device(None, WIDE, small),
        // Integrated into the host's root complex.
        device(Some(9), WIDE, small),
        // A legacy endpoint.
        device(Some(1), BarKind::Io, 0x20),
        // Below a port this one would take half of what is there.
        device(Some(0), WIDE, LARGE),
        device(Some(0), BarKind::Memory64 { prefetchable: true }, LARGE),
    ])
    .unwrap();
    assert_eq!(topology.last_bus(), 3);
    let root = build(topology);
    let found: Vec<String> = root
        .functions()
        .iter()
        .map(|(address, _)| address.to_string()[5..].to_owned())
        .collect();
    let expected = [
        "00:00.0", "00:01.0", "00:02.0", "00:03.0", "00:04.0", "00:05.0", "00:06.0", "01:00.0",
        "02:00.0", "03:00.0",
    ];
    assert_eq!(found, expected);
    let layout = GuestLayout::new(512 << 20, 39, None).unwrap();
    platform::place_bars(&root, &layout, 0x1000).unwrap();
    for port in ["00:01.0", "00:04.0", "00:06.0"] {
        assert_eq!(read(&root, port, 0), 0x000c_1b36);
        assert_eq!(read(&root, port, 0x60) >> 16, 0x3043, "the device's link");
    }
    for device in ["00:02.0", "00:03.0", "00:05.0", "01:00.0", "03:00.0"] {
        assert_eq!(read(&root, device, 0), 0x5678_1234, "{device}");
    }
    assert_eq!(read(&root, "01:00.0", 0x10), 0xc000_0004);
    assert!(read(&root, "00:05.0", 0x14) > 0, "above 4 GiB");
    assert!(read(&root, "03:00.0", 0x14) > 0, "above 4 GiB");
}

#[test]
fn without_devices_there_is_a_host_bridge() {
    let none = Topology::default();
    assert_eq!(none.last_bus(), 0);
    assert_eq!(build(none).functions().len(), 1);
}

#[test]
fn the_root_bus_has_31_slots() {
    let devices = |count| vec![device(Some(0), WIDE, 0x1000); count];
    let full = topology(devices(31)).unwrap();
    assert_eq!(full.last_bus(), GuestLayout::LAST_BUS);
    assert_eq!(build(full).functions().len(), 63);
    let error = topology(devices(32)).unwrap_err();
    assert!(error.to_string().contains("31 slots"), "{error}");
}
