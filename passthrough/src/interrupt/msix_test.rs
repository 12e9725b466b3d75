use super::*;
use crate::config::{BarArea, MsixCapability};
use crate::fake::{FakeDevice, FakeRouter, Journal, Operation};
use crate::vfio::DeviceBackend;
use crate::vfio::RegionArea;
use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, PciAddress, Register};

const ENABLE: u16 = 0x8000;
const ENABLE_MASKED: u16 = 0xc000;

struct Setup {
    journal: Journal,
    device: Arc<FakeDevice>,
    router: Arc<FakeRouter>,
    msix: MsixInterrupts,
}

fn setup_with(change: impl FnOnce(FakeDevice) -> FakeDevice) -> Setup {
    setup_of(65, change)
}

/// A device with so many vectors, and nothing else.
fn setup_of(vectors: u16, change: impl FnOnce(FakeDevice) -> FakeDevice) -> Setup {
    const TABLE: u32 = 0x2000;
    const PBA: u32 = 0xa000;
    let values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x0010_1b36),
        Register::constant(0x04, 4, 0x0010_0000),
        Register::constant(0x34, 1, 0x40),
        Register::constant(0x40, 4, u32::from(vectors - 1) << 16 | 0x11),
        Register::constant(0x44, 4, TABLE),
        Register::constant(0x48, 4, PBA),
    ]);
    let bar = BarIndex::new(0).unwrap();
    let info = BarInfo {
        index: bar,
        kind: BarKind::Memory64 {
            prefetchable: false,
        },
        size: 0x1_0000,
    };
    let journal = Journal::default();
    let device = FakeDevice::new(&values, 256, &[info], &journal).unwrap();
    let device = Arc::new(change(device));
    let router = Arc::new(FakeRouter::new(&journal));
    let area = |offset: u32, size| BarArea {
        bar,
        area: RegionArea {
            offset: offset.into(),
            size,
        },
    };
    let capability = MsixCapability {
        offset: 0x40,
        vectors,
        table: area(TABLE, u64::from(vectors) * 16),
        pba: Some(area(PBA, u64::from(vectors).div_ceil(64) * 8)),
    };
    // Decode memory and be a bus master.
    device.region_write(7, 4, &[0x06, 0]).unwrap();
    journal.take();
    let msix = MsixInterrupts::new(
        PciAddress::from_requester_id(0x100),
        Arc::clone(&device) as Arc<dyn DeviceBackend>,
        Arc::clone(&router) as Arc<dyn InterruptRouter>,
        capability,
    );
    Setup {
        journal,
        device,
        router,
        msix: msix.unwrap(),
    }
}

fn setup() -> Setup {
    setup_with(|device| device)
}

fn resizing(device: FakeDevice, no_resize: bool) -> FakeDevice {
    if no_resize {
        device.no_resize()
    } else {
        device
    }
}

impl Setup {
    fn set_irqs(&self) -> Vec<String> {
        self.journal.take_only(&["set_irqs"])
    }

    fn program(&mut self, vector: u16, data: u32) {
        let at = u64::from(vector) * 16;
        self.msix.table_write(at, &0xfee0_0000_u64.to_le_bytes());
        self.msix.table_write(at + 8, &data.to_le_bytes());
    }

    fn mask(&mut self, vector: u16, masked: bool) {
        let at = u64::from(vector) * 16 + 12;
        self.msix.table_write(at, &u32::from(masked).to_le_bytes());
    }

    /// Programs a vector and unmasks it.
    fn request(&mut self, vector: u16, data: u32) {
        self.program(vector, data);
        self.mask(vector, false);
    }

    fn calls(&self) -> Vec<String> {
        self.journal
            .take_only(&["route", "set_irqs", "disable_irqs"])
    }

    fn delivered(&self) -> Vec<u32> {
        let messages = self.router.delivered();
        messages.iter().map(|message| message.data).collect()
    }

    fn pending(&self, vector: u16) -> bool {
        let mut byte = [0];
        self.msix.pba_read(u64::from(vector) / 8, &mut byte);
        byte[0] >> (vector % 8) & 1 != 0
    }
}

