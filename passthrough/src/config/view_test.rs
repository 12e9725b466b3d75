use super::*;
use crate::assigned::Placement;
use crate::config::{COMMAND, ConfigError, Deliverable, Subject, discover_bars};
use crate::fake::{FakeDevice, Journal, Operation};
use devices::pci::{BarIndex, BarInfo, BarKind, capabilities, extended_capabilities};
use proptest::prelude::*;

struct Setup {
    journal: Journal,
    device: FakeDevice,
    view: ConfigView,
}

const ALL_KINDS: Deliverable = Deliverable {
    pin: true,
    msi: true,
    msix: true,
};

fn view(
    device: &FakeDevice,
    taken: &ConfigSpace,
    bars: &[BarInfo],
    placement: Placement,
    deliverable: Deliverable,
) -> Result<ConfigView, ConfigError> {
    let book = RuleBook::new(&Subject {
        snapshot: taken,
        bars,
        placement,
        can_reset: device.can_reset(),
        deliverable,
    })?;
    Ok(ConfigView::new(taken, book))
}

fn show(device: FakeDevice, journal: &Journal) -> Result<Setup, ConfigError> {
    show_at(device, journal, Placement::RootBus)
}

fn show_at(
    device: FakeDevice,
    journal: &Journal,
    placement: Placement,
) -> Result<Setup, ConfigError> {
    let taken = snapshot(&device).unwrap();
    let bars = discover_bars(&device, &taken)?;
    let view = view(&device, &taken, &bars, placement, ALL_KINDS)?;
    journal.take();
    let journal = journal.clone();
    Ok(Setup {
        journal,
        device,
        view,
    })
}

fn nvme() -> Setup {
    let journal = Journal::default();
    show(FakeDevice::nvme(&journal).unwrap(), &journal).unwrap()
}

/// An endpoint with these registers, and a BAR 0 for its MSI-X.
fn device(registers: &[(u16, u8, u32)]) -> Result<Setup, ConfigError> {
    let mut values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x1234_8086),
        Register::constant(0x06, 2, 0x0010),
    ]);
    for &(offset, size, value) in registers {
        values.define(Register::constant(offset, size, value));
    }
    let bar = BarInfo {
        index: BarIndex::new(0).unwrap(),
        kind: BarKind::Memory32 {
            prefetchable: false,
        },
        size: 0x4000,
    };
    let journal = Journal::default();
    let device = FakeDevice::new(&values, 4096, &[bar], &journal).unwrap();
    show(device, &journal)
}

