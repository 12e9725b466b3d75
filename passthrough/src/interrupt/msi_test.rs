use super::*;
use crate::config::COMMAND;
use crate::fake::{FakeDevice, FakeRouter, Journal, Operation};
use devices::pci::{ConfigSpace, MsiCapability, Register};

const AT: u16 = 0x50;
const ADDRESS: u32 = 0xfee0_1000;
/// 32 vectors, 64 bits, each can be masked.
const LARGE: u16 = 0x018a;
/// One vector of the simplest kind.
const SMALL: u16 = 0x0000;

struct Setup {
    journal: Journal,
    device: Arc<FakeDevice>,
    router: Arc<FakeRouter>,
    /// The guest's registers.
    space: ConfigSpace,
    msi: MsiInterrupts,
}

fn setup_with(control: u16, change: impl FnOnce(FakeDevice) -> FakeDevice) -> Setup {
    let journal = Journal::default();
    let values = ConfigSpace::from_registers(&[
        Register::constant(0x06, 2, 0x0010),
        Register::constant(0x34, 1, AT.into()),
        Register::constant(AT, 2, 0x05),
        Register::constant(AT + 2, 2, control.into()),
    ]);
    let device = FakeDevice::new(&values, 256, &[], &journal).unwrap();
    let device = Arc::new(change(device));
    // A bus master.
    device
        .region_write(CONFIG_REGION, COMMAND.into(), &[4, 4])
        .unwrap();
    let router = Arc::new(FakeRouter::new(&journal));
    let place = MsiPlace {
        offset: AT,
        capability: MsiCapability::from_control(control),
    };
    let mut space = ConfigSpace::new();
    for register in place.capability.registers() {
        let offset = AT + register.offset;
        space.define(Register { offset, ..register });
    }
    let msi = MsiInterrupts::new(
        PciAddress::from_requester_id(0x100),
        Arc::clone(&device) as Arc<dyn DeviceBackend>,
        Arc::clone(&router) as Arc<dyn InterruptRouter>,
        place,
    );
    journal.take();
    Setup {
        journal,
        device,
        router,
        space,
        msi: msi.unwrap(),
    }
}

fn setup(control: u16) -> Setup {
    setup_with(control, |device| device)
}

impl Setup {
    /// The guest writes, and answers the calls that it caused.
    fn write(&mut self, offset: u16, value: u32) -> Vec<String> {
        self.space.write(AT + offset, &value.to_le_bytes());
        self.msi.follow(self.msi.place().state(&self.space));
        self.journal.take()
    }

    /// The message, and which vectors are masked, while MSI is off.
    fn program(&mut self, mask: u32) {
        assert!(self.write(4, ADDRESS).is_empty(), "nothing is on yet");
        if self.msi.place.capability.pending().is_some() {
            self.write(0x0c, 0x40);
            self.write(0x10, mask);
        } else {
            self.write(8, 0x40);
        }
    }

    /// Turns on 2 to the power of `exponent` vectors.
    fn enable(&mut self, exponent: u32) -> Vec<String> {
        self.write(0, (1 | exponent << 4) << 16)
    }

    fn disable(&mut self) -> Vec<String> {
        self.write(0, 0)
    }

    fn delivered(&self) -> Vec<u32> {
        let messages = self.router.delivered();
        assert!(messages.iter().all(|m| m.address == u64::from(ADDRESS)));
        messages.iter().map(|message| message.data).collect()
    }
}

#[test]
fn nothing_is_armed_before_the_enable_bit() {
    let mut setup = setup(SMALL);
    setup.program(0);
    assert_eq!(setup.device.host_vectors(), None);
    let calls = setup.enable(0);
    let expected = ["route 0 new", "route 0 connect 0x40", "set_irqs Msi 0 x"];
    assert_eq!(calls, expected, "the way first, the device last");
    assert!(setup.device.raise_msi(0));
    assert_eq!(setup.delivered(), [0x40]);
    let calls = setup.disable();
    assert_eq!(calls, ["disable_irqs Msi", "route 0 drop"]);
    assert_eq!(setup.device.kind_on(), None);
    assert!(!setup.msi.is_on());
    assert!(setup.disable().is_empty());
}

