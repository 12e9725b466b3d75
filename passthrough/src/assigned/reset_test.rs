//! Resets of every kind: what the guest sees, what the device gets, and that
//! it works again.

use super::*;
use crate::assigned::{AssignOptions, Placement};
use crate::config::sample::{EVERYTHING, bars, config};
use crate::vfio::IrqIndex;
use proptest::prelude::*;

const POWER: u16 = 0x44;
const DEVICE_CONTROL: u16 = 0x88;
const ADVANCED_CONTROL: u16 = 0x64;
const MSI_CONTROL: u16 = 0x6a;
const MSIX_CONTROL: u16 = 0xc2;
const TABLE_BAR: u64 = 0xd000_0000;
const NO_SOFT_RESET: u32 = 8;

/// A way for a guest to reset its device.
#[derive(Clone, Copy, Debug)]
enum Way {
    Function,
    Advanced,
    Power,
    Bus,
}

const WAYS: [Way; 4] = [Way::Function, Way::Advanced, Way::Power, Way::Bus];

fn everything(power: u32) -> Setup {
    everything_as(power, |host| host)
}

/// With the host's device changed.
fn everything_as(power: u32, change: impl FnOnce(FakeDevice) -> FakeDevice) -> Setup {
    let mut registers = EVERYTHING.to_vec();
    registers.push((POWER, 4, power));
    let journal = Journal::default();
    let host = FakeDevice::new(&config(&registers), 4096, &bars(), &journal).unwrap();
    let options = AssignOptions {
        placement: Placement::BehindPort,
        ..AssignOptions::default()
    };
    assign_as(change(host), options, &journal)
}

