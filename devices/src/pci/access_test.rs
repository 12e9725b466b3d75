use std::sync::Mutex;

use proptest::prelude::*;

use super::super::bar::BarKind;
use super::super::fake::FakeFunction;
use super::super::root_complex::{Change, EffectSink};
use super::*;

#[derive(Debug)]
struct Ignore;

impl EffectSink for Ignore {
    fn apply(&self, _: &RootComplex, _: &[Change]) {}
}

/// A root complex with one function at 00:03.1 (and its function 0).
fn root() -> (Arc<RootComplex>, Arc<Mutex<FakeFunction>>) {
    let root = Arc::new(RootComplex::new(Arc::new(Ignore)));
    let function = FakeFunction::counting();
    let add = |address: &str, function| root.add(address.parse().unwrap(), function).unwrap();
    add("00:03.0", FakeFunction::with_bars(Vec::new()));
    add("00:03.1", function.clone());
    (root, function)
}

fn read<const N: usize>(device: &impl BusDevice, offset: u64) -> [u8; N] {
    let mut data = [0x55; N];
    device.read(offset, &mut data);
    data
}

/// Where 00:03.1 begins in the ECAM.
const FUNCTION: u64 = 3 << 15 | 1 << 12;

#[test]
fn ecam_finds_function_and_register() {
    let (root, function) = root();
    let ecam = Ecam::new(root, 0);
    assert_eq!(ecam.size(), 1 << 20);
    assert_eq!(read(&ecam, FUNCTION + 0x100), [0, 1, 2, 3]);
    assert_eq!(read(&ecam, FUNCTION + 0xabc), [0xbc, 0xbd]);
    assert_eq!(read(&ecam, FUNCTION + 0x1000), [0xff; 4]);
    ecam.write(FUNCTION + 0x104, &[9]);
    assert_eq!(function.lock().unwrap().space[0x104], 9);
}

#[test]
fn ecam_does_not_spill_over() {
    let (root, function) = root();
    let ecam = Ecam::new(root, 0);
    assert_eq!(read(&ecam, FUNCTION + 0xffe), [0xfe, 0xff, 0xff, 0xff]);
    // From the function before: its last bytes, then ones.
    assert_eq!(read(&ecam, FUNCTION - 2), [0, 0, 0xff, 0xff]);
    ecam.write(FUNCTION - 2, &[7; 8]);
    assert_eq!(function.lock().unwrap().space[0], 0);
}

#[test]
fn ecam_covers_its_buses_only() {
    let (root, _) = root();
    let ecam = Ecam::new(root.clone(), 0);
    for offset in [ecam.size(), ecam.size() + FUNCTION, 1 << 28, u64::MAX] {
        assert_eq!(read(&ecam, offset), [0xff; 8]);
        ecam.write(offset, &[0; 8]);
    }
    let wide = Ecam::new(root, 255);
    assert_eq!(wide.size(), 1 << 28);
    assert_eq!(read(&wide, FUNCTION + 4), [4]);
    assert_eq!(read(&wide, (1 << 28) - 4), [0xff; 4]);
    assert_eq!(read(&wide, (1 << 28) + FUNCTION), [0xff; 4]);
}

fn select(ports: &ConfigPorts, register: u32) {
    let address = ENABLE | 3 << 11 | 1 << 8 | register;
    ports.write(0, &address.to_le_bytes());
}

#[test]
fn ports_read_bytes_words_and_doublewords() {
    let (root, _) = root();
    let ports = ConfigPorts::new(root);
    select(&ports, 0x40);
    assert_eq!(read(&ports, 4), [0x40, 0x41, 0x42, 0x43]);
    assert_eq!(read(&ports, 5), [0x41]);
    assert_eq!(read(&ports, 6), [0x42, 0x43]);
    assert_eq!(read(&ports, 5), [0x41, 0x42]);
    assert_eq!(read(&ports, 7), [0x43, 0xff]);
    assert_eq!(read(&ports, 6), [0x42, 0x43, 0xff, 0xff]);
}

#[test]
fn ports_write_the_selected_function() {
    let (root, function) = root();
    let ports = ConfigPorts::new(root);
    select(&ports, 0x40);
    ports.write(6, &[0xaa, 0xbb]);
    ports.write(7, &[0xcc, 0xdd]);
    let space = function.lock().unwrap().space[0x40..0x46].to_vec();
    assert_eq!(space, [0x40, 0x41, 0xaa, 0xcc, 0x44, 0x45]);
}