#[test]
fn all_vectors_are_turned_on_by_one_call_and_one_table() {
    let mut setup = setup(LARGE);
    setup.program(0);
    let calls = setup.enable(5);
    let calls: Vec<_> = calls.iter().filter(|call| call.contains("irqs")).collect();
    assert_eq!(calls, [&format!("set_irqs Msi 0 {}", "x".repeat(32))]);
    assert_eq!(setup.router.tables(), 1);
    for vector in [0, 7, 31] {
        assert!(setup.device.raise_msi(vector));
        assert_eq!(setup.delivered(), [0x40 | vector], "its number in the data");
    }
    assert_eq!(setup.device.host_vectors(), Some(32));
}

#[test]
fn a_masked_vector_costs_nothing_until_it_is_unmasked() {
    let mut setup = setup(LARGE);
    setup.program(0b1101);
    let calls = setup.enable(2);
    let expected = ["route 0 new", "route 0 connect 0x41", "set_irqs Msi 0 -x--"];
    assert_eq!(calls, expected);
    // The device keeps what it can't send, and the guest sees it.
    assert!(!setup.device.raise_msi(3));
    assert_eq!(setup.msi.pending(), 0b1000);
    setup.journal.take();
    let calls = setup.write(0x10, 0b0101);
    let expected = ["route 1 new", "route 1 connect 0x43", "set_irqs Msi 3 x"];
    assert_eq!(calls, expected);
    assert_eq!(setup.delivered(), [0x43], "delivered at unmask");
    assert_eq!(setup.msi.pending(), 0);
}

#[test]
fn masking_keeps_signals_and_takes_nothing_down() {
    let mut setup = setup(LARGE);
    setup.program(0);
    setup.enable(1);
    assert_eq!(setup.write(0x10, 0b10), ["route 1 disconnect"]);
    assert!(setup.device.raise_msi(1));
    assert!(setup.device.raise_msi(1));
    assert_eq!(setup.delivered(), [0; 0]);
    assert_eq!(setup.msi.pending(), 0b10);
    assert_eq!(
        setup.write(0x10, 0),
        ["read 7 0x64 4", "route 1 connect 0x41"]
    );
    assert_eq!(setup.delivered(), [0x41], "once");
    assert_eq!(setup.msi.pending(), 0);
}

#[test]
fn what_is_pending_outlasts_msi_but_not_a_reset() {
    for reset in [false, true] {
        let mut setup = setup(LARGE);
        setup.program(0);
        setup.enable(1);
        setup.write(0x10, 0b10);
        setup.device.raise_msi(1);
        setup.disable();
        assert_eq!(setup.msi.pending(), 0b10);
        if reset {
            setup.msi.reset();
        }
        setup.enable(1);
        assert_eq!(setup.msi.pending(), if reset { 0 } else { 0b10 });
        assert_eq!(setup.delivered(), [0; 0], "it is masked");
        setup.write(0x10, 0);
        let expected: &[u32] = if reset { &[] } else { &[0x41] };
        assert_eq!(setup.delivered(), expected);
        assert_eq!(setup.msi.pending(), 0);
        setup.disable();
        setup.enable(1);
        assert_eq!(setup.delivered(), [0; 0], "once");
    }
}

#[test]
fn a_new_message_of_live_vectors_is_one_table() {
    let mut setup = setup(LARGE);
    setup.program(0b100);
    setup.enable(2);
    let tables = setup.router.tables();
    let calls = setup.write(0x0c, 0x50);
    assert!(!calls.iter().any(|call| call.contains("irqs")), "{calls:?}");
    assert_eq!(setup.router.tables(), tables + 1);
    setup.device.raise_msi(3);
    assert_eq!(setup.delivered(), [0x53]);
}

