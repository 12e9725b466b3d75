//! Reads the tables back as a guest does: by pointers, lengths and checksums,
//! with a decoder of its own.

use proptest::prelude::*;

use super::super::SerialPort;
use super::*;
use crate::legacy::PowerBlock;
use crate::pci::window::{Window, WindowKind, Windows};
use crate::pci::{InterruptPin, PinWiring};

const BASE: u64 = 0xe_0000;

fn platform() -> Platform {
    let window = |base, size| Some(Window { base, size });
    Platform {
        apic_ids: vec![0, 1, 2, 3],
        local_apic: 0xfee0_0000,
        io_apic: 0xfec0_0000,
        ecam: 0xe000_0000,
        last_bus: 0,
        windows: Windows {
            memory32: window(0xc000_0000, 0x2000_0000),
            memory64: window(0x1_4000_0000, 0x40_0000_0000),
            io: window(0x1000, 0xf000),
        },
        pins: Some(PinWiring {
            first: 16,
            count: 8,
        }),
        power: 0x600,
        serial: Some(SerialPort {
            port: 0x3f8,
            gsi: 4,
        }),
        rtc: true,
        pvpanic: Some(0x505),
    }
}

/// The tables in a guest's memory.
struct Memory(Tables);

impl Memory {
    fn of(platform: &Platform) -> Self {
        Self(platform.build(BASE).unwrap())
    }

    fn at(&self, address: u64) -> &[u8] {
        &self.0.bytes[usize::try_from(address - self.0.base).unwrap()..]
    }

    /// The table at `address`, with its header checked.
    fn table(&self, address: u64) -> &[u8] {
        assert_eq!(address % 16, 0);
        let length = u32_at(self.at(address), 4) as usize;
        let table = &self.at(address)[..length];
        assert_eq!(sum(table), 0, "checksum");
        assert_eq!(&table[10..16], b"AIRLCK");
        table
    }

    fn xsdt(&self) -> Vec<u64> {
        let rsdp = &self.at(self.0.rsdp)[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
        assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36));
        let table = self.table(u64_at(rsdp, 24));
        assert_eq!(&table[..4], b"XSDT");
        table[36..]
            .chunks(8)
            .map(|entry| u64_at(entry, 0))
            .collect()
    }

    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        let tables: Vec<_> = self.xsdt().iter().map(|at| self.table(*at)).collect();
        let mut hits = tables.iter().filter(|table| &table[..4] == signature);
        let hit = hits.next().expect("a table");
        assert!(hits.next().is_none());
        hit
    }

    fn dsdt(&self) -> &[u8] {
        let fadt = self.find(b"FACP");
        assert_eq!(u32_at(fadt, 40), 0, "the 64-bit field alone counts");
        let table = self.table(u64_at(fadt, 140));
        assert_eq!((&table[..4], table[8]), (&b"DSDT"[..], 2));
        &table[36..]
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A package length (ACPI 6.5 §20.2.4): the value, and its own size.
fn package_length(aml: &[u8]) -> (usize, usize) {
    let more = usize::from(aml[0] >> 6);
    if more == 0 {
        return (aml[0].into(), 1);
    }
    let high = (1..=more)
        .rev()
        .fold(0, |sum, index| sum << 8 | usize::from(aml[index]));
    (high << 4 | usize::from(aml[0] & 0xf), 1 + more)
}

fn position(aml: &[u8], needle: &[u8]) -> Option<usize> {
    aml.windows(needle.len()).position(|part| part == needle)
}

/// The body of `Device (name)`, searched for in `aml`.
fn device<'a>(aml: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    (0..aml.len().saturating_sub(8)).find_map(|at| {
        let rest = aml[at..].strip_prefix(&[0x5b, 0x82])?;
        let (length, skip) = package_length(rest);
        let body = rest.get(skip..length)?;
        body.strip_prefix(name)
    })
}

/// The value that `Name (name, …)` begins with.
fn named<'a>(aml: &'a [u8], name: &[u8; 4]) -> &'a [u8] {
    let needle = [&[0x08], &name[..]].concat();
    &aml[position(aml, &needle).expect("a name") + needle.len()..]
}