#[test]
fn arming_order_and_its_reverse() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    assert_eq!(
        setup.calls(),
        ["set_irqs Msix 0 -"],
        "on, as the guest sees it"
    );
    setup.request(3, 0x41);
    let expected = ["route 0 new", "route 0 connect 0x41", "set_irqs Msix 3 x"];
    assert_eq!(setup.calls(), expected);
    setup.msix.write_control(0);
    assert_eq!(setup.calls(), ["disable_irqs Msix", "route 0 drop"]);
    assert_eq!(setup.device.host_vectors(), None);
}

#[test]
fn masked_vectors_cost_nothing() {
    let mut setup = setup();
    for vector in 0..65 {
        setup.program(vector, vector.into());
    }
    assert!(setup.calls().is_empty());
    setup.msix.write_control(ENABLE_MASKED);
    setup.msix.write_control(ENABLE);
    assert_eq!(setup.calls(), ["set_irqs Msix 0 -"]);
    assert_eq!(setup.device.host_vectors(), Some(1));
}

#[test]
fn unmasked_together_takes_as_many_calls_for_one_as_for_all() {
    for no_resize in [false, true] {
        let counts = [1, 64, 2048].map(|vectors| {
            let mut setup = setup_of(2048, |device| resizing(device, no_resize));
            setup.msix.write_control(ENABLE_MASKED);
            for vector in 0..vectors {
                setup.request(vector, vector.into());
            }
            assert_eq!(setup.router.tables(), 0);
            setup.calls();
            setup.msix.write_control(ENABLE);
            let calls = setup.journal.take_only(&["set_irqs"]).len();
            for vector in 0..vectors {
                assert!(setup.device.raise(vector.into()));
            }
            assert_eq!(setup.delivered().len(), usize::from(vectors));
            (setup.router.tables(), calls)
        });
        if no_resize {
            assert_eq!(counts[1], counts[2], "more is added to what is on");
            assert!(counts.iter().all(|(tables, _)| *tables == 1));
        } else {
            assert_eq!(counts, [(1, 1); 3]);
        }
    }
}

#[test]
fn enabled_at_once_takes_as_many_calls_for_one_as_for_all() {
    for no_resize in [false, true] {
        let counts = [1, 64, 2048].map(|vectors| {
            let mut setup = setup_of(2048, |device| resizing(device, no_resize));
            for vector in 0..vectors {
                setup.request(vector, vector.into());
            }
            assert!(setup.calls().is_empty());
            setup.msix.write_control(ENABLE);
            (setup.router.tables(), setup.set_irqs().len())
        });
        let calls = if no_resize { 1 } else { 2 };
        assert_eq!(counts, [(1, calls); 3]);
    }
}

#[test]
fn unmasked_one_by_one_takes_one_call_each() {
    for no_resize in [false, true] {
        let mut setup = setup_of(2048, |device| resizing(device, no_resize));
        setup.msix.write_control(ENABLE);
        assert_eq!(setup.calls().len(), 1);
        for vector in 0..2048 {
            setup.request(vector, vector.into());
        }
        assert_eq!(setup.set_irqs().len(), 2048);
        assert!(setup.device.raise(2047));
        assert_eq!(setup.delivered(), [2047]);
    }
}

#[test]
fn a_kernel_that_cant_grow_the_set_gets_all_of_it_at_once() {
    let mut setup = setup_with(FakeDevice::no_resize);
    setup.request(1, 0x41);
    setup.request(64, 0x42);
    setup.msix.write_control(ENABLE);
    let holes = "-".repeat(62);
    let calls = setup.journal.take_only(&["set_irqs"]);
    assert_eq!(calls, [format!("set_irqs Msix 0 -x{holes}x")]);
    setup.request(2, 0x43);
    assert_eq!(
        setup.journal.take_only(&["set_irqs"]),
        ["set_irqs Msix 2 x"]
    );
    for vector in [1, 2, 64] {
        assert!(setup.device.raise(vector));
    }
    assert_eq!(setup.delivered(), [0x41, 0x42, 0x43]);
}

#[test]
fn masking_holds_signals_back_and_unmasking_delivers_them() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.request(5, 0x41);
    setup.calls();
    setup.mask(5, true);
    assert_eq!(setup.calls(), ["route 0 disconnect"]);
    assert!(!setup.pending(5));
    assert!(setup.device.raise(5));
    assert!(setup.delivered().is_empty());
    assert!(setup.pending(5), "the pending bit is the event's count");
    assert!(setup.pending(5), "looking does not clear it");
    setup.mask(5, false);
    assert_eq!(setup.calls(), ["route 0 connect 0x41"]);
    assert_eq!(setup.delivered(), [0x41]);
    assert!(setup.device.raise(5));
    assert!(!setup.pending(5), "on its way is not pending");
}

