//! What an access of the guest costs once it has left the guest: finding who
//! answers, config space, the MSI-X table; and where BARs go.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};

use criterion::{Criterion, criterion_group, criterion_main};
use devices::bus::{Bus, BusDevice};
use devices::pci::placement::{BarRequest, Requests, place};
use devices::pci::window::{Window, Windows};
use devices::pci::{
    BarDecode, BarIndex, BarInfo, BarKind, Change, ConfigPorts, Ecam, EffectSink, Fixed,
    HostBridge, Msix, PciAddress, RootComplex, contest,
};

/// Functions and devices of a large guest.
const MANY: u8 = 31;
/// The most vectors that a function can have.
const VECTORS: u16 = 2048;
const ENTRY: u64 = 16;
const VECTOR_CONTROL: u64 = 12;
const ENABLE: u16 = 0x8000;

#[derive(Debug)]
struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) {}
}

impl EffectSink for Nothing {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

fn bus(c: &mut Criterion) {
    let bus = Bus::new();
    for device in 0..u64::from(MANY) {
        let base = 0xc000_0000 + device * 0x10_0000;
        bus.insert("device", base, 0x1000, Arc::new(Nothing))
            .expect("there is room");
    }
    let mut data = [0; 4];
    let mut group = c.benchmark_group("bus");
    for (name, address) in [("device", 0xc0f0_0010), ("hole", 0xc0f0_1010)] {
        group.bench_function(name, |b| {
            b.iter(|| bus.read(black_box(address), &mut data));
        });
    }
    group.finish();
}

fn slot(number: u8) -> PciAddress {
    PciAddress::from_requester_id(u16::from(number) << 3)
}

fn config(c: &mut Criterion) {
    let root = Arc::new(RootComplex::new(Arc::new(Nothing)));
    for number in 0..MANY {
        let bridge = Arc::new(Mutex::new(HostBridge::new()));
        root.add(slot(number), bridge).expect("the slot is free");
    }
    let ecam = Ecam::new(root.clone(), 0);
    let ports = ConfigPorts::new(root);
    let mut data = [0; 4];
    let mut group = c.benchmark_group("config read");
    let last = u64::from(MANY - 1) << 15;
    group.bench_function("ECAM", |b| b.iter(|| ecam.read(black_box(last), &mut data)));
    let selector = (1u32 << 31 | u32::from(MANY - 1) << 11).to_le_bytes();
    group.bench_function("ports", |b| {
        b.iter(|| {
            ports.write(0, black_box(&selector));
            ports.read(4, &mut data);
        });
    });
    group.finish();
}

fn msix(c: &mut Criterion) {
    let mut group = c.benchmark_group("MSI-X table");
    let mut msix = Msix::new(VECTORS).expect("a table may have so many");
    let _ = msix.write_control(ENABLE);
    group.bench_function("unmask and mask one", |b| {
        let place = u64::from(VECTORS - 1) * ENTRY + VECTOR_CONTROL;
        b.iter(|| {
            black_box(msix.table_write(place, &[0; 4]));
            black_box(msix.table_write(place, &[1, 0, 0, 0]));
        });
    });
    group.bench_function("mask all 2048", |b| {
        b.iter(|| {
            for vector in 0..u64::from(VECTORS) {
                black_box(msix.table_write(vector * ENTRY + VECTOR_CONTROL, &[1, 0, 0, 0]));
            }
        });
    });
    for vector in 0..u64::from(VECTORS) {
        let _ = msix.table_write(vector * ENTRY + VECTOR_CONTROL, &[0; 4]);
    }
    group.bench_function("off and on with 2048", |b| {
        b.iter(|| {
            black_box(msix.write_control(0));
            black_box(msix.write_control(ENABLE));
        });
    });
    group.finish();
}

/// Three BARs of each function, as NICs have them.
fn bars() -> Vec<BarRequest> {
    let sizes = [(0, 0x10_0000), (2, 1 << 30), (4, 0x8000)];
    let of_one = |number| {
        sizes.map(|(index, size)| BarRequest {
            function: slot(number),
            bar: BarInfo {
                index: BarIndex::new(index).expect("a BAR"),
                kind: BarKind::Memory64 { prefetchable: true },
                size,
            },
        })
    };
    (0..MANY).flat_map(of_one).collect()
}

fn layout(c: &mut Criterion) {
    let window = |base, size| Some(Window { base, size });
    let windows = Windows {
        memory32: window(0xc000_0000, 0x2000_0000),
        memory64: window(1 << 40, 1 << 38),
        io: window(0x1000, 0xf000),
    };
    let requests = Requests {
        ports: Vec::new(),
        bars: bars(),
    };
    let mut group = c.benchmark_group("93 BARs");
    group.bench_function("placed", |b| {
        b.iter(|| black_box(place(&windows, 0x1000, &requests)));
    });
    let placed = place(&windows, 0x1000, &requests).expect("they fit");
    let mut decoded: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for bar in placed.bars {
        decoded.entry(bar.function).or_default().push(BarDecode {
            bar: bar.bar,
            address: bar.address,
        });
    }
    let fixed = Fixed {
        memory: Vec::new(),
        io: Vec::new(),
    };
    group.bench_function("contested", |b| {
        b.iter(|| black_box(contest(&fixed, &decoded)));
    });
    group.finish();
}

criterion_group!(benches, bus, config, msix, layout);
criterion_main!(benches);