impl Setup {
    fn u32(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.view.read(&self.device, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn u16(&mut self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.view.read(&self.device, offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        self.view.write(&self.device, offset, data);
    }

    fn list(&mut self) -> Vec<(u8, u16)> {
        let read = |at, data: &mut [u8]| self.view.read(&self.device, at, data);
        capabilities(read).map(|c| (c.id, c.offset)).collect()
    }

    fn extended_list(&mut self) -> Vec<(u16, u16)> {
        let read = |at, data: &mut [u8]| self.view.read(&self.device, at, data);
        extended_capabilities(read)
            .map(|c| (c.id, c.offset))
            .collect()
    }
}

#[test]
fn the_header_of_an_nvme() {
    let mut setup = nvme();
    assert_eq!(setup.u32(0x00), 0x0010_1b36);
    assert_eq!(
        setup.u16(COMMAND),
        0,
        "the guest starts with everything off"
    );
    assert_eq!(setup.u16(0x06), 0x0010);
    assert_eq!(setup.u32(0x08), 0x0108_0202);
    assert_eq!(setup.u32(0x0c) >> 16, 0, "type 0, one function");
    assert_eq!(setup.u32(0x10), 4, "64 bits, no address");
    assert_eq!(setup.u32(0x2c), 0x1100_1af4);
    assert_eq!(setup.u32(0x30), 0, "no ROM");
    assert_eq!(setup.u16(0x3c), 0x100, "INTA#, and no notes yet");
    assert_eq!(setup.journal.take(), [""; 0], "nothing is the device's");
}

#[test]
fn latched_errors_and_other_functions_are_not_the_guests() {
    let mut setup = device(&[(0x06, 2, 0xf938), (0x0c, 4, 0x8080_4010)]).unwrap();
    assert_eq!(setup.u16(0x06), 0x0020, "66 MHz; no list, as there is none");
    assert_eq!(setup.u32(0x0c), 0x0000_4010);
}

#[test]
fn the_capabilities_of_an_nvme() {
    let mut setup = nvme();
    assert_eq!(
        setup.list(),
        [(0x11, 0x40), (0x05, 0x50), (0x01, 0x60), (0x10, 0x80)]
    );
    let extended = [(0, 0x100), (1, 0x140), (3, 0x180)];
    assert_eq!(
        setup.extended_list(),
        extended,
        "SR-IOV leaves an empty one"
    );
    assert_eq!(setup.u32(0x104), 0);
    assert_eq!(setup.u32(0x184), 0x5566_7788);
    assert_eq!(setup.view.book.msix.unwrap().vectors, 65);
}

#[test]
fn what_is_not_delivered_is_not_offered() {
    let journal = Journal::default();
    let device = FakeDevice::nvme(&journal).unwrap();
    let taken = snapshot(&device).unwrap();
    let bars = discover_bars(&device, &taken).unwrap();
    let nothing = Deliverable::default();
    let mut view = view(&device, &taken, &bars, Placement::RootBus, nothing).unwrap();
    assert_eq!((view.book.msi, view.book.msix.is_none()), (None, true));
    assert_eq!(view.space().u8(0x3d), 0, "no pin");
    let list = capabilities(|at, data: &mut [u8]| view.read(&device, at, data));
    let ids: Vec<_> = list.map(|capability| capability.id).collect();
    assert_eq!(ids, [0x01, 0x10]);
    assert_eq!(view.space().u32(0x50), 0, "nothing is left of MSI");
}

#[test]
fn what_the_guest_writes_about_msi_stays_here() {
    let mut setup = nvme();
    setup.write(0x52, &[0xff; 2]);
    setup.write(0x54, &[0xff; 8]);
    setup.write(0x5c, &[0xff; 4]);
    assert_eq!(setup.u32(0x50), 0x00f1_6005, "64 bits, one vector");
    assert_eq!(setup.u32(0x54), 0xffff_fffc);
    assert_eq!((setup.u32(0x58), setup.u32(0x5c)), (u32::MAX, 0xffff));
    assert!(
        setup
            .view
            .book
            .msi
            .unwrap()
            .state(setup.view.space())
            .is_enabled()
    );
    assert!(setup.journal.take().is_empty(), "the device knows nothing");
    setup.view.reset(Scope::Function);
    assert_eq!((setup.u32(0x50), setup.u32(0x54)), (0x0080_6005, 0));
}

#[test]
fn an_endpoint_becomes_integrated_and_loses_its_link() {
    let mut setup = nvme();
    assert_eq!(setup.u16(0x82), 0x0092);
    assert_eq!(setup.u32(0x8c) | setup.u32(0x90) | setup.u32(0xac), 0);
    assert_eq!(setup.u32(0xa4) & 1 << 11, 0, "no latency tolerance");
    assert_eq!(setup.u32(0x84), 0x1000_8fc0, "with reset");
    setup.write(0x88, &[0xff, 0x5f]);
    assert_eq!(
        (setup.device.config(0x88), setup.u16(0x88)),
        (0x5c10, 0x5c1f),
        "the error enables are the host's, the payload is what the path carries"
    );
}

#[test]
fn without_reset_none_is_offered() {
    let journal = Journal::default();
    let device = FakeDevice::nvme(&journal).unwrap().without_reset();
    let mut setup = show(device, &journal).unwrap();
    assert_eq!(setup.u32(0x84), 0x0000_8fc0);
    assert!(setup.view.book.resets.is_empty());
}

#[test]
fn kinds_of_express_functions() {
    let express = |flags: u32| device(&[(0x34, 1, 0x40), (0x40, 4, flags << 16 | 0x10)]);
    assert_eq!(
        express(0x0090).unwrap().u16(0x42),
        0x0091,
        "version 0 becomes 1"
    );
    let mut legacy = express(0x0012).unwrap();
    assert_eq!((legacy.list(), legacy.u16(0x42)), (vec![], 0));
    assert_eq!(legacy.u16(0x06) & 0x10, 0);
    let port = express(0x0042).err();
    assert_eq!(port, Some(ConfigError::PortType(4)));
}

#[test]
fn conventional_pci_has_no_extended_space() {
    let mut setup = device(&[(0x100, 4, 0x0001_0003), (0x104, 4, 7)]).unwrap();
    assert_eq!((setup.u32(0x100), setup.u32(0x104)), (0, 0));
    assert!(setup.journal.take().is_empty());
}

#[test]
fn vendor_registers_and_gaps_are_the_devices() {
    let mut setup = device(&[
        (0x34, 1, 0x50),
        (0x50, 4, 0xab0c_0009),
        (0x54, 4, 0x1122_3344),
        (0x60, 4, 0x55),
    ])
    .unwrap();
    assert_eq!(setup.list(), [(0x09, 0x50)]);
    setup.write(0x50, &[0xff; 8]);
    assert_eq!(setup.u32(0x50), 0xff0c_0009, "the length stays");
    assert_eq!(setup.u32(0x54), u32::MAX);
    setup.write(0x60, &[0xaa]);
    assert_eq!(setup.u32(0x60), 0xaa);
    setup.write(0x100, &[0xaa]);
    assert_eq!(setup.u32(0x100), 0);
}

#[test]
fn a_read_takes_at_most_one_call() {
    let mut setup = nvme();
    for offset in (0..4096).step_by(4) {
        setup.u32(offset);
        assert!(setup.journal.take().len() <= 1);
    }
    let mut data = [0; 8];
    setup.view.read(&setup.device, 0x84, &mut data);
    assert_eq!(
        setup.journal.take(),
        ["read 7 0x8a 1"],
        "only what is the device's"
    );
}

#[test]
fn a_device_that_does_not_answer_reads_as_ones() {
    let mut setup = nvme();
    setup.device.refuse(Operation::Read, libc::EIO);
    assert_eq!(setup.u32(0xf0), u32::MAX);
    setup.device.refuse(Operation::Read, libc::EIO);
    assert_eq!(setup.u32(0x88), 0x003f_2810, "constants don't depend on it");
}

#[test]
fn devices_that_no_guest_can_have() {
    assert_eq!(
        device(&[(0, 4, u32::MAX)]).err(),
        Some(ConfigError::NoAnswer)
    );
    assert_eq!(
        device(&[(0x0e, 1, 0x81)]).err(),
        Some(ConfigError::HeaderType(1))
    );
    let table = device(&[(0x34, 1, 0x40), (0x40, 4, 0x11), (0x44, 4, 0x4000)]);
    let offset = 0x4000;
    let expected = ConfigError::MsixTable {
        vectors: 1,
        bar: 0,
        offset,
    };
    assert_eq!(table.err(), Some(expected));
}

#[test]
fn a_second_capability_of_a_kind_is_hidden() {
    let mut setup = device(&[(0x34, 1, 0x40), (0x40, 4, 0x5001), (0x50, 4, 0x0001)]).unwrap();
    assert_eq!(setup.list(), [(0x01, 0x40)]);
}

#[test]
fn a_capability_never_reaches_into_the_next() {
    // Vendor-specific, claiming 255 bytes, with power management inside; its
    // turn in the list comes last.
    let registers = [
        (0x34, 1, 0x50),
        (0x40, 4, 0x00ff_0009),
        (0x50, 4, 0x0003_4001),
    ];
    let mut setup = device(&registers).unwrap();
    setup.write(0x52, &[0xff; 2]);
    assert_eq!(setup.u16(0x52), 3);
    assert!(setup.journal.take_only(&["write"]).is_empty());
}

#[test]
fn reset_restores_what_is_the_guests() {
    let mut setup = nvme();
    setup.write(0x04, &[0xff; 2]);
    setup.write(0x10, &[0xff; 8]);
    setup.write(0x3c, &[11]);
    assert_eq!(setup.u16(COMMAND), 0x0546);
    assert_eq!(setup.u32(0x10), 0xffff_c004);
    setup.view.reset(Scope::Function);
    assert_eq!(
        (setup.u16(COMMAND), setup.u32(0x10), setup.u16(0x3c)),
        (0, 4, 0x100)
    );
}

proptest! {
    #[test]
    fn read_only_bytes_never_change(
        accesses in proptest::collection::vec(
            (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..24,
        ),
    ) {
        let mut setup = nvme();
        let bytes = |setup: &mut Setup| {
            let mut bytes = vec![0; 4096];
            setup.view.read(&setup.device, 0, &mut bytes);
            bytes
        };
        let before = bytes(&mut setup);
        for (offset, data) in accesses {
            let mut read = vec![0; data.len()];
            setup.view.read(&setup.device, offset, &mut read);
            setup.view.write(&setup.device, offset, &data);
            setup.view.write(&setup.device, offset % 0x200, &data);
        }
        for (at, (old, new)) in before.iter().zip(bytes(&mut setup)).enumerate() {
            let guest = setup.view.space.guest_bits(at as u16) | setup.view.writable[at];
            prop_assert_eq!((old ^ new) & !guest, 0, "{:#x}", at);
        }
    }

    #[test]
    fn any_device_has_a_view_or_an_error(
        seed in proptest::collection::vec((0_u16..0x140, any::<u32>()), 0..80),
        offset: u16,
    ) {
        let registers: Vec<_> = seed.iter().map(|&(at, value)| (at & !3, 4, value)).collect();
        if let Ok(mut setup) = device(&registers) {
            setup.u32(offset);
            for (id, at) in setup.list() {
                let known = [1, 3, 5, 9, 0x10, 0x11, 0x12, 0x13];
                prop_assert!(known.contains(&id), "{:#x}", at);
            }
            for (id, _) in setup.extended_list() {
                prop_assert!([0, 1, 2, 3, 9, 0x0b, 0x15, 0x18, 0x23].contains(&id));
            }
        }
    }
}
