use super::*;
use crate::config::COMMAND;
use crate::fake::{FakeDevice, FakeRouter, Journal, Operation};
use devices::pci::{ConfigSpace, Register};
use proptest::prelude::*;

/// The device's command register with its pin open, and closed.
const OPEN: [u8; 2] = [0, 0];
const CLOSED: [u8; 2] = [0, 4];

struct Setup {
    journal: Journal,
    device: Arc<FakeDevice>,
    router: FakeRouter,
    pin: IntxInterrupt,
}

fn device(journal: &Journal) -> Arc<FakeDevice> {
    let values = ConfigSpace::from_registers(&[Register::constant(0x3d, 1, 2)]);
    let device = FakeDevice::new(&values, 256, &[], journal).unwrap();
    Arc::new(device)
}

fn pin(device: &Arc<FakeDevice>, router: &FakeRouter) -> Option<IntxInterrupt> {
    let address = PciAddress::from_requester_id(0x100);
    let backend = Arc::clone(device) as Arc<dyn DeviceBackend>;
    IntxInterrupt::new(address, backend, router, InterruptPin::B)
}

fn setup_with(change: impl FnOnce(&FakeRouter)) -> Setup {
    let journal = Journal::default();
    let device = device(&journal);
    let router = FakeRouter::new(&journal);
    change(&router);
    let pin = pin(&device, &router).unwrap();
    let mut setup = Setup {
        journal,
        device,
        router,
        pin,
    };
    setup.command(CLOSED);
    setup
}

fn setup() -> Setup {
    setup_with(|_| {})
}

impl Setup {
    fn command(&mut self, value: [u8; 2]) {
        self.device.region_write(7, COMMAND.into(), &value).unwrap();
        self.journal.take();
    }

    /// Turned on, and open in the device.
    fn start(&mut self) {
        self.pin.turn_on();
        self.command(OPEN);
        assert!(self.pin.is_on() && self.device.pin_is_open());
    }

    /// The guest acknowledges, and the kernel sees to it.
    fn acknowledge(&self) {
        self.router.acknowledge_line();
        self.device.see_unmask();
    }
}

#[test]
fn the_line_comes_first_and_goes_last() {
    let mut setup = setup();
    setup.pin.turn_on();
    let expected = ["line connect", "set_irqs Intx 0 x", "unmask_event x"];
    assert_eq!(setup.journal.take(), expected);
    assert!(
        !setup.device.pin_is_open(),
        "not before its command register"
    );
    setup.pin.turn_on();
    assert!(setup.journal.take().is_empty(), "once");
    setup.pin.turn_off();
    let expected = ["disable_irqs Intx", "line disconnect"];
    assert_eq!(setup.journal.take(), expected);
    setup.pin.turn_off();
    assert!(setup.journal.take().is_empty());
    drop(setup.pin);
    assert_eq!(setup.journal.take(), ["line drop"]);
}

#[test]
fn an_interrupt_and_its_acknowledgement() {
    let mut setup = setup();
    setup.start();
    setup.device.assert_pin(true);
    assert!(!setup.device.pin_is_open(), "masked as it fires");
    assert!(setup.router.line_is_asserted());
    // The driver has handled it when the guest acknowledges.
    setup.device.assert_pin(false);
    setup.acknowledge();
    assert!(!setup.router.line_is_asserted());
    assert!(setup.device.pin_is_open());
    setup.device.assert_pin(true);
    assert!(setup.router.line_is_asserted(), "the next one");
    setup.journal.take();
    setup.pin.acknowledge();
    assert!(setup.journal.take().is_empty(), "the kernel does it all");
}

#[test]
fn a_pin_that_stays_asserted_interrupts_again() {
    let mut setup = setup();
    setup.start();
    setup.device.assert_pin(true);
    for _ in 0..3 {
        assert!(setup.router.line_is_asserted());
        setup.acknowledge();
    }
    assert!(setup.router.line_is_asserted());
}

#[test]
fn what_was_asserted_while_it_was_closed_fires_when_it_opens() {
    let mut setup = setup();
    setup.pin.turn_on();
    setup.device.assert_pin(true);
    assert!(!setup.router.line_is_asserted());
    setup.command(OPEN);
    assert!(setup.router.line_is_asserted());
    // The driver closes it in its handler and opens it later.
    setup.command(CLOSED);
    setup.acknowledge();
    assert!(!setup.router.line_is_asserted(), "held back");
    setup.command(OPEN);
    assert!(setup.router.line_is_asserted(), "and not lost");
}

#[test]
fn turned_off_with_an_interrupt_on_its_way_it_leaves_none() {
    let mut setup = setup();
    setup.start();
    setup.device.assert_pin(true);
    setup.pin.turn_off();
    setup.device.assert_pin(false);
    assert!(!setup.router.line_is_asserted());
    setup.command(CLOSED);
    setup.start();
    assert!(!setup.router.line_is_asserted(), "none is invented");
}