#[test]
fn a_signal_before_the_first_unmask_is_not_lost() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    assert!(!setup.device.raise(9));
    assert!(setup.pending(9), "the device's own pending bit");
    assert!(!setup.pending(8));
    setup.request(9, 0x41);
    assert_eq!(setup.delivered(), [0x41]);
    assert!(!setup.pending(9));
}

#[test]
fn a_new_message_only_reconnects() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.request(0, 0x41);
    setup.calls();
    setup.msix.table_write(8, &0x42_u32.to_le_bytes());
    assert_eq!(setup.calls(), ["route 0 connect 0x42"]);
    setup.msix.table_write(8, &0x42_u32.to_le_bytes());
    assert!(setup.calls().is_empty());
    setup.mask(0, true);
    setup.program(0, 0x43);
    setup.mask(0, false);
    assert_eq!(
        setup.calls(),
        ["route 0 disconnect", "route 0 connect 0x43"]
    );
}

#[test]
fn what_is_pending_survives_that_msix_is_off() {
    for asleep in [false, true] {
        let mut setup = setup();
        setup.msix.write_control(ENABLE);
        setup.request(5, 0x41);
        setup.mask(5, true);
        assert!(setup.device.raise(5));
        if asleep {
            setup.msix.set_asleep(true);
        } else {
            setup.msix.write_control(0);
        }
        assert_eq!(setup.device.host_vectors(), None);
        assert!(setup.pending(5) && !setup.pending(6));
        setup.msix.set_asleep(false);
        setup.msix.write_control(ENABLE);
        assert!(setup.pending(5));
        assert!(setup.delivered().is_empty());
        setup.mask(5, false);
        assert_eq!(setup.delivered(), [0x41]);
        assert!(!setup.pending(5));
        setup.mask(5, true);
        setup.mask(5, false);
        assert!(setup.delivered().is_empty(), "once");
    }
}

#[test]
fn nothing_is_pending_after_a_reset() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.request(5, 0x41);
    setup.mask(5, true);
    assert!(setup.device.raise(5));
    setup.msix.reset();
    setup.msix.write_control(ENABLE);
    assert!(!setup.pending(5));
    setup.request(5, 0x41);
    assert!(setup.delivered().is_empty());
}

#[test]
fn what_the_router_refuses_is_tried_again() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.router.refuse_connects(1);
    setup.request(0, 0x41);
    assert!(!setup.device.raise(0), "not armed");
    setup.mask(0, true);
    setup.mask(0, false);
    assert_eq!(setup.delivered(), [0x41]);
    // A new message that is refused leaves the old one.
    setup.router.refuse_connects(1);
    setup.msix.table_write(8, &0x42_u32.to_le_bytes());
    assert!(setup.device.raise(0));
    assert_eq!(setup.delivered(), [0x41]);
    let mut stats = InterruptStats::default();
    setup.msix.add_stats(&mut stats);
    assert_eq!((stats.armed, stats.silent, stats.lost), (1, 1, 0));
}

#[test]
fn an_allocation_that_was_short_is_tried_again_later() {
    let mut setup = setup_with(|device| device.no_resize().only_vectors(3));
    setup.request(4, 0x41);
    setup.msix.write_control(ENABLE);
    assert_eq!(setup.device.host_vectors(), Some(3));
    assert!(!setup.device.raise(4));
    setup.msix.write_control(0);
    setup.device.leave_vectors(65);
    setup.msix.write_control(ENABLE);
    assert_eq!(setup.device.host_vectors(), Some(65));
    assert_eq!(setup.delivered(), [0x41], "with what was pending");
}

#[test]
fn an_armed_vector_is_not_disturbed_by_its_neighbours() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.request(2, 0x42);
    setup.msix.write_control(ENABLE_MASKED);
    for vector in [0, 1, 3, 5] {
        setup.request(vector, vector.into());
    }
    setup.calls();
    setup.msix.write_control(ENABLE);
    let calls = setup.journal.take_only(&["set_irqs"]);
    assert_eq!(calls, ["set_irqs Msix 0 xx", "set_irqs Msix 3 x-x"]);
    assert_eq!(setup.device.host_vectors(), Some(5), "no host vector for 4");
}

