use super::*;
use crate::fake::{FakeDevice, FakeMapper, FakeRouter, FakeSpace, Journal, Operation};
use devices::pci::{BarKind, ConfigSpace, Register};

const BAR: u64 = 0xc000_0000;
const MEMORY: u16 = 0x2;
const MASTER: u16 = 0x4;
/// The command register as written to the device, with its interrupt pin off.
const COMMAND_OFF: &str = "write 7 0x4 [0, 4]";
const COMMAND_MEMORY: &str = "write 7 0x4 [2, 4]";
const COMMAND_MASTER: &str = "write 7 0x4 [6, 4]";

struct Setup {
    journal: Journal,
    host: Arc<FakeDevice>,
    router: Arc<FakeRouter>,
    mapper: Arc<FakeMapper>,
    space: Arc<FakeSpace>,
    device: AssignedDevice,
}

fn assign(host: FakeDevice, journal: &Journal) -> Setup {
    assign_changed(host, AssignOptions::default(), journal, |_| {})
}

fn assign_as(host: FakeDevice, options: AssignOptions, journal: &Journal) -> Setup {
    assign_changed(host, options, journal, |_| {})
}

/// As [`assign`], with a router that is changed before.
fn assign_with(host: FakeDevice, journal: &Journal, change: impl FnOnce(&FakeRouter)) -> Setup {
    assign_changed(host, AssignOptions::default(), journal, change)
}

fn assign_changed(
    host: FakeDevice,
    options: AssignOptions,
    journal: &Journal,
    change: impl FnOnce(&FakeRouter),
) -> Setup {
    let host = Arc::new(host);
    let router = Arc::new(FakeRouter::new(journal));
    change(&router);
    let mapper = Arc::new(FakeMapper::new(journal));
    let space = Arc::new(FakeSpace::new(journal));
    let device = AssignedDevice::new(
        "0000:01:00.0".parse().unwrap(),
        Arc::clone(&host) as Arc<dyn DeviceBackend>,
        options,
        Arc::clone(&router) as Arc<dyn InterruptRouter>,
        Arc::clone(&mapper) as Arc<dyn MemoryMapper>,
        Arc::clone(&space) as Arc<dyn AddressSpace>,
    );
    Setup {
        journal: journal.clone(),
        host,
        router,
        mapper,
        space,
        device: device.unwrap(),
    }
}

/// An NVMe-like device with four vectors, a table and pending bits in one page
/// of its BAR 0, ports in BAR 2, power management and a function level reset.
fn plain() -> Setup {
    let journal = Journal::default();
    let values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x1234_8086),
        Register::constant(0x06, 2, 0x0010),
        Register::constant(0x34, 1, 0x40),
        Register::constant(0x40, 4, 0x0003_5011),
        Register::constant(0x44, 4, 0x2000),
        Register::constant(0x48, 4, 0x2800),
        Register::constant(0x50, 4, 0x0003_6001),
        Register::constant(0x60, 4, 0x0002_0010),
        Register::constant(0x64, 4, 0x1000_0000),
    ]);
    let kind = BarKind::Memory64 {
        prefetchable: false,
    };
    let bars = [(0, kind, 0x4000), (2, BarKind::Io, 0x20)].map(|(index, kind, size)| BarInfo {
        index: BarIndex::new(index).unwrap(),
        kind,
        size,
    });
    let host = FakeDevice::new(&values, 4096, &bars, &journal).unwrap();
    let setup = assign(host, &journal);
    journal.take();
    setup
}

/// As [`plain`], with BAR 0 in place and memory decoded.
fn plain_decoded() -> Setup {
    let mut setup = plain();
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    setup.settle();
    setup.journal.take();
    setup
}

impl Setup {
    fn write(&mut self, offset: u16, data: &[u8]) -> Effects {
        self.device.config_write(offset, data)
    }

    fn command(&mut self, value: u16) -> Effects {
        self.write(4, &value.to_le_bytes())
    }

    fn place(&mut self, address: u64) {
        let bytes = address.to_le_bytes();
        let _ = self.write(0x10, &bytes[..4]);
        let _ = self.write(0x14, &bytes[4..]);
    }

    /// On a bus of its own, with nothing else there.
    fn settle_alone(&mut self) {
        let reach = Reach {
            answering: self.device.decoded(),
            bus_master: true,
        };
        self.device.settle(&reach).unwrap();
    }

    fn settle(&mut self) -> Vec<String> {
        self.journal.take();
        self.settle_alone();
        self.journal.take()
    }

    fn bar(&self) -> BarIndex {
        BarIndex::new(0).unwrap()
    }