impl Setup {
    fn u32(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.device.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn u16(&mut self, offset: u16) -> u16 {
        self.u32(offset) as u16
    }

    fn put(&mut self, offset: u16, value: u16) -> Effects {
        self.write(offset, &value.to_le_bytes())
    }

    /// As a driver does: BARs placed, interrupts on, bus mastering on.
    fn start(&mut self) {
        let _ = self.write(0x10, &0x4_0000_0000_u64.to_le_bytes());
        let _ = self.write(0x18, &(TABLE_BAR as u32).to_le_bytes());
        let _ = self.write(0x1c, &0xc000_u32.to_le_bytes());
        let _ = self.put(4, 7);
        self.settle();
        let table = BarIndex::new(2).unwrap();
        let entry = [0xfee0_0000_u32, 0, 0x41, 0].map(u32::to_le_bytes).concat();
        self.device.bar_write(table, 0x2000, &entry[..8]);
        self.device.bar_write(table, 0x2008, &entry[8..]);
        let _ = self.put(MSIX_CONTROL, 0x8000);
    }

    fn works(&mut self) {
        assert_eq!(self.device.decoded().len(), 3);
        assert_eq!(self.host.config(4) & 7, 7, "the device decodes and masters");
        self.device.bar_write(self.bar(), 0x10, &[0x5a]);
        assert_eq!(self.read(0x10, 1), [0x5a]);
        self.router.delivered();
        assert!(self.host.raise(0));
        assert_eq!(self.router.delivered().len(), 1, "its interrupt arrives");
    }

    fn reset_by(&mut self, way: Way) {
        let effect = match way {
            Way::Function => self.put(DEVICE_CONTROL, 0x8000),
            Way::Advanced => self.write(ADVANCED_CONTROL, &[1]),
            Way::Power => {
                let effect = self.put(POWER, 3);
                assert!(effect.decoding);
                self.settle();
                self.put(POWER, 0)
            }
            Way::Bus => self.device.reset(),
        };
        assert_eq!(effect, effects(true, false), "{way:?}");
    }

    fn is_fresh(&mut self, way: Way) {
        assert_eq!(self.u16(4), 0, "{way:?}");
        assert_eq!((self.u32(0x10), self.u32(0x14)), (0xc, 0), "{way:?}");
        assert_eq!((self.u32(0x18), self.u32(0x1c)), (0, 1), "{way:?}");
        assert_eq!(self.u16(MSIX_CONTROL), 0x0003, "{way:?}");
        assert_eq!(self.u16(POWER) & 3, 0, "{way:?}");
        assert_eq!(self.u16(DEVICE_CONTROL) & 0x8000, 0, "{way:?}");
        assert_eq!(self.device.decoded(), [], "{way:?}");
        assert_eq!(self.host.host_vectors(), None, "{way:?}");
    }
}

#[test]
fn after_every_reset_registers_are_fresh_and_the_device_works_again() {
    for way in WAYS {
        let mut setup = everything(0);
        setup.start();
        setup.works();
        setup.reset_by(way);
        setup.is_fresh(way);
        setup.settle();
        setup.is_fresh(way);
        assert_eq!(setup.host.config(4) & 7, 0, "{way:?}: silent");
        assert_eq!(setup.host.memory(setup.bar(), 0x10), 0, "{way:?}: cleared");
        let table = BarIndex::new(2).unwrap();
        let mut entry = [0; 16];
        setup.device.bar_read(table, 0x2000, &mut entry);
        assert_eq!(entry[12], 1, "{way:?}: masked");
        setup.start();
        setup.works();
    }
}

#[test]
fn after_every_reset_interrupts_of_all_kinds_are_as_after_reset() {
    let kinds = [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix];
    for (way, kind) in WAYS
        .into_iter()
        .flat_map(|way| kinds.map(|kind| (way, kind)))
    {
        let mut setup = everything(0);
        setup.start();
        let _ = setup.put(MSIX_CONTROL, 0);
        let turn_on = |setup: &mut Setup| match kind {
            IrqIndex::Msi => setup.put(MSI_CONTROL, 1),
            IrqIndex::Msix => setup.put(MSIX_CONTROL, 0x8000),
            _ => Effects::NONE,
        };
        let _ = turn_on(&mut setup);
        assert_eq!(setup.host.kind_on(), Some(kind));
        setup.reset_by(way);
        // The guest goes on at once: what it writes waits for the reset.
        setup.is_fresh(way);
        assert_eq!(setup.u16(MSI_CONTROL), 0x0180, "{way:?}");
        assert_eq!(setup.host.kind_on(), None, "{way:?} {kind:?}");
        let _ = setup.put(4, 7);
        let _ = turn_on(&mut setup);
        assert_eq!(setup.host.kind_on(), None, "{way:?} {kind:?}");
        setup.settle();
        assert_eq!(setup.host.kind_on(), Some(kind), "{way:?}");
        let closed = setup.host.config(4) & 0x400 != 0;
        assert_eq!(closed, kind != IrqIndex::Intx, "{way:?} {kind:?}: the pin");
    }
}

#[test]
fn a_linux_guest_saves_and_restores_around_a_reset() {
    for way in WAYS {
        let mut setup = everything(0);
        setup.start();
        let saved: Vec<u32> = (0..16).map(|at| setup.u32(at * 4)).collect();
        let (control, link, vectors) = (
            setup.u16(DEVICE_CONTROL),
            setup.u16(0x90),
            setup.u16(MSIX_CONTROL),
        );
        // The interrupt pin off and all else, then the reset.
        let _ = setup.put(4, 0x400);
        setup.settle();
        setup.reset_by(way);
        setup.settle();
        let _ = setup.put(DEVICE_CONTROL, control & 0x7fff);
        let _ = setup.put(0x90, link);
        for at in (1..16).rev() {
            let _ = setup.write(at * 4, &saved[usize::from(at)].to_le_bytes());
            setup.settle();
        }
        let table = BarIndex::new(2).unwrap();
        let _ = setup.put(MSIX_CONTROL, vectors | 0x4000);
        let entry = [0xfee0_0000_u32, 0, 0x41, 0].map(u32::to_le_bytes).concat();
        setup.device.bar_write(table, 0x2000, &entry[..8]);
        setup.device.bar_write(table, 0x2008, &entry[8..]);
        let _ = setup.put(MSIX_CONTROL, vectors);
        let now: Vec<u32> = (0..16).map(|at| setup.u32(at * 4)).collect();
        assert_eq!(now, saved, "{way:?}");
        assert_eq!(setup.u16(DEVICE_CONTROL), control, "{way:?}");
        setup.works();
    }
}

#[test]
fn a_device_that_keeps_its_settings_is_not_reset() {
    let mut setup = everything(NO_SOFT_RESET);
    setup.start();
    let before = setup.u32(0x10);
    let _ = setup.put(POWER, 3);
    assert_eq!(setup.device.decoded(), []);
    setup.settle();
    assert_eq!(setup.host.config(POWER) & 3, 3);
    let _ = setup.put(POWER, 0);
    setup.settle();
    assert_eq!(setup.u32(0x10), before);
    setup.works();
}

#[test]
fn outside_of_d0_no_bar_answers() {
    for state in [1, 2, 3] {
        let mut setup = everything(NO_SOFT_RESET);
        setup.start();
        let _ = setup.put(POWER, state);
        assert_eq!(setup.device.decoded(), [], "D{state}");
        let calls = setup.settle();
        let unmapped = calls
            .iter()
            .position(|call| call.starts_with("guest unmap"));
        let slept = calls
            .iter()
            .position(|call| call.starts_with("write 7 0x44"));
        assert!(unmapped.is_some() && unmapped < slept, "{calls:?}");
        assert_eq!(setup.host.config(POWER) & 3, state);
        let _ = setup.put(POWER, 0);
        setup.settle();
        setup.works();
    }
    // From D2 there is no way to D1, and from D3hot only one to D0.
    let mut setup = everything(0);
    for (state, then) in [(2, 2), (1, 2), (3, 3), (2, 3), (1, 3)] {
        let _ = setup.put(POWER, state);
        assert_eq!(setup.u16(POWER) & 3, then);
    }
}

#[test]
fn down_and_up_in_one_go_resets_all_the_same() {
    let mut setup = everything(0);
    setup.start();
    setup.device.bar_write(setup.bar(), 0x10, &[0xaa]);
    let _ = setup.put(POWER, 3);
    let _ = setup.put(POWER, 0);
    let calls = setup.settle();
    let power: Vec<_> = calls.iter().filter(|call| call.contains("0x44")).collect();
    assert_eq!(power, ["write 7 0x44 [3, 0]", "write 7 0x44 [0, 0]"]);
    assert_eq!(setup.host.memory(setup.bar(), 0x10), 0);
    setup.is_fresh(Way::Power);
    setup.start();
    setup.works();
}

#[test]
fn what_the_kernel_restores_on_waking_is_overwritten() {
    let mut setup = everything(0);
    setup.start();
    let _ = setup.put(POWER, 3);
    setup.settle();
    // The kernel has saved a command register that masters the bus.
    let _ = setup.put(4, 0);
    setup.settle();
    let _ = setup.put(POWER, 0);
    setup.settle();
    assert_eq!(setup.host.config(4) & 7, 0);
    assert_eq!(setup.device.command, Some(setup.host.config(4)));
}

#[test]
fn a_reset_wakes_a_sleeping_device() {
    for way in [Way::Function, Way::Advanced, Way::Bus] {
        let mut setup = everything(0);
        setup.start();
        let _ = setup.put(POWER, 3);
        setup.settle();
        setup.reset_by(way);
        setup.settle();
        setup.is_fresh(way);
        assert_eq!(setup.host.config(POWER) & 3, 0, "{way:?}");
        assert_eq!(setup.host.config(4) & 7, 0, "{way:?}");
        setup.start();
        setup.works();
    }
}

#[test]
fn a_device_that_fails_to_wake_is_not_mapped() {
    let mut setup = everything(0);
    setup.start();
    let _ = setup.put(POWER, 3);
    setup.settle();
    let _ = setup.put(POWER, 0);
    // Its command register, then its power state; the second time too.
    for _ in 0..3 {
        setup.host.refuse(Operation::Write, libc::EIO);
    }
    setup.settle();
    setup.start();
    assert_eq!(
        setup.host.config(POWER) & 3,
        0,
        "woken by the next settling"
    );
    setup.works();
}

#[test]
fn nothing_is_mapped_before_the_device_is_awake() {
    let mut setup = everything(NO_SOFT_RESET);
    setup.start();
    let _ = setup.put(POWER, 3);
    setup.settle();
    let _ = setup.put(POWER, 0);
    setup.host.refuse(Operation::Write, libc::EIO);
    let mapped = |calls: Vec<String>| calls.iter().any(|call| call.starts_with("guest map"));
    assert!(!mapped(setup.settle()), "its pages would fault");
    assert!(mapped(setup.settle()));
    setup.works();
}

#[test]
fn control_registers_get_their_values_after_reset() {
    for way in WAYS {
        let mut setup = everything(0);
        let _ = setup.put(DEVICE_CONTROL, 0x5c0f);
        let _ = setup.put(0xa8, 0x0001);
        let _ = setup.put(0x90, 0x00c8);
        assert_eq!(setup.host.config(DEVICE_CONTROL) & 0x7d10, 0x5c00);
        setup.reset_by(way);
        setup.settle();
        // As the host had set them up; the payload is no function's own.
        let kept = !matches!(way, Way::Bus);
        let payload = if kept { 0x00 } else { 0x20 };
        assert_eq!(setup.u16(DEVICE_CONTROL), 0x2810 | payload, "{way:?}");
        assert_eq!(setup.u16(0x90), if kept { 0x00c8 } else { 0 }, "{way:?}");
        assert_eq!(
            setup.host.config(DEVICE_CONTROL) & 0x7d10,
            0x2810,
            "{way:?}"
        );
        assert_eq!(setup.host.config(0xa8) & 0x035f, 0x0009, "{way:?}");
    }
}

#[test]
fn without_a_way_to_reset_there_is_none() {
    let mut setup = everything_as(0, FakeDevice::without_reset);
    assert_eq!(setup.u32(0x84) & 1 << 28, 0);
    assert_eq!(setup.u32(0x60) >> 24, 1);
    setup.start();
    let _ = setup.put(DEVICE_CONTROL, 0x8000);
    let _ = setup.write(ADVANCED_CONTROL, &[1]);
    setup.settle();
    setup.works();
    // The bus above can't be held back; the guest sees a reset device.
    let _ = setup.device.reset();
    setup.settle();
    setup.is_fresh(Way::Bus);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a guest did before, in whatever state, a reset makes the device
    /// fresh, and it works again.
    #[test]
    fn any_history(
        power in prop_oneof![Just(0), Just(NO_SOFT_RESET)],
        writes in proptest::collection::vec((0_u16..0x100, any::<u16>(), any::<bool>()), 0..24),
        way in 0_usize..4,
    ) {
        let mut setup = everything(power);
        setup.start();
        for (offset, value, settle) in writes {
            let _ = setup.put(offset, value);
            if settle {
                setup.settle();
            }
        }
        let way = match WAYS[way] {
            // It may keep its settings, or be asleep already.
            Way::Power => Way::Bus,
            other => other,
        };
        setup.reset_by(way);
        setup.settle();
        setup.is_fresh(way);
        setup.start();
        setup.works();
    }
}

#[path = "life_test.rs"]
mod life;

#[path = "undo_test.rs"]
mod undo;
