//! What a guest sees of a device that has a bit of everything.

use super::subject::LARGE;
use super::*;
use crate::assigned::Placement;
use crate::config::sample::{EVERYTHING, bars, config};
use crate::fake::{FakeDevice, Journal, Operation};
use devices::pci::{ConfigSpace, capabilities, extended_capabilities};
use proptest::prelude::*;

const ALL_KINDS: Deliverable = Deliverable {
    pin: true,
    msi: true,
    msix: true,
};

struct Setup {
    journal: Journal,
    device: FakeDevice,
    view: ConfigView,
    snapshot: ConfigSpace,
}

fn show(values: &ConfigSpace, placement: Placement) -> Result<Setup, ConfigError> {
    let journal = Journal::default();
    let device = FakeDevice::new(values, 4096, &bars(), &journal).unwrap();
    let snapshot = snapshot(&device).unwrap();
    let bars = discover_bars(&device, &snapshot)?;
    let book = RuleBook::new(&Subject {
        snapshot: &snapshot,
        bars: &bars,
        placement,
        can_reset: true,
        deliverable: ALL_KINDS,
    })?;
    let view = ConfigView::new(&snapshot, book);
    journal.take();
    Ok(Setup {
        journal,
        device,
        view,
        snapshot,
    })
}

fn everything(placement: Placement) -> Setup {
    show(&config(EVERYTHING), placement).unwrap()
}

impl Setup {
    fn u32(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.view.read(&self.device, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u16, value: u32) {
        self.view.write(&self.device, offset, &value.to_le_bytes());
    }

    fn hidden(&self, offset: u16) -> Option<&'static str> {
        let mut found = self.view.book.found.iter();
        found.find(|one| one.place.start == offset)?.hidden
    }
}

#[test]
fn each_kind_is_shown_or_hidden_for_its_reason() {
    let mut setup = everything(Placement::BehindPort);
    let standard: Vec<_> = {
        let read = |at, data: &mut [u8]| setup.view.read(&setup.device, at, data);
        capabilities(read).map(|one| one.id).collect()
    };
    assert_eq!(standard, [0x01, 0x03, 0x09, 0x13, 0x05, 0x10, 0x11, 0x12]);
    let extended: Vec<_> = {
        let read = |at, data: &mut [u8]| setup.view.read(&setup.device, at, data);
        extended_capabilities(read).map(|one| one.id).collect()
    };
    assert_eq!(extended, [0x01, 0x03, 0x18, 0x02, 0x15, 0x0b, 0x23]);
    for (offset, word) in [
        (0xcc, "bus"),
        (0xd4, "addresses of the host"),
        (0x140, "virtual functions"),
        (0x200, "CXL"),
        (0x220, "IOMMU"),
        (0x230, "process address spaces"),
        (0x240, "ARI"),
        (0x250, "nobody knows"),
    ] {
        let why = setup.hidden(offset).unwrap();
        assert!(why.contains(word), "{offset:#x}: {why}");
        let size = if offset < 0x100 { 2 } else { 4 };
        for at in offset + size..offset + 8 {
            assert_eq!(setup.view.space().u8(at), 0, "{at:#x}");
        }
    }
}

#[test]
fn behind_a_port_the_link_stays() {
    let mut setup = everything(Placement::BehindPort);
    assert_eq!(setup.u32(0x80) >> 16, 0x0002, "an endpoint");
    assert_eq!(setup.u32(0x8c), 0x0043_7043, "speed and width, no sleep");
    assert_eq!(
        setup.u32(0x90),
        0x1043_0000,
        "the link's state; none of its control"
    );
    setup.write(0x90, u32::MAX);
    assert_eq!(setup.u32(0x90), 0x1043_00c8);
    assert_eq!(
        setup.device.config(0x90),
        0x0142,
        "the device's own is not touched"
    );
    assert_eq!(setup.u32(0xac), 0x0000_000e);
    assert_eq!(setup.u32(0xb0), 0x0001_0003);
    let mut integrated = everything(Placement::RootBus);
    assert_eq!(integrated.u32(0x80) >> 16, 0x0092);
    assert_eq!((integrated.u32(0x8c), integrated.u32(0x90)), (0, 0));
}

