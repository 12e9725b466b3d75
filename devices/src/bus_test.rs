use std::sync::{Mutex, Weak};

use proptest::prelude::*;

use super::*;

/// Answers each byte with `tag` plus its offset, and notes what is written.
#[derive(Debug)]
struct Pattern {
    tag: u8,
    size: u64,
    written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Pattern {
    fn new(tag: u8, size: u64) -> Arc<Self> {
        Arc::new(Self {
            tag,
            size,
            written: Mutex::default(),
        })
    }

    fn byte(&self, offset: u64) -> u8 {
        self.tag.wrapping_add(offset as u8)
    }

    fn check(&self, offset: u64, length: usize) {
        assert!(length > 0);
        assert!(offset < self.size && length as u64 <= self.size - offset);
    }
}

impl BusDevice for Pattern {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.check(offset, data.len());
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(offset + index as u64);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.check(offset, data.len());
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn read<const N: usize>(bus: &Bus, address: u64) -> [u8; N] {
    let mut data = [0x55; N];
    bus.read(address, &mut data);
    data
}

#[test]
fn nothing_reads_as_ones_and_swallows_writes() {
    let bus = Bus::new();
    assert_eq!(read(&bus, 0x1000), [0xff; 8]);
    bus.write(0x1000, &[1, 2, 3]);
    bus.read(0, &mut []);
    bus.write(u64::MAX, &[]);
}

#[test]
fn the_device_sees_offsets() {
    let bus = Bus::new();
    let device = Pattern::new(0x10, 0x20);
    bus.insert("a", 0x100, 0x20, device.clone()).unwrap();
    assert_eq!(read(&bus, 0x100), [0x10, 0x11]);
    assert_eq!(read(&bus, 0x11f), [0x2f]);
    bus.write(0x104, &[7, 8]);
    assert_eq!(*device.written.lock().unwrap(), [(4, vec![7, 8])]);
}

#[test]
fn an_access_across_borders_is_split() {
    let bus = Bus::new();
    let low = Pattern::new(0x10, 4);
    let high = Pattern::new(0x80, 4);
    bus.insert("low", 0x100, 4, low.clone()).unwrap();
    bus.insert("high", 0x105, 4, high.clone()).unwrap();
    let expected = [0xff, 0x10, 0x11, 0x12, 0x13, 0xff, 0x80, 0x81];
    assert_eq!(read(&bus, 0xff), expected);
    bus.write(0x103, &[1, 2, 3]);
    assert_eq!(*low.written.lock().unwrap(), [(3, vec![1])]);
    assert_eq!(*high.written.lock().unwrap(), [(0, vec![3])]);
}

#[test]
fn the_end_of_the_address_space_is_no_trap() {
    let bus = Bus::new();
    let device = Pattern::new(0, 2);
    bus.insert("top", u64::MAX - 1, 2, device).unwrap();
    assert_eq!(read(&bus, u64::MAX - 1), [0, 1, 0xff, 0xff]);
    assert_eq!(read(&bus, u64::MAX), [1, 0xff]);
    let error = bus.insert("past", u64::MAX, 2, Pattern::new(0, 2));
    assert!(matches!(error, Err(BusError::BadRange { .. })));
    let error = bus.insert("empty", 0, 0, Pattern::new(0, 0));
    assert!(matches!(error, Err(BusError::BadRange { .. })));
}

#[test]
fn a_device_may_fill_the_address_space() {
    let bus = Bus::new();
    bus.insert("all", 0, u64::MAX, Pattern::new(0, u64::MAX))
        .unwrap();
    assert_eq!(read(&bus, u64::MAX - 1), [0xfe, 0xff]);
}

#[test]
fn overlap_names_both() {
    let bus = Bus::new();
    bus.insert("serial port", 0x3f8, 8, Pattern::new(0, 8))
        .unwrap();
    let error = bus
        .insert("clock", 0x3ff, 2, Pattern::new(0, 2))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot place clock at 0x3ff..=0x400: it overlaps serial port at 0x3f8..=0x3ff"
    );
    assert_eq!(bus.claims().len(), 1);
    bus.insert("clock", 0x400, 2, Pattern::new(0, 2)).unwrap();
}

#[test]
fn removal_needs_the_exact_start() {
    let bus = Bus::new();
    bus.insert("a", 0x10, 8, Pattern::new(0, 8)).unwrap();
    assert_eq!(
        bus.remove(0x11).unwrap_err(),
        BusError::Absent { base: 0x11 }
    );
    bus.remove(0x10).unwrap();
    assert_eq!(read(&bus, 0x10), [0xff]);
    assert!(bus.remove(0x10).is_err());
}

/// Moves itself when it is written to.
#[derive(Debug)]
struct Mover {
    bus: Weak<Bus>,
}

impl BusDevice for Mover {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0x42);
    }

    fn write(&self, _: u64, _: &[u8]) {
        let bus = self.bus.upgrade().unwrap();
        let device = bus.remove(0x1000).unwrap();
        bus.insert("mover", 0x2000, 0x10, device).unwrap();
    }
}

