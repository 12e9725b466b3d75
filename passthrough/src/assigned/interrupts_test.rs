use super::*;
use crate::vfio::IrqIndex;
use proptest::prelude::*;

const MSIX: u16 = 0x40;
const POWER: u16 = 0x50;
const EXPRESS: u16 = 0x60;
const MSI: u16 = 0xa0;
const MSI_PENDING: u16 = MSI + 0x14;
const PIN_OFF: u16 = 0x400;
const ON: u16 = 0x8000;
/// The command register as written to the device, with its interrupt pin on.
const OPEN_MEMORY: &str = "write 7 0x4 [2, 0]";
const OPEN: &str = "write 7 0x4 [0, 0]";

/// As [`plain`], with an interrupt pin and two vectors of MSI that can be
/// masked.
fn host(journal: &Journal) -> FakeDevice {
    let values = ConfigSpace::from_registers(&[
        Register::constant(0x00, 4, 0x1234_8086),
        Register::constant(0x06, 2, 0x0010),
        Register::constant(0x34, 1, MSIX.into()),
        Register::constant(0x3d, 1, 1),
        Register::constant(MSIX, 4, 0x0003_5011),
        Register::constant(MSIX + 4, 4, 0x2000),
        Register::constant(MSIX + 8, 4, 0x2800),
        Register::constant(POWER, 4, 0x0003_6001),
        // It keeps its settings in D3hot.
        Register::constant(POWER + 4, 2, 8),
        Register::constant(EXPRESS, 4, 0x0002_a010),
        Register::constant(EXPRESS + 4, 4, 0x1000_0000),
        Register::constant(MSI, 4, 0x0182_0005),
    ]);
    let bar = BarInfo {
        index: BarIndex::new(0).unwrap(),
        kind: BarKind::Memory64 {
            prefetchable: false,
        },
        size: 0x4000,
    };
    FakeDevice::new(&values, 4096, &[bar], journal).unwrap()
}

fn setup_with(change: impl FnOnce(&FakeRouter)) -> Setup {
    let journal = Journal::default();
    let device = host(&journal);
    let mut setup = assign_with(device, &journal, change);
    setup.place(BAR);
    journal.take();
    setup
}

fn setup() -> Setup {
    setup_with(|_| {})
}

/// With a driver that uses the function, and so with its pin on.
fn in_use() -> Setup {
    let mut setup = setup();
    let _ = setup.command(MEMORY | MASTER);
    setup.settle();
    setup
}

impl Setup {
    fn kind(&self) -> Option<IrqIndex> {
        self.host.kind_on()
    }

    /// Writes the upper byte of MSI-X's control register.
    fn msix(&mut self, control: u16) -> Vec<String> {
        self.journal.take();
        let _ = self.write(MSIX + 2, &control.to_le_bytes());
        self.journal.take()
    }

    fn msi(&mut self, control: u16) -> Vec<String> {
        self.journal.take();
        let _ = self.write(MSI + 2, &control.to_le_bytes());
        self.journal.take()
    }

    fn status(&mut self) -> u16 {
        let mut data = [0; 2];
        self.device.config_read(0x06, &mut data);
        u16::from_le_bytes(data)
    }

    fn power(&mut self, state: u8) -> Vec<String> {
        self.journal.take();
        let _ = self.write(POWER + 4, &[state, 0]);
        self.settle_alone();
        self.journal.take()
    }
}

#[test]
fn the_pin_comes_on_when_a_driver_uses_the_function() {
    let mut setup = setup();
    assert_eq!(setup.kind(), None, "a guest without a driver costs nothing");
    let _ = setup.command(MEMORY);
    let expected = ["line connect", "set_irqs Intx 0 x", "unmask_event x", OPEN];
    assert_eq!(setup.journal.take(), expected, "open when all is in place");
    assert_eq!(setup.settle()[0], OPEN_MEMORY, "and it stays open");
    // Sizing a BAR takes nothing down.
    let _ = setup.command(0);
    assert_eq!(setup.kind(), Some(IrqIndex::Intx));
    setup.host.assert_pin(true);
    assert!(setup.router.line_is_asserted());
}