#[test]
fn without_resampling_an_access_is_the_acknowledgement() {
    let mut setup = setup_with(FakeRouter::without_resampling);
    assert!(!setup.pin.needs_accesses(), "not while it is off");
    setup.pin.turn_on();
    let expected = ["line connect", "set_irqs Intx 0 x"];
    assert_eq!(setup.journal.take(), expected, "no event to unmask by");
    setup.command(OPEN);
    assert!(setup.pin.needs_accesses());
    setup.pin.acknowledge();
    assert!(setup.journal.take().is_empty(), "nothing is asserted");
    setup.device.assert_pin(true);
    setup.pin.acknowledge();
    assert_eq!(setup.journal.take(), ["line release", "unmask"]);
    assert!(
        setup.router.line_is_asserted(),
        "still asserted by the device"
    );
    setup.device.assert_pin(false);
    setup.pin.acknowledge();
    assert!(!setup.router.line_is_asserted());
    assert!(setup.device.pin_is_open());
    let mut stats = InterruptStats::default();
    setup.pin.add_stats(&mut stats);
    assert_eq!((stats.trapped_ends, stats.armed, stats.silent), (2, 1, 0));
}

#[test]
fn without_resampling_a_closed_pin_lets_go_of_the_line() {
    let mut setup = setup_with(FakeRouter::without_resampling);
    setup.start();
    setup.device.assert_pin(true);
    assert!(setup.router.line_is_asserted());
    setup.command(CLOSED);
    setup.pin.close();
    assert!(!setup.router.line_is_asserted());
    setup.command(OPEN);
    assert!(setup.router.line_is_asserted());
}

#[test]
fn what_can_not_be_delivered_is_no_pin() {
    let journal = Journal::default();
    let router = FakeRouter::new(&journal);
    let values = ConfigSpace::new();
    let without = FakeDevice::new(&values, 256, &[], &journal).unwrap();
    assert!(pin(&Arc::new(without), &router).is_none());
    router.without_lines();
    assert!(pin(&device(&journal), &router).is_none());
}

#[test]
fn each_refusal_leaves_it_off_and_nothing_behind() {
    type Refuse = fn(&Setup);
    let refusals: [(Refuse, usize); 3] = [
        (|setup| setup.router.refuse_lines(1), 1),
        (
            |setup| setup.device.refuse(Operation::SetIrqs, libc::EBUSY),
            2,
        ),
        (
            |setup| setup.device.refuse(Operation::Unmask, libc::EINVAL),
            3,
        ),
    ];
    for (refuse, calls) in refusals {
        let mut setup = setup();
        refuse(&setup);
        setup.pin.turn_on();
        let all = setup.journal.take();
        assert_eq!(all[calls..], ["disable_irqs Intx", "line disconnect"]);
        assert!(!setup.pin.is_on());
        let mut stats = InterruptStats::default();
        setup.pin.add_stats(&mut stats);
        assert_eq!((stats.armed, stats.silent), (0, 1));
        assert_eq!(setup.device.kind_on(), None);
        setup.pin.turn_on();
        assert!(setup.journal.take().is_empty(), "not again and again");
        setup.pin.turn_off();
        setup.start();
    }
}

#[test]
fn what_a_shared_line_of_the_host_means_is_said() {
    let text = |errno| {
        let error = DeviceError::Irq {
            index: IrqIndex::Intx,
            start: 0,
            count: 1,
            source: std::io::Error::from_raw_os_error(errno),
        };
        PinError::from(error).to_string()
    };
    assert!(text(libc::EBUSY).contains("another device of the host"));
    assert!(text(libc::ENODEV).contains("no interrupt line"));
    assert!(text(libc::EINVAL).contains("Intx"));
}

proptest! {
    /// In whatever order device, host and guest act: in the end an interrupt
    /// that the device wants is with the guest, and one that was handled has
    /// let go of the line and left the pin open for the next.
    #[test]
    fn the_line_follows_the_device(
        deaf: bool,
        steps in proptest::collection::vec(0_u8..8, 0..60),
    ) {
        let mut setup = setup_with(|router| if deaf { router.without_resampling() });
        setup.start();
        let mut closed = false;
        for step in steps {
            match step {
                0 | 1 => setup.device.assert_pin(step == 0),
                2 => drop(setup.router.line_is_asserted()),
                3 => setup.pin.acknowledge(),
                4 => setup.acknowledge(),
                5 => {
                    setup.command(CLOSED);
                    setup.pin.close();
                    closed = true;
                }
                6 => {
                    setup.command(OPEN);
                    closed = false;
                }
                _ => {
                    setup.command(CLOSED);
                    setup.pin.turn_off();
                    prop_assert!(!setup.router.line_is_asserted());
                    setup.pin.turn_on();
                    if !closed {
                        setup.command(OPEN);
                    }
                }
            }
            prop_assert!(!closed || !setup.device.pin_is_open());
            // A level that the handler has turned off must not come back.
            if closed && deaf {
                prop_assert!(!setup.router.line_is_asserted());
            }
        }
        setup.command(OPEN);
        setup.device.assert_pin(true);
        prop_assert!(setup.router.line_is_asserted(), "lost");
        setup.device.assert_pin(false);
        for _ in 0..2 {
            // The first may be one that was on its way.
            setup.router.line_is_asserted();
            setup.pin.acknowledge();
            setup.acknowledge();
        }
        prop_assert!(!setup.router.line_is_asserted(), "invented");
        prop_assert!(setup.device.pin_is_open(), "masked for ever");
    }
}
