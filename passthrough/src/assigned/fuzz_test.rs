//! Devices that lie and guests that try everything: nothing panics, no walk
//! goes on for ever, nothing is left behind.
//!
//! `AIRLOCK_FUZZ_RUNS=100000 cargo test -p passthrough fuzz` tries more.

use super::*;
use crate::assigned::{AssignOptions, Placement, RomSource};
use crate::config::sample::{EVERYTHING, config};
use crate::inspect::Inspection;
use crate::vfio::RegionArea;
use devices::pci::{capabilities, extended_capabilities};
use proptest::prelude::*;
use std::collections::BTreeSet;

const DEFAULT_RUNS: u32 = 96;
/// Steps of one run, and so the most refusals that can be waiting.
const STEPS: usize = 60;

fn runs() -> u32 {
    let runs = std::env::var("AIRLOCK_FUZZ_RUNS").ok();
    runs.and_then(|runs| runs.parse().ok())
        .unwrap_or(DEFAULT_RUNS)
}

/// A capability anywhere, with a link to anywhere.
#[derive(Clone, Debug)]
struct Link {
    place: u16,
    id: u16,
    next: u16,
    body: Vec<u8>,
}

fn link(extended: bool) -> impl Strategy<Value = Link> {
    let places = if extended {
        0x100_u16..0x1000
    } else {
        0x34..0x100
    };
    // Aligned and known, for the most part: deeper than the first check.
    let ids = prop_oneof![4 => 0_u16..0x34, 1 => any::<u16>()];
    let body = proptest::collection::vec(any::<u8>(), 0..24);
    (places.clone(), ids, places, any::<bool>(), body).prop_map(|(place, id, next, odd, body)| {
        let mask = if odd { !0 } else { !3 };
        Link {
            place: place & mask,
            id,
            next: next & mask,
            body,
        }
    })
}

/// A device that may be nothing like one.
#[derive(Clone, Debug)]
struct Liar {
    everything: bool,
    standard: Vec<Link>,
    extended: Vec<Link>,
    noise: Vec<(u16, u8)>,
    bars: Vec<(u8, u8, u64)>,
    register_bits: Vec<u8>,
    areas: Vec<(u64, u64)>,
    config_size: u64,
    rom: usize,
    refusals: Vec<(u8, u8)>,
}

fn liar() -> impl Strategy<Value = Liar> {
    let links = |extended| proptest::collection::vec(link(extended), 0..8);
    let noise = proptest::collection::vec((0_u16..0x1000, any::<u8>()), 0..24);
    let bars = proptest::collection::vec((0_u8..6, 0_u8..6, 4_u64..17), 0..4);
    let bits = proptest::collection::vec(any::<u8>(), 6);
    let areas = proptest::collection::vec((0_u64..0x6000, 0_u64..0x6000), 0..4);
    let sizes = prop_oneof![6 => Just(4096), 2 => Just(256), 1 => 0_u64..5000];
    let refusals = proptest::collection::vec((0_u8..6, 0_u8..20), 0..3);
    (
        any::<bool>(),
        links(false),
        links(true),
        noise,
        bars,
        bits,
        areas,
        sizes,
        0_usize..0x4_0000,
        refusals,
    )
        .prop_map(
            |(
                everything,
                standard,
                extended,
                noise,
                bars,
                register_bits,
                areas,
                config_size,
                rom,
                refusals,
            )| Liar {
                everything,
                standard,
                extended,
                noise,
                bars,
                register_bits,
                areas,
                config_size,
                rom,
                refusals,
            },
        )
}

impl Liar {
    fn config(&self) -> ConfigSpace {
        let mut values = config(if self.everything {
            EVERYTHING
        } else {
            &EVERYTHING[..7]
        });
        for one in &self.standard {
            values.set(one.place, &[one.id as u8, one.next as u8]);
            values.set(one.place + 2, &one.body);
        }
        for one in &self.extended {
            let header = u32::from(one.next) << 20 | 1 << 16 | u32::from(one.id);
            values.set(one.place, &header.to_le_bytes());
            values.set(one.place + 4, &one.body);
        }
        // A list is entered somewhere, not at random.
        if let Some(first) = self.standard.first().filter(|_| !self.everything) {
            values.set(0x34, &[first.place as u8]);
        }
        for &(at, byte) in &self.noise {
            values.set(at, &[byte]);
        }
        values
    }