#[test]
fn the_disable_bit_masks_and_takes_nothing_down() {
    let mut setup = in_use();
    let effects = setup.command(MEMORY | MASTER | PIN_OFF);
    assert_eq!(effects, Effects::NONE);
    assert_eq!(setup.journal.take(), [COMMAND_MASTER]);
    setup.host.assert_pin(true);
    assert!(!setup.router.line_is_asserted());
    assert_eq!(
        setup.status() & 8,
        8,
        "the driver sees whose interrupt it is"
    );
    let _ = setup.command(MEMORY | MASTER);
    assert!(setup.router.line_is_asserted());
    setup.host.assert_pin(false);
    assert_eq!(setup.status() & 8, 0);
}

#[test]
fn the_status_bit_costs_nothing_while_the_pin_is_off() {
    let mut setup = setup();
    assert_eq!(setup.status(), 0x10);
    assert_eq!(setup.journal.take(), [""; 0]);
    let _ = setup.command(MEMORY);
    setup.host.assert_pin(true);
    assert_eq!(setup.status(), 0x18);
    setup.msix(ON);
    assert_eq!(setup.status(), 0x10, "MSI-X has no such bit");
}

#[test]
fn each_kind_goes_off_before_another_comes_on() {
    let mut setup = in_use();
    let expected = [
        COMMAND_MASTER,
        "disable_irqs Intx",
        "line disconnect",
        "set_irqs Msix 0 -",
    ];
    assert_eq!(setup.msix(ON), expected, "the pin is closed first of all");
    let calls = setup.msix(0);
    let expected = [
        "disable_irqs Msix",
        "line connect",
        "set_irqs Intx 0 x",
        "unmask_event x",
        "write 7 0x4 [6, 0]",
    ];
    assert_eq!(calls, expected);
    let calls = setup.msi(1);
    let expected = [
        COMMAND_MASTER,
        "disable_irqs Intx",
        "line disconnect",
        "route 0 new",
        "route 0 connect 0x0",
        "set_irqs Msi 0 x",
    ];
    assert_eq!(calls, expected);
    // A guest may not have both on; MSI-X counts.
    let calls = setup.msix(ON);
    let expected = ["disable_irqs Msi", "route 0 drop", "set_irqs Msix 0 -"];
    assert_eq!(calls, expected);
    let calls = setup.msix(0);
    assert_eq!(calls[0], "disable_irqs Msix");
    assert_eq!(calls.last().unwrap(), "set_irqs Msi 0 x");
    assert_eq!(setup.kind(), Some(IrqIndex::Msi));
}

#[test]
fn a_pin_that_nobody_listens_to_is_closed_again() {
    let mut setup = in_use();
    let _ = setup.command(MEMORY | MASTER | PIN_OFF);
    setup.msix(ON);
    let calls = setup.msix(0);
    assert_eq!(setup.kind(), Some(IrqIndex::Intx), "masked, but armed");
    assert_eq!(calls.len(), 4, "the kernel closed it: {calls:?}");
    let mut setup = setup_with(FakeRouter::without_lines);
    let _ = setup.command(MEMORY);
    setup.settle();
    setup.msix(ON);
    // The kernel follows changes of the bit only.
    let expected = ["disable_irqs Msix", OPEN_MEMORY, COMMAND_MEMORY];
    assert_eq!(setup.msix(0), expected);
}

#[test]
fn msi_with_masks_and_pending_bits() {
    let mut setup = in_use();
    let _ = setup.write(MSI + 4, &0xfee0_2000_u32.to_le_bytes());
    let _ = setup.write(MSI + 0xc, &0x60_u16.to_le_bytes());
    let _ = setup.write(MSI + 0x10, &[0b10]);
    assert_eq!(setup.msi(0x11).last().unwrap(), "set_irqs Msi 0 x-");
    assert_eq!(
        setup.host.config(MSI + 2),
        0x0182,
        "the device's own is left alone"
    );
    assert!(setup.host.raise_msi(0));
    let delivered = setup.router.delivered();
    assert_eq!(
        (delivered[0].address, delivered[0].data),
        (0xfee0_2000, 0x60)
    );
    assert!(!setup.host.raise_msi(1));
    let mut pending = [0xff; 4];
    for (offset, expected) in [(MSI_PENDING, [2, 0, 0, 0]), (MSI_PENDING - 3, [0, 0, 0, 2])] {
        setup.journal.take();
        setup.device.config_read(offset, &mut pending);
        assert_eq!(pending, expected);
        assert_eq!(setup.journal.take().len(), 1);
    }
    setup.device.config_read(MSI_PENDING + 4, &mut pending);
    let _ = setup.write(MSI_PENDING, &[0; 4]);
    let _ = setup.write(MSI + 0x10, &[0]);
    assert_eq!(setup.router.delivered()[0].data, 0x61);
    setup.device.config_read(MSI_PENDING, &mut pending);
    assert_eq!(pending, [0; 4]);
}