#[derive(Debug, PartialEq)]
enum Resource {
    /// First port, alignment, length.
    Ports(u16, u8, u8),
    /// First address, length.
    FixedMemory(u32, u32),
    /// Type (0 memory, 1 I/O, 2 buses), first, last, length, type flags.
    Range(u8, u64, u64, u64, u8),
    /// Flags, number.
    Interrupt(u8, u32),
}

/// The descriptors in `_CRS` (ACPI 6.5 §6.4).
fn resources(device: &[u8]) -> Vec<Resource> {
    let buffer = named(device, b"_CRS");
    assert_eq!(buffer[0], 0x11);
    let (length, skip) = package_length(&buffer[1..]);
    let body = &buffer[1 + skip..1 + length];
    let (size, mut rest) = match body[0] {
        0x0a => (usize::from(body[1]), &body[2..]),
        0x0b => (usize::from(u16_at(body, 1)), &body[3..]),
        prefix => panic!("size prefix {prefix:#x}"),
    };
    assert_eq!(size, rest.len());
    let mut found = Vec::new();
    while rest[0] != 0x79 {
        let length = if rest[0] & 0x80 == 0 {
            1 + usize::from(rest[0] & 7)
        } else {
            3 + usize::from(u16_at(rest, 1))
        };
        let (one, next) = rest.split_at(length);
        found.push(match one[0] {
            0x47 => {
                assert_eq!((one[1], u16_at(one, 2)), (1, u16_at(one, 4)));
                Resource::Ports(u16_at(one, 2), one[6], one[7])
            }
            0x86 => Resource::FixedMemory(u32_at(one, 4), u32_at(one, 8)),
            0x88 => {
                let [first, last, size] = [8, 10, 14].map(|at| u64::from(u16_at(one, at)));
                Resource::Range(one[3], first, last, size, one[5])
            }
            0x87 => {
                let [first, last, size] = [10, 14, 22].map(|at| u64::from(u32_at(one, at)));
                Resource::Range(one[3], first, last, size, one[5])
            }
            0x8a => {
                let [first, last, size] = [14, 22, 38].map(|at| u64_at(one, at));
                Resource::Range(one[3], first, last, size, one[5])
            }
            0x89 => {
                assert_eq!(one[4], 1);
                Resource::Interrupt(one[3], u32_at(one, 5))
            }
            tag => panic!("descriptor {tag:#x}"),
        });
        rest = next;
    }
    assert_eq!(rest, [0x79, 0]);
    found
}

#[test]
fn every_table_is_found_once() {
    let memory = Memory::of(&platform());
    assert_eq!(memory.0.rsdp, BASE);
    assert_eq!(memory.xsdt().len(), 3);
    for signature in [b"FACP", b"APIC", b"MCFG"] {
        memory.find(signature);
    }
    assert!(memory.0.bytes.len() < 0x1_0000);
}

#[test]
fn fadt_has_the_registers_of_the_power_block() {
    let memory = Memory::of(&platform());
    let fadt = memory.find(b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
    assert_eq!(u32_at(fadt, 36), 0, "no FACS");
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "reset register");
    // VGA absent, no ASPM; no keyboard controller, clock present.
    assert_eq!(u16_at(fadt, 109), 0x14);
    assert_eq!(fadt[108], 0x32, "century");
    for (at, port) in [(116, 0x602), (244, 0x600), (256, 0x601)] {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        assert_eq!(u64_at(fadt, at + 4), port);
    }
    assert_eq!(fadt[128], PowerBlock::RESET_VALUE);
    // No fixed hardware: SCI, SMI and the register blocks.
    assert!(fadt[46..108].iter().all(|byte| *byte == 0));
    assert!(fadt[148..244].iter().all(|byte| *byte == 0));
}

#[test]
fn without_a_clock_the_fadt_says_so() {
    let memory = Memory::of(&Platform {
        rtc: false,
        ..platform()
    });
    let fadt = memory.find(b"FACP");
    assert_eq!((u16_at(fadt, 109), fadt[108]), (0x34, 0));
    assert!(device(memory.dsdt(), b"RTC_").is_none());
}

/// Type and body of each entry of the MADT.
fn entries(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while let [kind, length, ..] = *rest {
        assert!(length >= 2);
        let (one, next) = rest.split_at(length.into());
        found.push((kind, &one[2..]));
        rest = next;
    }
    found
}

