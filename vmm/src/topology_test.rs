use super::*;
use crate::lines::tests::lines;
use devices::pci::{BarIndex, BarInfo, BarKind, Change, ConfigSpace, EffectSink, Register};
use passthrough::Interface;
use passthrough::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal};
use passthrough::inspect::Inspection;

const WIDE: BarKind = BarKind::Memory64 {
    prefetchable: false,
};

/// A device whose PCI Express capability, if it has one, says that it is of
/// type `express`; with one BAR.
fn device(express: Option<u16>, kind: BarKind, size: u64) -> Arc<dyn DeviceBackend> {
    device_with_pin(express, kind, size, 0)
}

/// As [`device`], with an interrupt pin.
fn device_with_pin(
    express: Option<u16>,
    kind: BarKind,
    size: u64,
    pin: u8,
) -> Arc<dyn DeviceBackend> {
    let mut values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x5678_1234),
        Register::constant(0x08, 4, 0xff00_0000),
    ]);
    values.define(Register::constant(0x3d, 1, pin.into()));
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

fn hosts(devices: &[Backend]) -> Vec<PciAddress> {
    let hosts = (0..devices.len() as u16).map(|n| PciAddress::from_requester_id(0x100 + 8 * n));
    hosts.collect()
}

fn places(devices: &[Backend]) -> Result<Places, TopologyError> {
    Places::of(&hosts(devices), devices)
}

fn topology_at(places: Places, devices: Vec<Backend>) -> Result<Topology, TopologyError> {
    let roms = vec![RomSource::Off; devices.len()];
    let space = Arc::new(FakeSpace::new(&Journal::default()));
    let opened = Opened {
        space,
        devices,
        interface: Interface::Type1,
    };
    Topology::new(places, roms, opened)
}

fn topology(devices: Vec<Backend>) -> Topology {
    topology_at(places(&devices).unwrap(), devices).unwrap()
}

/// One of each kind that has another place.
fn all_kinds() -> Vec<Backend> {
    let small = 0x1000;
    let large = 256 << 20;
    vec![
        device(Some(0), WIDE, small),
        device(None, WIDE, small),
        // Integrated into the host's root complex.
        device(Some(9), WIDE, small),
        // A legacy endpoint.
        device(Some(1), BarKind::Io, 0x20),
        // Below a port this one would take half of what is there.
        device(Some(0), WIDE, large),
        device(Some(0), BarKind::Memory64 { prefetchable: true }, large),
    ]
}

#[derive(Debug)]
struct Ignore;

impl EffectSink for Ignore {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

fn build(topology: Topology) -> RootComplex {
    let root = RootComplex::new(Arc::new(Ignore));
    add_host_bridge(&root).unwrap();
    build_in(topology, &root, lines(true).0);
    root
}

fn build_in(topology: Topology, root: &RootComplex, lines: Lines) -> Vec<Removable> {
    let journal = Journal::default();
    let ports = Ports {
        router: Arc::new(FakeRouter::new(&journal)),
        lines,
        mapper: Arc::new(FakeMapper::new(&journal)),
    };
    topology.build(root, &ports).unwrap()
}

fn read(root: &RootComplex, address: &str, offset: u16) -> u32 {
    let mut data = [0; 4];
    root.config_read(address.parse().unwrap(), offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn each_kind_of_device_has_its_place() {
    let devices = all_kinds();
    assert_eq!(places(&devices).unwrap().last_bus(), 3);
    let root = build(topology(devices));
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
fn pins_drive_the_inputs_that_the_guests_tables_name() {
    let with_pin = |express, pin| device_with_pin(express, WIDE, 0x1000, pin);
    let devices = vec![
        // Behind the port in slot 1, as its only device.
        with_pin(Some(0), 1),
        // On the root bus, in slot 2.
        with_pin(None, 1),
        // Behind the port in slot 3: function 1 of the host's device.
        with_pin(Some(0), 2),
    ];
    let root = RootComplex::new(Arc::new(Ignore));
    let (lines, notes) = lines(true);
    let built = build_in(topology(devices), &root, lines);
    let found: Vec<_> = built.iter().map(|device| device.guest).collect();
    let places = ["0000:01:00.0", "0000:00:02.0", "0000:02:00.0"];
    assert_eq!(found, places.map(|place| place.parse().unwrap()));
    let layout = GuestLayout::new(512 << 20, 39, None).unwrap();
    platform::place_bars(&root, &layout, 0x1000).unwrap();
    for (place, pin, input) in [
        (found[0], 1, platform::PINS.first + 1),
        (found[1], 1, platform::PINS.first + 2),
        (found[2], 2, platform::PINS.first + 3 + 1),
    ] {
        let mut data = [0];
        root.config_read(place, 0x3d, &mut data);
        assert_eq!(data, [pin], "{place}");
        // A driver comes, and the pin with it; no other has come before.
        root.config_write(place, 0x04, &2_u16.to_le_bytes());
        assert_eq!(notes.take(), [format!("add {input}")], "{place}");
    }
}

#[test]
fn what_is_foretold_comes_true() {
    let devices = all_kinds();
    let places = places(&devices).unwrap();
    let identity = |(host, device): (&PciAddress, &Backend)| {
        let inspection = Inspection::of_backend(*host, &**device, None);
        inspection.unwrap().identity
    };
    let hosts = hosts(&devices);
    let identities: Vec<_> = hosts.iter().zip(&devices).map(identity).collect();
    let answers = places.foretell(&identities);
    let root = build(topology_at(places, devices).unwrap());
    let layout = GuestLayout::new(512 << 20, 39, None).unwrap();
    platform::place_bars(&root, &layout, 0x1000).unwrap();
    let functions: Vec<_> = root.functions().into_iter().skip(1).collect();
    assert_eq!(
        answers.keys().collect::<Vec<_>>(),
        functions.iter().map(|(at, _)| at).collect::<Vec<_>>(),
        "all but the host bridge"
    );
    for (address, answers) in answers {
        assert!(answers.len() >= 3);
        for (register, foretold) in answers {
            let mut data = vec![0; foretold.len()];
            root.config_read(address, register, &mut data);
            assert_eq!(data, foretold, "{address} {register:#x}");
        }
    }
}

#[test]
fn a_device_that_belongs_elsewhere_than_foretold_is_refused() {
    let devices = all_kinds();
    let wrong = hosts(&devices).into_iter().zip([
        Placement::BehindPort,
        Placement::BehindPort,
        Placement::RootBus,
        Placement::BehindPort,
        Placement::RootBus,
        Placement::BehindPort,
    ]);
    let error = topology_at(Places::new(wrong).unwrap(), devices).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0000:01:01.0 is another one"), "{text}");
    assert!(text.contains("--map before-boot"), "{text}");
}

#[test]
fn without_devices_there_is_a_host_bridge() {
    let root = RootComplex::new(Arc::new(Ignore));
    add_host_bridge(&root).unwrap();
    assert_eq!(root.functions().len(), 1);
    assert_eq!(Places::new([]).unwrap().last_bus(), 0);
}

#[test]
fn the_root_bus_has_31_slots() {
    let devices = |count| vec![device(Some(0), WIDE, 0x1000); count];
    let full = places(&devices(31)).unwrap();
    assert_eq!(full.last_bus(), GuestLayout::LAST_BUS);
    let root = build(topology_at(full, devices(31)).unwrap());
    assert_eq!(root.functions().len(), 63);
    let error = places(&devices(32)).unwrap_err();
    assert!(error.to_string().contains("31 slots"), "{error}");
}