#[test]
fn kinds_of_functions_and_their_places() {
    let express = |flags: u32, placement| {
        let mut values = config(EVERYTHING);
        values.set(0x82, &flags.to_le_bytes()[..2]);
        show(&values, placement).map(|mut setup| setup.u32(0x80) >> 16)
    };
    use Placement::{BehindPort, RootBus};
    assert_eq!(express(0x0012, BehindPort).ok(), Some(0x0012), "legacy");
    assert_eq!(express(0x0012, RootBus).ok(), Some(0), "hidden");
    assert_eq!(express(0x0000, BehindPort).ok(), Some(0x0001), "version 0");
    assert_eq!(express(0x0092, RootBus).ok(), Some(0x0092));
    assert_eq!(express(0x0092, BehindPort).err(), Some(ConfigError::NoLink));
    for port in [4, 5, 6, 7, 8, 0xa] {
        let error = express(port << 4 | 2, BehindPort).err();
        assert_eq!(error, Some(ConfigError::PortType(port as u8)));
    }
}

#[test]
fn where_a_device_belongs() {
    let natural_with = |flags: u32, bar: u8, size: u64| {
        let mut values = config(EVERYTHING);
        values.set(0x82, &flags.to_le_bytes()[..2]);
        values.set(0x10, &[bar]);
        let size = |index: BarIndex| if index.get() == 0 { size } else { 0 };
        Placement::natural_by(|at, data| values.read(at, data), size)
    };
    let natural = |flags| natural_with(flags, 4, 0x1000);
    assert_eq!(natural(0x0002), Placement::BehindPort);
    assert_eq!(natural(0x0012), Placement::BehindPort);
    assert_eq!(natural(0x0092), Placement::RootBus);
    assert_eq!(
        Placement::natural_by(|_, data| data.fill(0), |_| 0),
        Placement::RootBus
    );
    let large = |bar| natural_with(0x0002, bar, LARGE);
    assert_eq!(large(4), Placement::RootBus, "64 bits");
    assert_eq!(large(0xc), Placement::BehindPort, "prefetchable");
    assert_eq!(large(0), Placement::BehindPort, "32 bits");
    assert_eq!(natural_with(0x0002, 4, LARGE - 1), Placement::BehindPort);
    let setup = everything(Placement::BehindPort);
    assert_eq!(
        Placement::natural(&setup.device).unwrap(),
        Placement::BehindPort
    );
    setup.device.refuse(Operation::Read, libc::EIO);
    assert!(Placement::natural(&setup.device).is_err());
}

#[test]
fn payload_and_read_request_stay_within_what_the_path_carries() {
    let mut setup = everything(Placement::BehindPort);
    assert_eq!(setup.u32(0x84) & 7, 1, "256 bytes, though it could do 512");
    assert_eq!(setup.u32(0x88) & 0x70e0, 0x2020);
    setup.write(0x88, 0x2040);
    assert_eq!(setup.u32(0x88) & 0x70e0, 0x2020, "512 bytes of payload");
    setup.write(0x88, 0x6000);
    assert_eq!(setup.u32(0x88) & 0x70e0, 0x2000, "8 KiB are reserved");
    setup.write(0x88, 0x5000);
    assert_eq!(setup.u32(0x88) & 0x70e0, 0x5000);
    assert_eq!(
        setup.device.config(0x88) & 0x70e0,
        0x5020,
        "the payload is the host's"
    );
}

#[test]
fn what_the_host_has_left_off_stays_off() {
    let control = |initial: u16| {
        let mut values = config(EVERYTHING);
        values.set(0x84, &[0xfa]);
        values.set(0x88, &initial.to_le_bytes());
        let mut setup = show(&values, Placement::BehindPort).unwrap();
        setup.write(0x88, 0x0110);
        let host = setup.device.config(0x88) & 0x0110;
        (setup.u32(0x84) & 0x20, setup.u32(0x88) & 0x0110, host)
    };
    assert_eq!(control(0x2930), (0x20, 0x0110, 0x0110));
    assert_eq!(control(0x2830), (0, 0x0010, 0x0010));
    assert_eq!(control(0x2820), (0, 0, 0));
}