    fn read(&mut self, offset: u64, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        self.device.bar_read(self.bar(), offset, &mut data);
        data
    }
}

fn effects(decoding: bool, bus_master: bool) -> Effects {
    Effects {
        decoding,
        bus_master,
    }
}

#[test]
fn a_new_device_is_silent() {
    let journal = Journal::default();
    let setup = assign(FakeDevice::nvme(&journal).unwrap(), &journal);
    assert_eq!(
        setup.host.config(4),
        0x0400 | 0x0100,
        "pin off, SERR as the host has it"
    );
    let calls = journal.take();
    assert_eq!(calls[0], "read 7 0x0 4096");
    let rest = ["line A new", "mmap 0 0x0 0x2000", "write 7 0x4 [0, 5]"];
    assert_eq!(calls[1..], rest, "nothing is armed");
    assert_eq!(setup.device.bars()[0].size, 0x4000);
}

#[test]
fn memory_is_on_in_the_device_before_it_is_mapped() {
    let mut setup = plain();
    setup.place(BAR);
    assert_eq!(setup.settle(), [""; 0], "nothing is decoded");
    assert_eq!(setup.command(MEMORY), effects(true, false));
    let expected = [
        COMMAND_MEMORY,
        "guest map 0xc0000000 0x2000",
        "guest map 0xc0003000 0x1000",
        "dma map 0xc0000000 0x2000",
        "dma map 0xc0003000 0x1000",
    ];
    assert_eq!(setup.settle(), expected, "the table's page stays out");
    assert_eq!(setup.settle(), [""; 0], "idempotent");
}

#[test]
fn it_is_unmapped_before_memory_goes_off_in_the_device() {
    let mut setup = plain_decoded();
    assert_eq!(setup.command(0), effects(true, false));
    assert_eq!(setup.device.decoded(), []);
    let expected = [
        "dma unmap 0xc0000000",
        "dma unmap 0xc0003000",
        "guest unmap 0xc0000000",
        "guest unmap 0xc0003000",
        COMMAND_OFF,
    ];
    assert_eq!(setup.settle(), expected);
}

#[test]
fn bus_mastering_is_handed_on_in_settle_and_taken_at_once() {
    let mut setup = plain_decoded();
    assert_eq!(setup.command(MEMORY | MASTER), effects(false, true));
    assert_eq!(
        setup.host.config(4) & MASTER,
        0,
        "not before memory is mapped for DMA"
    );
    assert_eq!(setup.settle(), [COMMAND_MASTER]);
    assert_eq!(setup.command(MEMORY), Effects::NONE);
    assert_eq!(setup.journal.take(), [COMMAND_MEMORY]);
    assert_eq!(setup.settle(), [""; 0]);
}

#[test]
fn sizing_a_bar_remaps_nothing() {
    let mut setup = plain_decoded();
    // Linux turns decoding off around it; nobody settles in between.
    let _ = setup.command(0);
    assert_eq!(setup.write(0x10, &[0xff; 4]), Effects::NONE);
    let mut size = [0; 4];
    setup.device.config_read(0x10, &mut size);
    assert_eq!(u32::from_le_bytes(size), 0xffff_c004);
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    assert_eq!(setup.settle(), [""; 0]);
}