#[test]
fn asleep_it_has_nothing_armed() {
    for (control, kind) in [(0, IrqIndex::Intx), (ON, IrqIndex::Msix)] {
        let mut setup = in_use();
        setup.msix(control);
        let bar = setup.bar();
        setup.device.bar_write(bar, 0x200c, &[0; 4]);
        assert_eq!(setup.kind(), Some(kind));
        let calls = setup.power(3);
        let off = calls
            .iter()
            .position(|call| call.starts_with("disable_irqs"));
        let sleep = calls.iter().position(|call| call == "write 7 0x54 [3, 0]");
        assert!(off.unwrap() < sleep.unwrap(), "{calls:?}");
        assert_eq!(setup.kind(), None);
        // What the guest writes meanwhile waits.
        setup.msix(control | 0x4000);
        setup.msix(control);
        assert_eq!(setup.kind(), None);
        let calls = setup.power(0);
        let awake = calls.iter().position(|call| call == "write 7 0x54 [0, 0]");
        let on = calls.iter().position(|call| call.starts_with("set_irqs"));
        assert!(awake.unwrap() < on.unwrap(), "{calls:?}");
        assert_eq!(setup.kind(), Some(kind));
        if kind == IrqIndex::Msix {
            assert!(setup.host.raise(0), "armed again as it was");
        }
    }
}

#[test]
fn asleep_msi_keeps_what_is_pending() {
    let mut setup = in_use();
    let _ = setup.write(MSI + 0xc, &[0x60]);
    setup.msi(0x11);
    let _ = setup.write(MSI + 0x10, &[0b10]);
    assert!(setup.host.raise_msi(1));
    setup.power(3);
    assert_eq!(setup.kind(), None);
    let mut pending = [0; 4];
    setup.device.config_read(MSI_PENDING, &mut pending);
    assert_eq!(pending, [2, 0, 0, 0]);
    setup.power(0);
    assert_eq!(setup.kind(), Some(IrqIndex::Msi));
    assert!(setup.host.raise_msi(0));
    assert_eq!(setup.router.delivered().len(), 1, "armed again as it was");
    let _ = setup.write(MSI + 0x10, &[0]);
    assert_eq!(setup.router.delivered()[0].data, 0x61, "none is lost");
    let _ = setup.write(EXPRESS + 8, &[0, 0x80]);
    assert_eq!(setup.kind(), None);
    setup.settle();
    setup.device.config_read(MSI_PENDING, &mut pending);
    assert_eq!(pending, [0; 4]);
}

#[test]
fn a_reset_leaves_nothing_armed() {
    for (control, kind) in [(0, IrqIndex::Intx), (ON, IrqIndex::Msix)] {
        let mut setup = in_use();
        setup.msix(control);
        assert_eq!(setup.kind(), Some(kind));
        let _ = setup.write(EXPRESS + 8, &[0, 0x80]);
        assert_eq!(setup.kind(), None, "at once");
        assert_eq!(setup.host.config(4) & PIN_OFF, PIN_OFF);
        setup.settle();
        assert_eq!(setup.kind(), None);
        assert_eq!(setup.host.config(4) & PIN_OFF, PIN_OFF);
        setup.place(BAR);
        let _ = setup.command(MEMORY);
        assert_eq!(setup.kind(), Some(IrqIndex::Intx), "usable again");
    }
}

#[test]
fn a_function_with_no_line_has_no_pin() {
    let mut setup = setup_with(FakeRouter::without_lines);
    let _ = setup.command(MEMORY);
    setup.settle();
    assert_eq!(setup.kind(), None);
    assert_eq!(setup.host.config(4) & PIN_OFF, PIN_OFF);
    let mut pin = [0xff];
    setup.device.config_read(0x3d, &mut pin);
    assert_eq!(pin, [0]);
}

#[test]
fn a_pin_that_the_host_refuses_stays_closed() {
    let mut setup = setup();
    setup.host.refuse(Operation::SetIrqs, libc::EBUSY);
    let _ = setup.command(MEMORY);
    assert_eq!(setup.host.config(4) & PIN_OFF, PIN_OFF);
    setup.settle();
    assert_eq!(setup.kind(), None);
    setup.msix(ON);
    assert_eq!(setup.kind(), Some(IrqIndex::Msix), "the others work");
}

