use std::sync::{Arc, Mutex};

use super::super::bar::BarIndex;
use super::super::fake::FakeFunction;
use super::super::function::PciFunction;
use super::super::link::Link;
use super::super::placement::{Requests, place};
use super::super::root_complex::{Change, EffectSink};
use super::super::root_port::RootPort;
use super::super::window::Windows;
use super::*;

const PAGE: u64 = 0x1000;

#[derive(Debug)]
struct Ignore;

impl EffectSink for Ignore {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

fn bar(index: u8, kind: BarKind, size: u64) -> BarInfo {
    let index = BarIndex::new(index).unwrap_or(BarIndex::ROM);
    BarInfo { index, kind, size }
}

fn bars() -> Vec<BarInfo> {
    let plain = BarKind::Memory32 {
        prefetchable: false,
    };
    vec![
        bar(0, BarKind::Memory64 { prefetchable: true }, 1 << 34),
        bar(2, plain, 0x1000),
        bar(3, BarKind::Io, 0x20),
        bar(6, BarKind::Rom, 0x1_0000),
    ]
}

fn windows() -> Windows {
    let window = |base, size| Some(Window { base, size });
    Windows {
        memory32: window(0xc000_0000, 0x2000_0000),
        memory64: window(1 << 40, 1 << 38),
        io: window(0x1000, 0xf000),
    }
}

/// The same function on the root bus and below a port.
struct Rig {
    root: RootComplex,
    port: Arc<Mutex<RootPort>>,
    functions: [Arc<Mutex<FakeFunction>>; 2],
}

impl Rig {
    fn new() -> Self {
        let root = RootComplex::new(Arc::new(Ignore));
        let port = Arc::new(Mutex::new(RootPort::new(1, Link::default())));
        root.add_port("00:01.0".parse().unwrap(), 1, port.clone())
            .unwrap();
        let functions = ["00:02.0", "01:00.0"].map(|address| {
            let function = FakeFunction::with_bars(bars());
            function.lock().unwrap().space[4..6].copy_from_slice(&[0x07, 0x04]);
            root.add(address.parse().unwrap(), function.clone())
                .unwrap();
            function
        });
        Self {
            root,
            port,
            functions,
        }
    }
}

#[test]
fn everything_is_programmed_and_decoding_is_off() {
    let rig = Rig::new();
    let layout = place(&windows(), PAGE, &Requests::of(&rig.root)).unwrap();
    assert_eq!(layout.bars.len(), 8);
    program(&rig.root, &layout).unwrap();
    let below = layout.ports[0];
    {
        let port = rig.port.lock().unwrap();
        let closed = port.forwarding().unwrap();
        assert_eq!((closed.secondary, closed.subordinate), (1, 1));
        let windows = (closed.io, closed.memory, closed.prefetchable);
        assert_eq!(windows, (None, None, None), "decoding is off");
    }
    rig.root
        .config_write("00:01.0".parse().unwrap(), 4, &[7, 0]);
    let open = rig.port.lock().unwrap().forwarding().unwrap();
    assert!(open.bus_master);
    assert_eq!(open.io, below.io);
    assert_eq!(open.memory, below.memory);
    assert_eq!(open.prefetchable, below.prefetchable);
    for (function, address) in rig.functions.iter().zip(["00:02.0", "01:00.0"]) {
        let function = function.lock().unwrap();
        assert_eq!(function.space[4..6], [0x04, 0x04], "the rest stays");
        for placement in &layout.bars {
            if placement.function.to_string().ends_with(address) {
                let at = usize::from(placement.bar.index.register());
                let width = if placement.bar.kind.is_64_bit() { 8 } else { 4 };
                let bytes = placement.address.to_le_bytes();
                assert_eq!(function.space[at..at + width], bytes[..width]);
            }
        }
    }
}

#[test]
fn closed_windows_stay_closed() {
    let rig = Rig::new();
    let layout = Layout {
        ports: vec![PortWindows {
            port: "00:01.0".parse().unwrap(),
            bus: 1,
            io: None,
            memory: None,
            prefetchable: None,
        }],
        ..Layout::default()
    };
    program(&rig.root, &layout).unwrap();
    rig.root
        .config_write("00:01.0".parse().unwrap(), 4, &[7, 0]);
    let open = rig.port.lock().unwrap().forwarding().unwrap();
    assert_eq!(
        (open.io, open.memory, open.prefetchable),
        (None, None, None)
    );
    assert!(open.leads_to(1));
}

#[test]
fn what_is_not_taken_is_an_error() {
    let rig = Rig::new();
    let placement = Placement {
        function: "00:02.0".parse().unwrap(),
        bar: bars()[1],
        address: 0xc000_0010,
    };
    let layout = Layout {
        bars: vec![placement],
        ..Layout::default()
    };
    let error = program(&rig.root, &layout).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot put BAR 2 of 0000:00:02.0 at 0xc0000010: its register reads 0xc0000000"
    );
    let layout = Layout {
        ports: vec![PortWindows {
            // No port at all.
            port: "00:03.0".parse().unwrap(),
            bus: 1,
            io: None,
            memory: None,
            prefetchable: None,
        }],
        ..Layout::default()
    };
    let error = program(&rig.root, &layout).unwrap_err().to_string();
    assert!(error.contains("register 0x18 reads 0xffffff"), "{error}");
}