#[test]
fn a_bar_moves() {
    let mut setup = plain_decoded();
    let effect = setup.write(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(effect, effects(true, false));
    let calls = setup.settle();
    assert_eq!(calls.len(), 8);
    assert_eq!(calls[0], "dma unmap 0xc0000000");
    assert_eq!(calls[4], "guest map 0xd0000000 0x2000");
    assert_eq!(setup.device.decoded()[0].address, 0xd000_0000);
}

#[test]
fn ports_are_decoded_and_trapped() {
    let mut setup = plain();
    let _ = setup.write(0x18, &0xc041_u32.to_le_bytes());
    assert_eq!(setup.command(1), effects(true, false));
    let decoded = setup.device.decoded();
    assert_eq!((decoded.len(), decoded[0].address), (1, 0xc040));
    assert_eq!(setup.settle(), ["write 7 0x4 [1, 4]"]);
    let ports = BarIndex::new(2).unwrap();
    setup.device.bar_write(ports, 4, &[1, 2, 3, 4]);
    let mut data = [0; 2];
    setup.device.bar_read(ports, 6, &mut data);
    assert_eq!(data, [3, 4]);
}

#[test]
fn a_place_that_is_taken_is_trapped_and_not_fatal() {
    let mut setup = plain();
    setup.mapper.refuse(true);
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    assert_eq!(
        setup.settle(),
        [COMMAND_MEMORY, "guest map 0xc0000000 0x2000"]
    );
    assert_eq!(setup.settle(), [""; 0], "not tried again at the same place");
    setup.mapper.refuse(false);
    setup.place(0xd000_0000);
    assert_eq!(setup.settle().len(), 4, "but at another");
}

#[test]
fn peer_to_peer_is_best_effort() {
    let mut setup = plain();
    setup.space.refuse(Some(libc::EFAULT));
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    let calls = setup.settle();
    assert_eq!(calls[1], "guest map 0xc0000000 0x2000");
    let _ = setup.command(0);
    assert!(!setup.settle().iter().any(|call| call.starts_with("dma")));
    // Above the 39 bits of the IOMMU it is not even tried.
    setup.space.refuse(None);
    setup.place(1 << 40);
    let _ = setup.command(MEMORY);
    let calls = setup.settle();
    assert_eq!(calls.len(), 3, "{calls:?}");
}

#[test]
fn in_d3hot_only_config_space_answers() {
    let mut setup = plain_decoded();
    assert_eq!(setup.write(0x54, &[3, 0]), effects(true, false));
    let calls = setup.settle();
    assert_eq!(
        calls[2..],
        [
            "guest unmap 0xc0000000",
            "guest unmap 0xc0003000",
            "write 7 0x54 [3, 0]",
            "low_power enter"
        ]
    );
    assert_eq!(setup.write(0x54, &[0, 0]), effects(true, false));
    let calls = setup.settle();
    let expected = ["low_power leave", COMMAND_OFF, "write 7 0x54 [0, 0]"];
    assert_eq!(calls[..3], expected);
    let last = calls.last().map(String::as_str);
    assert_eq!(
        last,
        Some(COMMAND_OFF),
        "the way back costs it its settings"
    );
    assert_eq!(setup.device.decoded(), []);
    // D1 and D2 are not among its states.
    assert_eq!(setup.write(0x54, &[1, 0]), Effects::NONE);
    let mut state = [0xff; 2];
    setup.device.config_read(0x54, &mut state);
    assert_eq!(state, [0, 0]);
}

#[test]
fn a_function_level_reset() {
    let mut setup = plain_decoded();
    let _ = setup.command(MEMORY | MASTER);
    setup.settle();
    let bar = setup.bar();
    setup.device.bar_write(bar, 0x10, &[0xaa]);
    let _ = setup.write(0x42, &[0, 0x80]);
    setup.journal.take();
    assert_eq!(setup.write(0x68, &[0, 0x80]), effects(true, false));
    assert_eq!(
        setup.journal.take_only(&["disable_irqs", "reset"]),
        ["disable_irqs Msix"]
    );
    let calls = setup.settle();
    assert_eq!(
        calls[4..6],
        [COMMAND_OFF, "reset"],
        "unmapped and silent first"
    );
    let registers: Vec<_> = calls[6..].iter().map(|call| &call[..12]).collect();
    let expected = [
        "read 7 0x69 ",
        "write 7 0x69",
        "read 7 0x88 ",
        "write 7 0x88",
    ];
    assert_eq!(registers, expected, "the control registers after it");
    let mut registers = [0xff; 4];
    for (offset, value) in [
        (0x04, [0, 0, 0x10, 0]),
        (0x10, [4, 0, 0, 0]),
        (0x40, [0x11, 0x50, 3, 0]),
    ] {
        setup.device.config_read(offset, &mut registers);
        assert_eq!(registers, value, "{offset:#x}");
    }
    assert_eq!(setup.host.memory(bar, 0x10), 0);
    assert_eq!(setup.settle(), [""; 0], "once");
}

#[test]
fn a_reset_that_fails_is_not_fatal() {
    let mut setup = plain_decoded();
    setup.host.refuse(Operation::Reset, libc::EAGAIN);
    let _ = setup.write(0x68, &[0, 0x80, 0, 0]);
    setup.settle();
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    assert!(setup.settle().len() > 1);
}

#[test]
fn a_device_without_reset_takes_no_order_to() {
    let journal = Journal::default();
    let mut setup = assign(
        FakeDevice::nvme(&journal).unwrap().without_reset(),
        &journal,
    );
    let _ = setup.write(0x88, &[0, 0x80]);
    assert!(setup.settle().is_empty());
}

#[path = "access_test.rs"]
mod access;

#[path = "reset_test.rs"]
mod resets;

#[path = "rom_test.rs"]
mod rom;

#[path = "fuzz_test.rs"]
mod fuzz;

#[path = "interrupts_test.rs"]
mod interrupts;
#[path = "surrender_test.rs"]
mod surrender;

#[path = "posted_test.rs"]
mod posted;