#[test]
fn without_resampling_bars_are_trapped_while_the_pin_is_on() {
    let mut setup = setup_with(FakeRouter::without_resampling);
    assert_eq!(setup.command(MEMORY), effects(true, false));
    setup.settle_alone();
    let calls = setup.journal.take();
    assert!(!calls.iter().any(|call| call.starts_with("guest map")));
    // The driver's look at its registers is the acknowledgement.
    setup.host.assert_pin(true);
    assert!(setup.router.line_is_asserted());
    setup.host.assert_pin(false);
    setup.read(0x10, 4);
    assert!(!setup.router.line_is_asserted());
    setup.host.assert_pin(true);
    let bar = setup.bar();
    setup.host.assert_pin(false);
    setup.device.bar_write(bar, 0x10, &[0; 4]);
    assert!(setup.host.pin_is_open());
    // With MSI-X, BARs are mapped, which takes a settle.
    assert_eq!(
        setup.write(MSIX + 2, &ON.to_le_bytes()),
        effects(true, false)
    );
    let calls = setup.settle();
    assert!(
        calls.contains(&"guest map 0xc0000000 0x2000".to_owned()),
        "{calls:?}"
    );
    // Back to the pin they go before it opens.
    setup.journal.take();
    assert_eq!(setup.write(MSIX + 2, &[0, 0]), effects(true, false));
    let calls = setup.journal.take();
    let last = calls
        .iter()
        .rposition(|call| call.starts_with("guest unmap"));
    let open = calls.iter().position(|call| call == OPEN_MEMORY);
    assert!(last.unwrap() < open.unwrap(), "{calls:?}");
    let calls = setup.settle();
    assert!(!calls.iter().any(|call| call.starts_with("guest map")));
}

#[test]
fn a_dropped_device_leaves_its_line() {
    let setup = in_use();
    let Setup {
        device, journal, ..
    } = setup;
    drop(device);
    let calls = journal.take();
    let expected = ["disable_irqs Intx", "line disconnect", "line drop"];
    assert_eq!(calls[..3], expected);
}

proptest! {
    /// Whatever the guest writes, and whatever the host refuses: only one kind
    /// is on, it is the one that the registers ask for unless something was
    /// refused, and a pin is open only when it is on.
    #[test]
    fn the_kind_that_is_on_follows_from_the_registers(
        steps in proptest::collection::vec((0_u8..8, any::<u8>()), 0..40),
        deaf: bool,
    ) {
        let mut setup = setup_with(|router| if deaf { router.without_resampling() });
        let mut used = false;
        let mut refused = false;
        for (kind, value) in steps {
            match kind {
                0 => { let _ = setup.msix(if value & 1 != 0 { ON } else { 0 }); }
                1 => { let _ = setup.msi(u16::from(value & 0x71)); }
                2 => {
                    let pin = if value & 8 != 0 { PIN_OFF } else { 0 };
                    let _ = setup.command(u16::from(value & 6) | pin);
                }
                3 => { let _ = setup.power(if value & 1 != 0 { 3 } else { 0 }); }
                4 => {
                    let _ = setup.write(EXPRESS + 8, &[0, 0x80]);
                    setup.settle_alone();
                    used = false;
                }
                5 => {
                    setup.host.refuse(Operation::SetIrqs, libc::ENOMEM);
                    refused = true;
                }
                6 => {
                    let _ = setup.write(MSI + 0x10, &[value & 3]);
                }
                _ => setup.host.assert_pin(value & 1 != 0),
            }
            let asleep = setup.device.guest_power() != PowerState::D0;
            let space = setup.device.view.space();
            let msix = space.u16(MSIX + 2) & ON != 0;
            let msi = space.u16(MSI + 2) & 1 != 0;
            let on = setup.kind();
            used = !asleep && !msix && !msi
                && (setup.device.guest_command() & 7 != 0 || used && on == Some(IrqIndex::Intx));
            let expected = match (asleep, msix, msi, used) {
                (true, ..) => None,
                (_, true, ..) => Some(IrqIndex::Msix),
                (_, _, true, _) => Some(IrqIndex::Msi),
                (.., used) => used.then_some(IrqIndex::Intx),
            };
            if !refused || on.is_some() {
                prop_assert_eq!(on, expected);
            }
            let open = setup.host.config(4) & PIN_OFF == 0;
            prop_assert!(!open || on == Some(IrqIndex::Intx));
        }
        let Setup { device, host, .. } = setup;
        drop(device);
        prop_assert_eq!(host.kind_on(), None);
    }
}