#[test]
fn a_short_allocation_is_never_success() {
    let mut setup = setup_with(|device| device.no_resize().only_vectors(3));
    for vector in [0, 2, 4] {
        setup.request(vector, u32::from(vector));
    }
    setup.msix.write_control(ENABLE);
    let calls = setup.journal.take_only(&["set_irqs"]);
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1], "set_irqs Msix 0 x-x", "what there is is used");
    assert!(
        !setup.msix.vectors.is_armed(4),
        "and its route is given back"
    );
    assert!(!setup.device.raise(4));
    assert!(setup.device.raise(2));
    assert_eq!(setup.delivered(), [2]);
    setup.request(1, 1);
    assert!(setup.device.raise(1), "a hole can be filled");
    setup.request(9, 9);
    let calls = setup.calls();
    assert!(
        calls.iter().all(|call| !call.contains("Msix 9")),
        "{calls:?}"
    );
}

#[test]
fn without_any_vector_msix_stays_off_and_can_be_tried_again() {
    for no_resize in [false, true] {
        let mut setup = setup_with(|device| resizing(device, no_resize));
        setup.device.refuse(Operation::SetIrqs, libc::ENOSPC);
        setup.msix.write_control(ENABLE);
        assert_eq!(setup.device.host_vectors(), None);
        setup.request(0, 0x41);
        assert!(setup.device.host_vectors().is_some());
        assert!(setup.device.raise(0));
        assert_eq!(setup.delivered(), [0x41]);
    }
}

#[test]
fn a_full_host_arms_what_it_can() {
    let mut setup = setup_with(|device| device.only_vectors(4));
    setup.msix.write_control(ENABLE_MASKED);
    for vector in 0..8 {
        setup.request(vector, vector.into());
    }
    setup.msix.write_control(ENABLE);
    let arming = setup.journal.take();
    let calls = arming.iter().filter(|call| call.starts_with("set_irqs"));
    assert_eq!(
        calls.count(),
        1 + 1 + 5,
        "on, together, then one by one until the first refusal"
    );
    let raised: Vec<_> = (0..8).map(|vector| setup.device.raise(vector)).collect();
    assert_eq!(raised, [true, true, true, true, false, false, false, false]);
    assert_eq!(setup.delivered(), [0, 1, 2, 3]);
    let routes = |what| arming.iter().filter(|c| c.ends_with(what)).count();
    assert_eq!(routes("new") - routes("drop"), 4, "no route is lost");
}

#[test]
fn without_routes_vectors_stay_silent_and_nothing_else_happens() {
    let mut setup = setup();
    setup.router.only_routes(1);
    setup.msix.write_control(ENABLE);
    setup.request(0, 0x41);
    setup.request(1, 0x42);
    assert!(setup.device.raise(0));
    assert!(!setup.device.raise(1));
    setup.router.only_routes(1);
    setup.mask(1, true);
    setup.mask(1, false);
    assert_eq!(
        setup.delivered(),
        [0x41, 0x42],
        "tried again, with what was pending"
    );
}

#[test]
fn reset_and_drop_give_everything_back() {
    let mut setup = setup();
    setup.msix.write_control(ENABLE);
    setup.request(0, 0x41);
    setup.calls();
    setup.msix.reset();
    assert_eq!(setup.calls(), ["disable_irqs Msix", "route 0 drop"]);
    let mut control = [0; 4];
    setup.msix.table_read(12, &mut control);
    assert_eq!(control, [1, 0, 0, 0]);

    setup.msix.write_control(ENABLE);
    setup.request(0, 0x41);
    setup.calls();
    setup.device.refuse(Operation::DisableIrqs, libc::EIO);
    let Setup { journal, msix, .. } = setup;
    drop(msix);
    let calls = journal.take_only(&["route", "disable_irqs"]);
    assert_eq!(calls, ["disable_irqs Msix", "route 1 drop"]);
}

#[path = "msix_model_test.rs"]
mod model;
#[path = "msix_sequence_test.rs"]
mod sequence;