#[test]
fn madt_lists_processors_and_the_io_apic() {
    let memory = Memory::of(&Platform {
        apic_ids: vec![0, 2, 254, 255, 0x1_0000],
        ..platform()
    });
    let madt = memory.find(b"APIC");
    assert_eq!((madt[8], u32_at(madt, 36)), (5, 0xfee0_0000));
    let entries = entries(madt);
    let kinds: Vec<_> = entries.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0, 0, 0, 9, 9, 1]);
    assert_eq!(entries[1].1, [1, 2, 1, 0, 0, 0]);
    assert_eq!(entries[2].1, [2, 254, 1, 0, 0, 0]);
    let x2apic = entries[4].1;
    assert_eq!(x2apic.len(), 14);
    let fields = [2, 6, 10].map(|at| u32_at(x2apic, at));
    assert_eq!(fields, [0x1_0000, 1, 4]);
    let io_apic = entries[5].1;
    assert_eq!((io_apic[0], io_apic.len()), (0, 10));
    assert_eq!((u32_at(io_apic, 2), u32_at(io_apic, 6)), (0xfec0_0000, 0));
}

#[test]
fn every_processor_has_a_device_with_its_uid() {
    let memory = Memory::of(&Platform {
        apic_ids: (0..300).collect(),
        ..platform()
    });
    let dsdt = memory.dsdt();
    for (name, uid) in [
        (b"C000", &[0x00][..]),
        (b"C001", &[0x01]),
        (b"C0FF", &[0x0a, 0xff]),
        (b"C12B", &[0x0b, 0x2b, 0x01]),
    ] {
        let cpu = device(dsdt, name).unwrap();
        assert!(named(cpu, b"_HID").starts_with(b"\x0dACPI0007\0"));
        assert!(named(cpu, b"_UID").starts_with(uid));
    }
    assert!(device(dsdt, b"C12C").is_none());
}

#[test]
fn config_space_is_named_and_reserved() {
    let platform = Platform {
        last_bus: 3,
        ..platform()
    };
    let memory = Memory::of(&platform);
    let mcfg = memory.find(b"MCFG");
    assert_eq!(mcfg.len(), 60);
    assert_eq!(u64_at(mcfg, 44), 0xe000_0000);
    assert_eq!(mcfg[52..56], [0, 0, 0, 3], "segment, first and last bus");
    let board = device(memory.dsdt(), b"MBRD").unwrap();
    assert!(named(board, b"_HID").starts_with(&[0x0c, 0x41, 0xd0, 0x0c, 0x02]));
    let expected = [
        Resource::Ports(0x600, 1, 4),
        Resource::FixedMemory(0xe000_0000, 0x40_0000),
    ];
    assert_eq!(resources(board), expected);
}

#[test]
fn the_host_bridge_has_its_windows() {
    let memory = Memory::of(&platform());
    let bridge = device(memory.dsdt(), b"PCI0").unwrap();
    assert!(named(bridge, b"_HID").starts_with(&[0x0c, 0x41, 0xd0, 0x0a, 0x08]));
    assert!(named(bridge, b"_CID").starts_with(&[0x0c, 0x41, 0xd0, 0x0a, 0x03]));
    let expected = [
        Resource::Range(2, 0, 0, 1, 0),
        Resource::Ports(0xcf8, 1, 8),
        Resource::Range(1, 0x1000, 0xffff, 0xf000, 3),
        Resource::Range(0, 0xc000_0000, 0xdfff_ffff, 0x2000_0000, 1),
        Resource::Range(0, 0x1_4000_0000, 0x41_3fff_ffff, 0x40_0000_0000, 1),
    ];
    assert_eq!(resources(bridge), expected);
    let bare = Memory::of(&Platform {
        windows: Windows::default(),
        last_bus: 255,
        ..platform()
    });
    let bridge = device(bare.dsdt(), b"PCI0").unwrap();
    let expected = [
        Resource::Range(2, 0, 255, 256, 0),
        Resource::Ports(0xcf8, 1, 8),
    ];
    assert_eq!(resources(bridge), expected);
}

/// An integer constant, and its own size (ACPI 6.5 §20.2.3).
fn integer(aml: &[u8]) -> (u32, usize) {
    match aml[0] {
        value @ (0 | 1) => (value.into(), 1),
        0x0a => (aml[1].into(), 2),
        0x0b => (u16_at(aml, 1).into(), 3),
        0x0c => (u32_at(aml, 1), 5),
        prefix => panic!("integer prefix {prefix:#x}"),
    }
}

