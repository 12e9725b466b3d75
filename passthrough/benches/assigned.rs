//! What an assigned device adds to an access of the guest's, on a host in memory.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use devices::pci::{BarIndex, PciFunction};
use passthrough::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal};
use passthrough::{AssignOptions, AssignedDevice};

fn assign(journal: &Journal) -> AssignedDevice {
    let device = FakeDevice::nvme(journal).expect("the fake needs an eventfd");
    AssignedDevice::new(
        "0000:01:00.0".parse().expect("an address"),
        Arc::new(device),
        AssignOptions::default(),
        Arc::new(FakeRouter::new(journal)),
        Arc::new(FakeMapper::new(journal)),
        Arc::new(FakeSpace::new(journal)),
    )
    .expect("the fake is an NVMe")
}

fn accesses(c: &mut Criterion) {
    let journal = Journal::default();
    let mut device = assign(&journal);
    let mut data = [0; 4];
    let mut group = c.benchmark_group("assigned device");
    group.bench_function("constant config read", |b| {
        b.iter(|| device.config_read(black_box(0x00), &mut data));
    });
    let bar = BarIndex::new(0).expect("a BAR");
    group.bench_function("masked MSI-X table write", |b| {
        b.iter(|| device.bar_write(bar, black_box(0x200c), &[1, 0, 0, 0]));
    });
    group.bench_function("assigned and dropped", |b| {
        b.iter(|| {
            drop(black_box(assign(&journal)));
            journal.take();
        });
    });
    group.finish();
}

criterion_group!(benches, accesses);
criterion_main!(benches);