#[test]
fn a_reset_is_never_ordered_by_accident() {
    let mut values = config(EVERYTHING);
    // A broken device: the order reads as a one.
    values.set(0x89, &[0xa8]);
    let mut setup = show(&values, Placement::BehindPort).unwrap();
    setup.view.write(&setup.device, 0x88, &[0x10, 0x28]);
    let writes = setup.journal.take_only(&["write"]);
    assert_eq!(writes, ["write 7 0x88 [3f, 28]"]);
    assert_eq!(setup.u32(0x88) & 0x8000, 0);
}

#[test]
fn a_one_clears_an_error_in_the_guests_view_only() {
    let mut setup = everything(Placement::BehindPort);
    assert_eq!(setup.u32(0x88) >> 16, 0x003f);
    setup.write(0x88, 0x0005_0000);
    assert_eq!(setup.u32(0x88) >> 16, 0x003a);
    assert_eq!(setup.device.config(0x8a), 0x003f, "the host handles it");
    // The host has: the next one is news.
    setup.device.set_config(0x8a, &[0]);
    assert_eq!(setup.u32(0x88) >> 16, 0);
    setup.device.set_config(0x8a, &[1]);
    assert_eq!(setup.u32(0x88) >> 16, 1);
    // What is not there yet can't be cleared ahead of time.
    setup.write(0x104, u32::MAX);
    setup.device.set_config(0x104, &[0x10]);
    assert_eq!(setup.u32(0x104), 0x10);
    setup.write(0x108, 0);
    assert_eq!(setup.device.config(0x10a), 0x0040, "the mask is the host's");
}

#[test]
fn a_resizable_bar_has_one_size() {
    let mut setup = everything(Placement::BehindPort);
    assert_eq!((setup.u32(0x1c4), setup.u32(0x1c8)), (0x10, 0x20));
    setup.write(0x1c8, 0x0000_0120);
    assert_eq!(setup.u32(0x1c8), 0x20);
    assert_eq!(setup.device.config(0x1c8), 0x20);
    for (control, word) in [
        (0x0000_0120, "does not tell"),
        (0x3000_3f20, "expressed"),
        (0x26, "does not tell"),
    ] {
        let mut values = config(EVERYTHING);
        values.set(0x1c8, &u32::to_le_bytes(control));
        let setup = show(&values, Placement::BehindPort).unwrap();
        assert!(setup.hidden(0x1c0).unwrap().contains(word), "{control:#x}");
    }
}

#[test]
fn channels_are_to_look_at() {
    let mut setup = everything(Placement::BehindPort);
    assert_eq!(setup.u32(0x1a0), 0, "the arbitration is the host's");
    setup.write(0x1ac, 0);
    assert_eq!(setup.u32(0x1ac), 0x8000_00ff);
}

#[test]
fn product_data_is_reached_by_address_flag_and_data() {
    let mut setup = everything(Placement::BehindPort);
    setup.write(0x4c, 0x1234_5678);
    setup
        .view
        .write(&setup.device, 0x4a, &0x8004_u16.to_le_bytes());
    assert_eq!(setup.u32(0x48) >> 16, 0x0004, "written");
    setup
        .view
        .write(&setup.device, 0x4a, &0x0000_u16.to_le_bytes());
    assert_eq!((setup.u32(0x48) >> 16, setup.u32(0x4c)), (0x8000, 0));
    setup.write(0x48, 0x0004_ffff);
    assert_eq!(
        (setup.u32(0x48), setup.u32(0x4c)),
        (0x8004_5003, 0x1234_5678)
    );
}

#[test]
fn a_capability_that_is_cut_short_is_hidden() {
    let mut values = config(EVERYTHING);
    // Vital product data in the middle of power management.
    values.set(0x41, &[0x44]);
    values.set(0x44, &[0x03, 0x50]);
    let setup = show(&values, Placement::BehindPort).unwrap();
    assert!(setup.hidden(0x40).unwrap().contains("next one"));
    assert_eq!((setup.hidden(0x44), setup.view.book.power), (None, None));
    let mut values = config(EVERYTHING);
    values.set(0x81, &[0xfc]);
    values.set(0xfc, &[0x13, 0, 6, 3]);
    values.set(0x49, &[0x68]);
    let setup = show(&values, Placement::BehindPort).unwrap();
    assert!(setup.hidden(0xfc).unwrap().contains("past the end"));
    assert_eq!(setup.view.book.resets.len(), 1);
}

