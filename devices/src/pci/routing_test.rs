//! Functions below ports.

use std::sync::Mutex;

use proptest::prelude::*;

use super::super::bar::{BarIndex, BarInfo, BarKind};
use super::super::fake::FakeFunction;
use super::super::firmware::program;
use super::super::link::Link;
use super::super::placement::{Requests, place};
use super::super::root_port::RootPort;
use super::super::window::{Window, Windows};
use super::*;

#[derive(Debug, Default)]
struct Sink {
    calls: Mutex<Vec<Vec<(String, Effects)>>>,
}

impl EffectSink for Sink {
    fn apply(&self, _: &RootComplex, changes: &[Change]) {
        let call = changes.iter().map(|change| {
            let free = change.function.try_lock().is_ok();
            assert!(free, "the lock is still held");
            (change.address.to_string()[5..].to_owned(), change.effects)
        });
        self.calls.lock().unwrap().push(call.collect());
    }
}

impl Sink {
    fn take(&self) -> Vec<Vec<(String, Effects)>> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

const DECODING: Effects = Effects {
    decoding: true,
    bus_master: false,
};

/// Two ports, each with a function of one 4 KiB BAR below it. Programmed, with
/// everything on.
struct Rig {
    root: RootComplex,
    sink: Arc<Sink>,
    functions: [Arc<Mutex<FakeFunction>>; 2],
}

fn rig() -> Rig {
    let sink = Arc::new(Sink::default());
    let root = RootComplex::new(sink.clone());
    let functions = [1, 2].map(|number: u8| {
        let port = Arc::new(Mutex::new(RootPort::new(number, Link::default())));
        let address = PciAddress::new(0, 0, number, 0).unwrap();
        root.add_port(address, number, port).unwrap();
        let bar = BarInfo {
            index: BarIndex::new(0).unwrap(),
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: 0x1000,
        };
        let function = FakeFunction::with_bars(vec![bar]);
        function.lock().unwrap().space[0] = number;
        let address = PciAddress::new(0, number, 0, 0).unwrap();
        root.add(address, function.clone()).unwrap();
        function
    });
    let windows = Windows {
        memory32: Some(Window {
            base: 0xc000_0000,
            size: 0x1000_0000,
        }),
        ..Windows::default()
    };
    let layout = place(&windows, 0x1000, &Requests::of(&root)).unwrap();
    program(&root, &layout).unwrap();
    for address in ["00:01.0", "01:00.0", "00:02.0", "02:00.0"] {
        root.config_write(at(address), 4, &[6, 0]);
    }
    sink.take();
    Rig {
        root,
        sink,
        functions,
    }
}

impl Rig {
    fn id(&self, address: &str) -> u8 {
        let mut data = [0x55];
        self.root.config_read(at(address), 0, &mut data);
        data[0]
    }

    fn write(&self, address: &str, offset: u16, data: &[u8]) {
        self.root.config_write(at(address), offset, data);
    }