#[test]
fn another_number_of_vectors_is_another_set() {
    let mut setup = setup(LARGE);
    setup.program(0);
    setup.enable(0);
    let calls = setup.enable(1);
    let expected = ["disable_irqs Msi", "route 0 drop"];
    assert_eq!(calls[..2], expected, "off before on");
    assert_eq!(calls.last().unwrap(), "set_irqs Msi 0 xx");
}

#[test]
fn a_short_allocation_is_tried_again_with_what_there_is() {
    let mut setup = setup_with(LARGE, |device| device.only_vectors(3));
    setup.program(0);
    let calls = setup.enable(3);
    let calls: Vec<_> = calls.iter().filter(|call| call.contains("irqs")).collect();
    assert_eq!(calls, ["set_irqs Msi 0 xxxxxxxx", "set_irqs Msi 0 xxx"]);
    assert!(setup.device.raise_msi(2));
    assert!(!setup.device.raise_msi(3), "silent");
    assert_eq!(setup.delivered(), [0x42]);
    let mut stats = InterruptStats::default();
    setup.msi.add_stats(&mut stats);
    assert_eq!((stats.armed, stats.silent), (3, 5));
    // Unmasking one of the silent ones asks for nothing that there isn't.
    setup.write(0x10, 0xf0);
    let calls = setup.write(0x10, 0);
    assert!(!calls.iter().any(|call| call.contains("irqs")), "{calls:?}");
    assert_eq!(setup.disable()[0], "disable_irqs Msi");
}

#[test]
fn a_host_without_vectors_leaves_msi_off_and_is_asked_again() {
    let mut setup = setup(SMALL);
    setup.program(0);
    setup.device.refuse(Operation::SetIrqs, libc::ENOSPC);
    setup.enable(0);
    assert!(!setup.msi.is_on());
    assert_eq!(setup.device.kind_on(), None);
    assert_eq!(setup.disable(), ["route 0 drop"], "nothing to turn off");
    setup.enable(0);
    assert!(setup.msi.is_on());
}

#[test]
fn without_a_route_a_vector_is_silent_and_others_are_not() {
    let mut setup = setup(LARGE);
    setup.program(0);
    setup.router.only_routes(1);
    assert_eq!(setup.enable(1).last().unwrap(), "set_irqs Msi 0 x-");
    setup.router.only_routes(1);
    let calls = setup.write(0x0c, 0x60);
    assert_eq!(calls.last().unwrap(), "set_irqs Msi 1 x", "tried again");
    setup.device.raise_msi(1);
    assert_eq!(setup.delivered(), [0x61]);
}

#[test]
fn what_can_not_be_connected_is_held_back() {
    let mut setup = setup(SMALL);
    setup.program(0);
    setup.router.refuse_connects(1);
    setup.enable(0);
    setup.device.raise_msi(0);
    assert_eq!(setup.delivered(), [0; 0]);
    setup.write(8, 0x44);
    assert_eq!(setup.delivered(), [0x44], "late, and not lost");
}

#[test]
fn another_kind_that_is_on_is_refused_by_the_kernel() {
    let mut setup = setup(SMALL);
    let other = setup.device.set_irqs(IrqIndex::Intx, 0, &[None]);
    other.unwrap();
    setup.journal.take();
    setup.program(0);
    setup.enable(0);
    assert_eq!(setup.device.kind_on(), Some(IrqIndex::Intx));
    assert!(!setup.msi.is_on());
}

#[test]
fn dropping_silences_the_device_first() {
    let mut setup = setup(LARGE);
    setup.program(0);
    setup.enable(1);
    drop(setup.msi);
    let expected = ["disable_irqs Msi", "route 0 drop", "route 1 drop"];
    assert_eq!(setup.journal.take(), expected);
}