    fn device(&self, journal: &Journal) -> FakeDevice {
        let kinds = [
            BarKind::Io,
            BarKind::Memory32 {
                prefetchable: false,
            },
            BarKind::Memory32 { prefetchable: true },
            BarKind::Memory64 {
                prefetchable: false,
            },
            BarKind::Memory64 { prefetchable: true },
            BarKind::Rom,
        ];
        let bar = |&(index, kind, bits): &(u8, u8, u64)| BarInfo {
            index: BarIndex::new(index).unwrap(),
            kind: kinds[usize::from(kind)],
            // No power of two, now and then.
            size: (1 << bits) + if bits % 7 == 6 { 0x30 } else { 0 },
        };
        let bars: Vec<_> = self.bars.iter().map(bar).collect();
        let mut device = FakeDevice::new(&self.config(), self.config_size, &bars, journal).unwrap();
        if self.rom > 0x8000 {
            device = device.with_rom(&vec![0x55; self.rom]);
        }
        if let (Some(bar), false) = (bars.first(), self.areas.is_empty()) {
            let areas = self
                .areas
                .iter()
                .map(|&(offset, size)| RegionArea { offset, size });
            device = device.with_areas(bar.index, areas.collect());
        }
        for (index, bits) in self
            .register_bits
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits > 0xe0)
        {
            device.set_config(0x10 + index as u16 * 4, &[*bits & 0xf]);
        }
        for &(operation, after) in &self.refusals {
            let all = [
                Operation::Read,
                Operation::Write,
                Operation::Map,
                Operation::SetIrqs,
                Operation::DisableIrqs,
                Operation::Reset,
            ];
            if after > 10 {
                device.refuse(all[usize::from(operation)], libc::EIO);
            }
        }
        device
    }
}

/// Something that a guest, its hardware or its bus does.
#[derive(Clone, Debug)]
enum Step {
    ConfigRead(u16, usize),
    ConfigWrite(u16, Vec<u8>),
    BarRead(u8, u64, usize),
    BarWrite(u8, u64, Vec<u8>),
    Hardware(u16, u8),
    Raise(u32),
    Refuse(bool),
    Settle { few: bool, bus_master: bool },
    Release,
    BusReset,
}

fn step() -> impl Strategy<Value = Step> {
    let config = prop_oneof![3 => 0_u16..0x100, 1 => 0x100_u16..0x1000, 1 => any::<u16>()];
    let registers = prop_oneof![
        Just(4_u16),
        (0_u16..7).prop_map(|at| 0x10 + at * 4),
        Just(0x30),
        Just(0x44),
        Just(0x88),
        Just(0xc2),
    ];
    let data = || proptest::collection::vec(any::<u8>(), 0..9);
    let offset = prop_oneof![3 => 0_u64..0x5000, 1 => any::<u64>()];
    prop_oneof![
        1 => (config.clone(), 0_usize..9).prop_map(|(at, size)| Step::ConfigRead(at, size)),
        3 => (config, data()).prop_map(|(at, data)| Step::ConfigWrite(at, data)),
        3 => (registers, data()).prop_map(|(at, data)| Step::ConfigWrite(at, data)),
        1 => (0_u8..7, offset.clone(), 0_usize..9).prop_map(|(bar, at, size)| Step::BarRead(bar, at, size)),
        2 => (0_u8..7, offset, data()).prop_map(|(bar, at, data)| Step::BarWrite(bar, at, data)),
        1 => (6_u16..0x1000, any::<u8>()).prop_map(|(at, byte)| Step::Hardware(at, byte)),
        1 => (0_u32..0x900).prop_map(Step::Raise),
        1 => any::<bool>().prop_map(Step::Refuse),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(few, bus_master)| Step::Settle { few, bus_master }),
        1 => prop_oneof![Just(Step::Release), Just(Step::BusReset)],
    ]
}

fn bar_index(number: u8) -> BarIndex {
    BarIndex::new(number).unwrap_or(BarIndex::ROM)
}