#[test]
fn the_address_register_is_a_doubleword() {
    let (root, _) = root();
    let ports = ConfigPorts::new(root);
    // As Linux probes for it.
    ports.write(3, &[1]);
    assert_eq!(read(&ports, 0), [0; 4]);
    ports.write(0, &0x8000_0000_u32.to_le_bytes());
    assert_eq!(read(&ports, 0), 0x8000_0000_u32.to_le_bytes());
    ports.write(0, &[0xff; 4]);
    assert_eq!(read(&ports, 0), 0x80ff_fffc_u32.to_le_bytes());
    // Smaller accesses, such as to port 0xcf9, reach nothing.
    assert_eq!(read(&ports, 1), [0xff]);
    assert_eq!(read(&ports, 0), [0xff, 0xff]);
    ports.write(1, &[6]);
    ports.write(0, &[0; 2]);
    assert_eq!(read(&ports, 0), 0x80ff_fffc_u32.to_le_bytes());
}

#[test]
fn without_enable_nothing_answers() {
    let (root, function) = root();
    let ports = ConfigPorts::new(root);
    assert_eq!(read(&ports, 4), [0xff; 4]);
    ports.write(0, &(3_u32 << 11 | 1 << 8).to_le_bytes());
    assert_eq!(read(&ports, 4), [0xff; 4]);
    ports.write(4, &[0; 4]);
    assert!(function.lock().unwrap().accesses.is_empty());
}

#[test]
fn bar_accesses_stay_inside() {
    let function = FakeFunction::counting();
    let index = BarIndex::new(2).unwrap();
    let bar = BarInfo {
        index,
        kind: BarKind::Memory32 {
            prefetchable: false,
        },
        size: 0x1000,
    };
    let access = BarAccess::new(function.clone(), bar);
    assert_eq!(access.index(), index);
    assert_eq!(read(&access, 0xffc), [0x42; 4]);
    assert_eq!(read(&access, 0xffd), [0xff; 4]);
    assert_eq!(read(&access, u64::MAX), [0xff; 1]);
    access.write(0, &[1; 8]);
    access.write(0x1000, &[1]);
    let expected = [(index, 0xffc, 4), (index, 0, 8)];
    assert_eq!(function.lock().unwrap().bar_accesses, expected);
}

proptest! {
    /// Bytes, words, doublewords and what lies across them read and write the
    /// same by both doors, and as single bytes.
    #[test]
    fn both_doors_lead_to_the_same_bytes(
        register in 0u16..256,
        size in prop_oneof![Just(1usize), Just(2), Just(4), Just(8)],
        value: [u8; 8],
    ) {
        let (root, function) = root();
        let ecam = Ecam::new(root.clone(), 0);
        let ports = ConfigPorts::new(root);
        let at = FUNCTION + u64::from(register);
        let bytes = |from: u16, count: usize| -> Vec<u8> {
            let one = |at| read::<1>(&ecam, FUNCTION + at)[0];
            (u64::from(from)..).take(count).map(one).collect()
        };
        let mut whole = vec![0x55; size];
        ecam.read(at, &mut whole);
        prop_assert_eq!(&whole, &bytes(register, size));
        select(&ports, u32::from(register & !3));
        let port = 4 + u64::from(register & 3);
        // The data port has four bytes.
        let within = size.min(4 - usize::from(register & 3));
        let mut data = vec![0x55; within];
        ports.read(port, &mut data);
        prop_assert_eq!(&data, &bytes(register, within));
        // Away from the BARs, where the function keeps all that is written.
        if register >= 0x30 {
            let before = bytes(0, 0x120);
            ports.write(port, &value[..within]);
            prop_assert_eq!(bytes(register, within), &value[..within]);
            ecam.write(at, &before[register.into()..][..size]);
            ecam.write(at, &value[..size]);
            prop_assert_eq!(bytes(register, size), &value[..size]);
            let mut expected = before;
            expected[register.into()..][..size].copy_from_slice(&value[..size]);
            prop_assert_eq!(bytes(0, 0x120), expected, "nothing else changed");
        }
        drop(function);
    }

    /// Any access to the ports: no panic, and never more than four bytes at
    /// the selected register.
    #[test]
    fn hostile_port_accesses(address: u32, offset: u64, near in 0u64..12, length in 0usize..12) {
        let (root, function) = root();
        let ports = ConfigPorts::new(root);
        ports.write(0, &address.to_le_bytes());
        select(&ports, 0x80);
        for offset in [offset, near] {
            let mut data = vec![0x55; length];
            ports.read(offset, &mut data);
            ports.write(offset, &data);
            select(&ports, 0x80);
        }
        for (at, size) in &function.lock().unwrap().accesses {
            prop_assert!((0x80..0x84).contains(at) && usize::from(*at) + size <= 0x84);
        }
    }

    #[test]
    fn hostile_ecam_accesses(offset: u64, near in 0u64..3 << 20, length in 0usize..12) {
        let (root, _) = root();
        let ecam = Ecam::new(root, 1);
        let mut data = vec![0x55; length];
        for offset in [offset, near] {
            ecam.read(offset, &mut data);
            ecam.write(offset, &data);
        }
    }
}