/// Config spaces that begin as [`EVERYTHING`] and are broken in a few places.
fn broken() -> impl Strategy<Value = ConfigSpace> {
    let pointers = prop_oneof![
        Just(0x34_u16),
        (0x40_u16..0x100).prop_map(|at| at & !3 | 1),
        (0x100_u16..0x260).prop_map(|at| at & !3 | 2),
    ];
    let place = prop_oneof![3 => pointers, 1 => 0x34_u16..0x1000];
    proptest::collection::vec((place, any::<u16>()), 0..12).prop_map(|changes| {
        let mut values = config(EVERYTHING);
        for (at, value) in changes {
            values.set(at, &value.to_le_bytes());
        }
        values
    })
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![Just(Placement::RootBus), Just(Placement::BehindPort)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What no rule lets the guest change never changes, in its view nor in
    /// the device.
    #[test]
    fn masked_bits_never_change(
        values in broken(),
        placement in placement(),
        writes in proptest::collection::vec((0_u16..0x280, any::<u32>()), 0..24),
    ) {
        let Ok(mut setup) = show(&values, placement) else { return Ok(()) };
        let mut before = vec![0; 4096];
        setup.view.read(&setup.device, 0, &mut before);
        let device_before = snapshot(&setup.device).unwrap();
        // Places where writes are carried out, and the device answers.
        let mut device_may = vec![0_u8; 4096];
        for placed in &setup.view.book.rules {
            if let Access::Device { writable, .. } | Access::Shared { writable } = placed.rule.access {
                for at in placed.place.clone() {
                    device_may[usize::from(at)] |= (writable >> ((at - placed.place.start) % 4 * 8)) as u8;
                }
            }
        }
        for found in setup.view.book.found.iter().filter(|one| one.id == 0x10) {
            // The order to reset reads as zero once anything was written.
            device_may[usize::from(found.place.start) + 9] |= 0x80;
        }
        for (offset, value) in writes {
            setup.write(offset, value);
        }
        let mut after = vec![0; 4096];
        setup.view.read(&setup.device, 0, &mut after);
        let device_after = snapshot(&setup.device).unwrap();
        for at in 0..4096_u16 {
            let index = usize::from(at);
            let guest = setup.view.space().guest_bits(at);
            let own = guest | device_may[index] | setup.view.clears(at);
            prop_assert_eq!((before[index] ^ after[index]) & !own, 0, "guest {:#x}", at);
            let changed = device_before.u8(at) ^ device_after.u8(at);
            prop_assert_eq!(changed & !device_may[index], 0, "device {:#x}", at);
        }
    }

    /// A read of any size costs one call at most, and none where no rule asks
    /// the device.
    #[test]
    fn reads_cost_one_call_at_most(
        values in broken(),
        placement in placement(),
        reads in proptest::collection::vec((0_u16..0x1000, 0_usize..3), 1..40),
    ) {
        let Ok(mut setup) = show(&values, placement) else { return Ok(()) };
        for (offset, size) in reads {
            let mut data = vec![0; 1 << size];
            setup.view.read(&setup.device, offset, &mut data);
            let calls = setup.journal.take();
            let asks = |placed: &Placed| {
                let end = offset.saturating_add(1 << size);
                let meets = placed.place.start < end && offset < placed.place.end;
                meets && matches!(placed.rule.access, Access::Device { .. })
            };
            let asked = setup.view.book.rules.iter().any(asks);
            prop_assert!(calls.len() <= usize::from(asked), "{calls:?}");
        }
    }

    /// The guest's lists end, and hold nothing that the device has not.
    #[test]
    fn lists_are_bounded_and_honest(values in broken(), placement in placement()) {
        let Ok(mut setup) = show(&values, placement) else { return Ok(()) };
        let snapshot = setup.snapshot.clone();
        let own: Vec<_> = capabilities(|at, data| snapshot.read(at, data)).collect();
        let device = &setup.device;
        let view = &mut setup.view;
        let mut reads = 0;
        let list: Vec<_> = capabilities(|at, data| {
            reads += 1;
            view.read(device, at, data);
        }).collect();
        prop_assert!(reads <= 2 + 2 * 48);
        for one in &list {
            prop_assert!(own.contains(one));
        }
        let mut sorted: Vec<_> = list.iter().map(|one| one.offset).collect();
        sorted.dedup();
        prop_assert_eq!(sorted.len(), list.len());
        let own: Vec<_> = extended_capabilities(|at, data| snapshot.read(at, data)).collect();
        let mut reads = 0;
        let list: Vec<_> = extended_capabilities(|at, data| {
            reads += 1;
            view.read(device, at, data);
        }).collect();
        prop_assert!(reads <= 960);
        for one in list.iter().filter(|one| one.id != 0) {
            prop_assert!(own.contains(one), "{:x?}", one);
        }
    }

    /// Each byte has a rule, and what is the guest's reads back.
    #[test]
    fn what_is_the_guests_reads_back(values in broken(), placement in placement(), value: u32) {
        let Ok(mut setup) = show(&values, placement) else { return Ok(()) };
        for at in 0..4096_u16 {
            prop_assert!(setup.view.book.rules.iter().any(|one| one.place.contains(&at)));
        }
        let limited = |at: u16| setup.view.book.limits.iter()
            .filter(|limit| (limit.offset..limit.offset + 2).contains(&at))
            .fold(0, |bits, limit| bits | limit.mask.to_le_bytes()[usize::from(at - limit.offset)]);
        let limited: Vec<u8> = (0..0x100).map(limited).collect();
        for at in (0..0x100_u16).step_by(4) {
            setup.write(at, value);
            for (byte, at) in value.to_le_bytes().into_iter().zip(at..) {
                let own = setup.view.space().guest_bits(at) & !limited[usize::from(at)];
                prop_assert_eq!((setup.view.space().u8(at) ^ byte) & own, 0, "{:#x}", at);
            }
        }
    }

    /// Sizing works for every size that a BAR can have.
    #[test]
    fn bars_of_every_size_are_sized(bits in 2_u32..63, kind in 0_u8..4, index in 0_u8..6) {
        let kind = match kind {
            0 => devices::pci::BarKind::Io,
            1 => devices::pci::BarKind::Memory32 { prefetchable: false },
            2 => devices::pci::BarKind::Memory64 { prefetchable: true },
            _ => devices::pci::BarKind::Rom,
        };
        let is_rom = kind == devices::pci::BarKind::Rom;
        let index = if is_rom { BarIndex::ROM } else { BarIndex::new(index).unwrap() };
        let bar = devices::pci::BarInfo { index, kind, size: 1 << bits };
        prop_assume!(bar.is_valid());
        let snapshot = config(&[(0x00, 4, 0x1234_8086)]);
        let book = RuleBook::new(&Subject {
            snapshot: &snapshot,
            bars: &[bar],
            placement: Placement::RootBus,
            can_reset: false,
            deliverable: Deliverable::default(),
        }).unwrap();
        let mut view = ConfigView::new(&snapshot, book);
        let device = FakeDevice::new(&snapshot, 256, &[], &Journal::default()).unwrap();
        let at = bar.index.register();
        let registers = if kind.is_64_bit() { 8 } else { 4 };
        view.write(&device, at, &[0xff; 8][..registers]);
        let mut read = [0; 8];
        view.read(&device, at, &mut read[..registers]);
        let low = match kind {
            devices::pci::BarKind::Io => 3,
            devices::pci::BarKind::Rom => 0x7ff,
            _ => 0xf,
        };
        let mut mask = u64::from_le_bytes(read) & !low;
        if registers == 4 {
            mask |= 0xffff_ffff << 32;
        }
        prop_assert_eq!(!mask + 1, bar.size);
        prop_assert_eq!(is_rom, read[0] & 1 != 0 && kind == devices::pci::BarKind::Rom);
    }
}

#[path = "msi_test.rs"]
mod msi;