/// The elements of a package of integers, and what comes behind it.
fn integers(aml: &[u8]) -> (Vec<u32>, &[u8]) {
    assert_eq!(aml[0], 0x12);
    let (length, skip) = package_length(&aml[1..]);
    let (body, behind) = aml[1 + skip..].split_at(length - skip);
    let mut rest = &body[1..];
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let (value, size) = integer(rest);
        elements.push(value);
        rest = &rest[size..];
    }
    assert_eq!(elements.len(), body[0].into());
    (elements, behind)
}

#[test]
fn every_pin_on_the_root_bus_is_routed_once() {
    let memory = Memory::of(&platform());
    let bridge = device(memory.dsdt(), b"PCI0").unwrap();
    let table = named(bridge, b"_PRT");
    assert_eq!(table[0], 0x12);
    let (length, skip) = package_length(&table[1..]);
    let body = &table[1 + skip..1 + length];
    assert_eq!(body[0], 31 * 4);
    let mut rest = &body[1..];
    for device in 1..=31 {
        for pin in InterruptPin::ALL {
            let entry;
            (entry, rest) = integers(rest);
            let index = u32::from(pin.register()) - 1;
            let input = platform().pins.unwrap().input(device, pin);
            assert!((16..24).contains(&input));
            let address = u32::from(device) << 16 | 0xffff;
            assert_eq!(entry, [address, index, 0, input], "{device} {pin:?}");
        }
    }
    assert!(rest.is_empty());
    let pins = None;
    let none = Memory::of(&Platform { pins, ..platform() });
    assert!(position(none.dsdt(), b"_PRT").is_none());
}

#[test]
fn the_guest_is_asked_for_its_uuid_and_gets_the_capability() {
    let memory = Memory::of(&platform());
    let bridge = device(memory.dsdt(), b"PCI0").unwrap();
    let at = position(bridge, b"_OSC").unwrap();
    assert_eq!(bridge[at + 4], 0x0c, "four arguments, serialized");
    let method = &bridge[at..];
    // 33DB4D5B-1FF7-401C-9657-7441C03DD766, the first three parts little-endian.
    let uuid = [
        0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40, 0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7,
        0x66,
    ];
    assert!(position(method, &uuid).is_some());
    // Local0 = CDW3 & 0x10
    assert!(position(method, b"\x7bCDW3\x0a\x10\x60").is_some());
    // CreateDWordField (Arg3, 8, CDW3)
    assert!(position(method, b"\x8a\x6b\x0a\x08CDW3").is_some());
    assert!(method.ends_with(&[0xa4, 0x6b]), "returns the buffer");
}

#[test]
fn legacy_devices_are_named() {
    let memory = Memory::of(&platform());
    let dsdt = memory.dsdt();
    let serial = device(dsdt, b"COM1").unwrap();
    assert!(named(serial, b"_HID").starts_with(&[0x0c, 0x41, 0xd0, 0x05, 0x01]));
    let expected = [Resource::Ports(0x3f8, 1, 8), Resource::Interrupt(3, 4)];
    assert_eq!(resources(serial), expected);
    let rtc = device(dsdt, b"RTC_").unwrap();
    assert_eq!(resources(rtc), [Resource::Ports(0x70, 1, 2)]);
    let pvpanic = device(dsdt, b"PEVT").unwrap();
    assert!(named(pvpanic, b"_HID").starts_with(b"\x0dQEMU0001\0"));
    assert_eq!(resources(pvpanic), [Resource::Ports(0x505, 1, 1)]);
    let none = Memory::of(&Platform {
        serial: None,
        pvpanic: None,
        ..platform()
    });
    assert!(device(none.dsdt(), b"COM1").is_none());
    assert!(device(none.dsdt(), b"PEVT").is_none());
}

#[test]
fn off_is_the_sleep_type_that_the_power_block_knows() {
    let memory = Memory::of(&platform());
    let dsdt = memory.dsdt();
    let at = position(dsdt, b"\\_S5_").unwrap();
    // Package of four: 5, 5, 0, 0.
    assert_eq!(dsdt[at + 5..], [0x12, 8, 4, 0x0a, 5, 0x0a, 5, 0, 0]);
}