impl Setup {
    fn take_step(&mut self, step: Step) {
        match step {
            Step::ConfigRead(at, size) => {
                let mut data = vec![0; size];
                self.device.config_read(at, &mut data);
            }
            Step::ConfigWrite(at, data) => {
                let _ = self.device.config_write(at, &data);
            }
            Step::BarRead(bar, at, size) => {
                let mut data = vec![0; size];
                self.device.bar_read(bar_index(bar), at, &mut data);
            }
            Step::BarWrite(bar, at, data) => self.device.bar_write(bar_index(bar), at, &data),
            Step::Hardware(at, byte) => self.host.set_config(at, &[byte]),
            Step::Raise(vector) => {
                self.host.raise(vector);
            }
            Step::Refuse(read) => {
                let operation = if read {
                    Operation::Read
                } else {
                    Operation::Write
                };
                self.host.refuse(operation, libc::EIO);
            }
            Step::Settle { few, bus_master } => {
                let mut answering = self.device.decoded();
                if few {
                    answering.truncate(1);
                }
                let reach = Reach {
                    answering,
                    bus_master,
                };
                self.device.settle(&reach).unwrap();
                // What the host refuses is tried again.
                for _ in 0..STEPS {
                    if bus_master || self.host.config(4) & MASTER == 0 {
                        return;
                    }
                    self.device.settle(&reach).unwrap();
                }
                panic!("the device masters the bus all the same");
            }
            Step::Release => self.device.release(&[]),
            Step::BusReset => {
                let _ = self.device.reset();
            }
        }
    }

    /// What holds at any time.
    fn check(&mut self, bars: &[BarInfo]) {
        assert_eq!(self.device.bars(), bars, "constant");
        if let Some(command) = self.device.command {
            assert_eq!(self.host.config(4) & 7, command & 7, "as noted");
        }
        for decode in self.device.decoded() {
            assert!(bars.contains(&decode.bar));
            assert_eq!(decode.address % decode.bar.size, 0);
        }
        let mut reads = 0;
        let device = &mut self.device;
        let list = capabilities(|at, data| {
            reads += 1;
            device.config_read(at, data);
        });
        assert!(list.count() <= 48);
        let list = extended_capabilities(|at, data| {
            reads += 1;
            device.config_read(at, data);
        });
        assert!(list.count() <= 960);
        assert!(reads <= 2 + 2 * 48 + 961);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: runs(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn fuzz(
        liar in liar(),
        behind_port: bool,
        rom in 0_usize..3,
        steps in proptest::collection::vec(step(), 0..STEPS),
    ) {
        let journal = Journal::default();
        let host = Arc::new(liar.device(&journal));
        let address = "0000:01:00.0".parse().unwrap();
        for placement in [None, Some(Placement::RootBus), Some(Placement::BehindPort)] {
            if let Ok(inspection) = Inspection::of_backend(address, &*host, placement) {
                crate::inspect::tests::check(&inspection);
            }
        }
        let options = AssignOptions {
            rom: [RomSource::Device, RomSource::Off, RomSource::File(vec![1, 2, 3])][rom].clone(),
            placement: if behind_port { Placement::BehindPort } else { Placement::RootBus },
        };
        let router = Arc::new(FakeRouter::new(&journal));
        let mapper = Arc::new(FakeMapper::new(&journal));
        let space = Arc::new(FakeSpace::new(&journal));
        let device = AssignedDevice::new(
            address,
            Arc::clone(&host) as Arc<dyn DeviceBackend>,
            options,
            Arc::clone(&router) as Arc<dyn InterruptRouter>,
            Arc::clone(&mapper) as Arc<dyn MemoryMapper>,
            Arc::clone(&space) as Arc<dyn AddressSpace>,
        );
        let Ok(device) = device else { return Ok(()) };
        let bars = device.bars();
        let mut setup = Setup { journal, host, router, mapper, space, device };
        for step in steps {
            setup.take_step(step);
            setup.check(&bars);
        }
        let Setup { device, journal, .. } = setup;
        drop(device);
        let mut mapped = BTreeSet::new();
        for call in journal.take() {
            match call.split(' ').collect::<Vec<_>>()[..] {
                ["guest", "map", at, _] => prop_assert!(mapped.insert(at.to_owned()), "{}", at),
                ["guest", "unmap", at] => prop_assert!(mapped.remove(at), "{}", at),
                _ => {}
            }
        }
        prop_assert!(mapped.is_empty());
    }
}