    fn decoded(&self, address: &str) -> Vec<u64> {
        let decoded = self.root.decoded(at(address));
        decoded.iter().map(|decode| decode.address).collect()
    }
}

#[test]
fn where_ports_and_functions_may_stand() {
    let rig = rig();
    let function = || FakeFunction::with_bars(Vec::new());
    let port = || Arc::new(Mutex::new(RootPort::new(9, Link::default())));
    let root = &rig.root;
    assert_eq!(
        root.add(at("03:00.0"), function()),
        Err(TopologyError::NoSuchBus(at("03:00.0")))
    );
    assert_eq!(
        root.add(at("01:01.0"), function()),
        Err(TopologyError::NotAtTheEnd(at("01:01.0")))
    );
    assert_eq!(
        root.add(at("01:00.0"), function()),
        Err(TopologyError::Taken(at("01:00.0")))
    );
    assert_eq!(
        root.add_port(at("00:03.0"), 3, function()),
        Err(TopologyError::NotAPort(at("00:03.0")))
    );
    assert_eq!(
        root.add_port(at("01:00.1"), 3, port()),
        Err(TopologyError::PortBelowPort(at("01:00.1")))
    );
    for bus in [0, 1] {
        let taken = root.add_port(at("00:03.0"), bus, port()).unwrap_err();
        assert!(
            taken
                .to_string()
                .contains("cannot add the port 0000:00:03.0")
        );
    }
    assert_eq!(
        root.add_port(at("00:02.0"), 3, port()),
        Err(TopologyError::Taken(at("00:02.0")))
    );
    root.add(at("01:00.3"), function()).unwrap();
    assert_eq!(root.ports(), [(at("00:01.0"), 1), (at("00:02.0"), 2)]);
}

#[test]
fn a_function_behind_a_port_is_found() {
    let rig = rig();
    assert_eq!([rig.id("01:00.0"), rig.id("02:00.0")], [1, 2]);
    for absent in ["01:01.0", "01:00.1", "03:00.0", "0001:01:00.0"] {
        assert_eq!(rig.id(absent), 0xff, "{absent}");
    }
    assert_eq!(rig.id("00:01.0"), 0x36, "the port itself");
}

#[test]
fn buses_are_renumbered() {
    let rig = rig();
    rig.write("00:01.0", 0x18, &[0, 7, 7]);
    assert_eq!([rig.id("01:00.0"), rig.id("07:00.0")], [0xff, 1]);
    assert!(rig.sink.take().is_empty(), "only config accesses go by it");
    // Two ports claim a bus: the first one has it.
    rig.write("00:02.0", 0x18, &[0, 7, 7]);
    assert_eq!(rig.id("07:00.0"), 1);
    rig.write("00:01.0", 0x18, &[0, 2, 2]);
    assert_eq!([rig.id("07:00.0"), rig.id("02:00.0")], [2, 1]);
    // A range that holds no bus, and no range at all.
    rig.write("00:01.0", 0x18, &[0, 2, 1]);
    rig.write("00:02.0", 0x18, &[0, 0, 0]);
    assert_eq!([rig.id("02:00.0"), rig.id("07:00.0")], [0xff, 0xff]);
    // Effects are told by the name that nobody changes.
    rig.write("00:01.0", 0x18, &[0, 9, 9]);
    rig.write("09:00.0", 4, &[0, 0]);
    assert_eq!(rig.sink.take(), [[("01:00.0".to_owned(), DECODING)]]);
}

#[test]
fn a_bar_answers_inside_its_ports_windows() {
    let rig = rig();
    let home = rig.decoded("01:00.0");
    let other = rig.decoded("02:00.0");
    assert_eq!((&*home, &*other), (&[0xc000_0000][..], &[0xc010_0000][..]));
    // Into the other port's window, and back.
    rig.write("01:00.0", 0x10, &0xc010_8000_u32.to_le_bytes());
    assert_eq!(rig.decoded("01:00.0"), [0; 0]);
    rig.write("01:00.0", 0x10, &0xc000_8000_u32.to_le_bytes());
    assert_eq!(rig.decoded("01:00.0"), [0xc000_8000]);
    assert_eq!(rig.sink.take().len(), 2);
    // The window moves away: the function below changes, and no other.
    rig.write("00:01.0", 0x20, &0xc020_c020_u32.to_le_bytes());
    assert_eq!(rig.decoded("01:00.0"), [0; 0]);
    assert_eq!(rig.decoded("02:00.0"), other);
    assert_eq!(rig.sink.take(), [[("01:00.0".to_owned(), DECODING)]]);
    rig.write("00:01.0", 0x20, &0xc020_c000_u32.to_le_bytes());
    assert_eq!(rig.decoded("01:00.0"), [0xc000_8000]);
    rig.write("00:01.0", 4, &[4, 0]);
    assert_eq!(rig.decoded("01:00.0"), [0; 0], "the port's memory enable");
    rig.sink.take();
    rig.write("00:01.0", 0x3c, &[9]);
    assert!(rig.sink.take().is_empty(), "nothing that matters below");
}

#[test]
fn requests_go_up_when_the_port_lets_them() {
    let rig = rig();
    assert!(rig.root.is_bus_master(at("01:00.0")));
    rig.write("00:01.0", 4, &[2, 0]);
    assert!(!rig.root.is_bus_master(at("01:00.0")));
    assert!(rig.root.is_bus_master(at("02:00.0")));
    assert_eq!(rig.sink.take().len(), 1, "to be taken from the device");
    rig.write("00:01.0", 4, &[6, 0]);
    let both = Effects {
        decoding: true,
        bus_master: true,
    };
    assert_eq!(rig.sink.take(), [[("01:00.0".to_owned(), both)]]);
    assert!(rig.root.is_bus_master(at("00:01.0")), "on the root bus");
}

#[test]
fn a_secondary_bus_reset_resets_what_is_below() {
    let rig = rig();
    let resets = || rig.functions.each_ref().map(|f| f.lock().unwrap().resets);
    rig.write("00:01.0", 0x3e, &[0x40, 0]);
    assert_eq!(resets(), [1, 0]);
    assert_eq!(rig.sink.take(), [[("01:00.0".to_owned(), DECODING)]]);
    assert_eq!(rig.id("01:00.0"), 0xff, "held in reset");
    assert!(!rig.root.is_bus_master(at("01:00.0")));
    rig.write("00:01.0", 0x3e, &[0x40, 0]);
    rig.write("00:01.0", 0x3e, &[0, 0]);
    assert_eq!(resets(), [1, 0], "once");
    assert_eq!(rig.id("01:00.0"), 1);
    assert_eq!(rig.decoded("01:00.0"), [0; 0], "as after reset");
    rig.write("01:00.0", 0x10, &0xc000_0000_u32.to_le_bytes());
    rig.write("01:00.0", 4, &[6, 0]);
    assert_eq!(rig.decoded("01:00.0"), [0xc000_0000]);
    // Disabling the link does the same.
    rig.write("00:02.0", 0x60, &[0x10, 0]);
    assert_eq!(resets(), [1, 1]);
}

#[test]
fn siblings_below_a_port_change_together() {
    let rig = rig();
    let sibling = FakeFunction::with_bars(Vec::new());
    rig.root.add(at("01:00.1"), sibling.clone()).unwrap();
    let mut header = [0];
    rig.root.config_read(at("01:00.0"), 0x0e, &mut header);
    assert_eq!(header, [0x80]);
    rig.write("00:01.0", 0x3e, &[0x40, 0]);
    assert_eq!(sibling.lock().unwrap().resets, 1);
    let names = ["01:00.0", "01:00.1"].map(|name| (name.to_owned(), DECODING));
    assert_eq!(rig.sink.take(), [names], "one call for one write");
}

proptest! {
    /// Whatever a guest writes to its ports: routing is what their registers
    /// say, and nobody is called who has not changed.
    #[test]
    fn routing_follows_the_registers(
        writes in proptest::collection::vec((0usize..2, 0usize..4, any::<u32>()), 1..30),
    ) {
        let rig = rig();
        let ports = ["00:01.0", "00:02.0"];
        let below = ["01:00.0", "02:00.0"];
        for (port, register, value) in writes {
            let (offset, value) = match register {
                0 => (0x18, value & 0x0003_0300),
                1 => (0x20, value & 0x0030_0030 | 0xc000_c000),
                2 => (0x04, value & 7),
                _ => (0x3c, value & 1 << 22),
            };
            let before = below.map(|function| (rig.decoded(function), rig.root.is_bus_master(at(function))));
            rig.write(ports[port], offset, &value.to_le_bytes());
            let after = below.map(|function| (rig.decoded(function), rig.root.is_bus_master(at(function))));
            let told: Vec<_> = rig.sink.take().into_iter().flatten().collect();
            for index in 0..2 {
                if before[index] != after[index] {
                    prop_assert!(told.iter().any(|(name, _)| name == below[index]));
                }
            }
            prop_assert!(told.iter().all(|(name, _)| name == below[port]));
            let read = |port: &str, offset| {
                let mut data = [0; 4];
                rig.root.config_read(at(port), offset, &mut data);
                u32::from_le_bytes(data)
            };
            for bus in 1..=3_u32 {
                let leads = |port: &str| {
                    let numbers = read(port, 0x18);
                    let up = read(port, 0x3c) & 1 << 22 == 0;
                    up && numbers >> 8 & 0xff == bus && bus <= numbers >> 16 & 0xff
                };
                let expected = ports.iter().position(|port| leads(port));
                let expected = expected.map_or(0xff, |index| index as u8 + 1);
                prop_assert_eq!(rig.id(&format!("{bus:02x}:00.0")), expected);
            }
        }
    }
}