#[test]
fn what_tables_cannot_say_is_refused() {
    let refused = |change: &dyn Fn(&mut Platform)| {
        let mut platform = platform();
        change(&mut platform);
        platform.build(BASE).unwrap_err().to_string()
    };
    let error = refused(&|p| p.apic_ids.clear());
    assert_eq!(error, "ACPI can describe 1 to 4096 vCPUs, not 0");
    assert!(refused(&|p| p.apic_ids = vec![0; 4097]).contains("4097"));
    assert!(refused(&|p| p.ecam = 1 << 32).contains("above 4 GiB"));
    assert!(refused(&|p| p.ecam = u64::MAX << 28).contains("above 4 GiB"));
    assert!(refused(&|p| p.ecam += 1).contains("multiple of 0x100000"));
    assert!(refused(&|p| (p.ecam, p.last_bus) = (0xe010_0000, 2)).contains("0x400000"));
    assert!(refused(&|p| p.power = 0xfffe).contains("power block"));
    let serial = SerialPort {
        port: 0xfff9,
        gsi: 4,
    };
    assert!(refused(&|p| p.serial = Some(serial)).contains("serial port"));
    for (kind, base, size) in [
        (WindowKind::Io, 0x1000, 0xf001),
        (WindowKind::Io, 0xc00, 0x1000),
        (WindowKind::Memory32, 0, 1 << 32),
        (WindowKind::Memory32, 0xc000_0000, 0),
        (WindowKind::Memory64, u64::MAX, 2),
        (WindowKind::Memory64, 0, u64::MAX),
    ] {
        let error = refused(&|p| {
            *match kind {
                WindowKind::Io => &mut p.windows.io,
                WindowKind::Memory32 => &mut p.windows.memory32,
                WindowKind::Memory64 => &mut p.windows.memory64,
            } = Some(Window { base, size });
        });
        assert!(
            error.starts_with(&format!("the {kind} cannot be")),
            "{error}"
        );
    }
    for (first, count) in [(15, 8), (16, 0), (u32::MAX, 1)] {
        let pins = Some(PinWiring { first, count });
        assert!(refused(&|p| p.pins = pins).contains("interrupt pins"));
    }
    assert!(platform().build(BASE + 8).is_err());
    assert!(platform().build(u64::MAX - 15).is_err());
}

proptest! {
    /// Any platform that is accepted comes out whole.
    #[test]
    fn whatever_is_built_is_sound(
        base in 0..u64::MAX / 16,
        cpus in 1usize..64,
        ecam in 0u64..16,
        last_bus: u8,
        power: u16,
        memory in proptest::option::of((any::<u64>(), any::<u64>())),
        narrow in proptest::option::of((any::<u32>(), any::<u32>())),
        io in proptest::option::of((any::<u16>(), any::<u16>())),
        pins in proptest::option::of((any::<u32>(), 0_u32..300)),
        serial in proptest::option::of((any::<u16>(), any::<u32>())),
        pvpanic: Option<u16>,
    ) {
        let platform = Platform {
            apic_ids: (0..cpus as u32).map(|id| id * 5).collect(),
            local_apic: 0xfee0_0000,
            io_apic: 0xfec0_0000,
            ecam: ecam << 28,
            last_bus,
            windows: Windows {
                memory64: memory.map(|(base, size)| Window { base, size }),
                memory32: narrow.map(|(base, size)| Window { base: base.into(), size: size.into() }),
                io: io.map(|(base, size)| Window { base: base.into(), size: size.into() }),
            },
            pins: pins.map(|(first, count)| PinWiring { first, count }),
            power,
            serial: serial.map(|(port, gsi)| SerialPort { port, gsi }),
            rtc: true,
            pvpanic,
        };
        let Ok(tables) = platform.build(base * 16) else {
            return Ok(());
        };
        let memory = Memory(tables);
        prop_assert_eq!(entries(memory.find(b"APIC")).len(), cpus + 1);
        let bridge = resources(device(memory.dsdt(), b"PCI0").unwrap());
        let windows = [platform.windows.io, platform.windows.memory32, platform.windows.memory64];
        let expected: Vec<_> = windows.iter().flatten().map(|w| (w.base, w.size)).collect();
        let found: Vec<_> = bridge[2..].iter().map(|resource| match resource {
            Resource::Range(_, first, last, size, _) if last - first == size - 1 => (*first, *size),
            other => panic!("{other:?}"),
        }).collect();
        prop_assert_eq!(found, expected);
    }
}