#[test]
fn a_device_may_change_the_bus_in_its_own_access() {
    let bus = Arc::new(Bus::new());
    let device = Arc::new(Mover {
        bus: Arc::downgrade(&bus),
    });
    bus.insert("mover", 0x1000, 0x10, device).unwrap();
    bus.write(0x1000, &[1]);
    assert_eq!(read(&bus, 0x1000), [0xff]);
    assert_eq!(read(&bus, 0x2000), [0x42]);
}

proptest! {
    /// The bus against a byte map: what is in the map, and nothing else, answers.
    #[test]
    fn as_a_map_of_bytes(
        ranges in proptest::collection::vec((0u64..256, 1u64..32), 0..24),
        removals in proptest::collection::vec(0usize..24, 0..8),
        accesses in proptest::collection::vec((0u64..300, 1usize..16), 1..64),
    ) {
        let bus = Bus::new();
        let mut map = [0xff_u8; 512];
        let mut present = Vec::new();
        for (index, (base, size)) in ranges.into_iter().enumerate() {
            let free = map[base as usize..(base + size) as usize].iter().all(|b| *b == 0xff);
            // Tags that keep every byte below 0xff.
            let device = Pattern::new(index as u8 * 8, size);
            let answer = bus.insert(format!("{index}"), base, size, device.clone());
            prop_assert_eq!(answer.is_ok(), free);
            if free {
                for offset in 0..size {
                    map[(base + offset) as usize] = device.byte(offset);
                }
                present.push((base, size));
            }
        }
        for index in removals {
            if index < present.len() {
                let (base, size) = present.swap_remove(index);
                bus.remove(base).unwrap();
                map[base as usize..(base + size) as usize].fill(0xff);
            }
        }
        for (address, length) in accesses {
            let mut data = vec![0x55; length];
            bus.read(address, &mut data);
            prop_assert_eq!(&data[..], &map[address as usize..address as usize + length]);
        }
    }
}

fn insertion(name: &str, base: u64, tag: u8) -> Insertion {
    Insertion {
        name: name.to_owned(),
        base,
        size: 0x100,
        device: Pattern::new(tag, 0x100),
    }
}

#[test]
fn an_update_is_whole_or_nothing() {
    let bus = Bus::new();
    for new in [insertion("a", 0x100, 1), insertion("b", 0x200, 2)] {
        bus.insert(new.name, new.base, new.size, new.device)
            .unwrap();
    }
    // Places are swapped: nothing has to be free in between.
    let swapped = vec![insertion("a", 0x200, 1), insertion("b", 0x100, 2)];
    bus.update(&[0x100, 0x200], swapped).unwrap();
    assert_eq!([read(&bus, 0x100), read(&bus, 0x200)], [[2], [1]]);
    let before = bus.claims();
    let overlapping = vec![insertion("c", 0x400, 3), insertion("d", 0x180, 4)];
    let error = bus.update(&[0x100], overlapping).unwrap_err();
    assert!(matches!(error, BusError::Overlap { .. }), "{error}");
    let error = bus.update(&[0x100, 0x300], Vec::new()).unwrap_err();
    assert_eq!(error, BusError::Absent { base: 0x300 });
    assert_eq!(bus.claims(), before);
}

#[test]
fn nobody_sees_half_of_an_update() {
    let bus = Bus::new();
    bus.update(&[], vec![insertion("a", 0x100, 1)]).unwrap();
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for turn in 0..2000_u32 {
                let (from, to) = match turn % 2 {
                    0 => (0x100, 0x180),
                    _ => (0x180, 0x100),
                };
                bus.update(&[from], vec![insertion("a", to, 1)]).unwrap();
            }
        });
        while !mover.is_finished() {
            // In the half that both places have, it never stops answering.
            let seen: [u8; 1] = read(&bus, 0x180);
            assert!([[0x81], [0x01]].contains(&seen), "{seen:?}");
        }
    });
}
