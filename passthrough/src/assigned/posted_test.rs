use super::*;
use proptest::prelude::*;

const CONTROL: u16 = 0x42;
const ON: u16 = 0x8000;
const FUNCTION_MASK: u16 = 0x4000;
/// Four entries of 16 bytes at 0x2000.
const TABLE: (u64, u64) = (BAR + 0x2000, 64);

impl Setup {
    fn control(&mut self, value: u16) {
        let _ = self.write(CONTROL, &value.to_le_bytes());
    }

    fn posted(&self) -> Vec<(u64, u64)> {
        self.mapper.posted()
    }
}

#[test]
fn writes_to_the_table_are_late_only_while_no_vector_can_be_delivered() {
    let mut setup = plain_decoded();
    assert_eq!(setup.posted(), [TABLE], "off");
    setup.control(ON | FUNCTION_MASK);
    assert_eq!(setup.posted(), [TABLE], "masked");
    setup.control(ON);
    assert_eq!(setup.posted(), [], "before the guest can go on");
    setup.settle();
    assert_eq!(setup.posted(), []);
    setup.control(ON | FUNCTION_MASK);
    assert_eq!(setup.posted(), [TABLE]);
    setup.control(ON);
    setup.control(0);
    assert_eq!(setup.posted(), [TABLE]);
}

#[test]
fn nothing_is_late_where_the_table_does_not_answer() {
    let mut setup = plain();
    setup.place(BAR);
    setup.settle();
    assert_eq!(setup.posted(), [], "memory is not decoded");
    let _ = setup.command(MEMORY);
    assert_eq!(setup.posted(), [], "it answers once that is settled");
    setup.settle();
    assert_eq!(setup.posted(), [TABLE]);
    // Another BAR is in the way from now on.
    setup.device.release(&[]);
    assert_eq!(setup.posted(), []);
    setup.settle();
    assert_eq!(setup.posted(), [TABLE]);
    setup.place(BAR + 0x10_0000);
    setup.settle();
    assert_eq!(setup.posted(), [(TABLE.0 + 0x10_0000, 64)]);
}

#[test]
fn a_device_that_leaves_or_is_reset_has_its_table_at_once() {
    let mut setup = plain_decoded();
    setup.control(ON);
    let _ = setup.device.reset();
    setup.device.release(&[]);
    setup.settle();
    assert_eq!(setup.posted(), [], "a reset function decodes nothing");
    setup.place(BAR);
    let _ = setup.command(MEMORY);
    setup.settle();
    assert_eq!(setup.posted(), [TABLE]);
    // The test has its file open still.
    assert!(setup.device.surrender().is_err());
    assert_eq!(setup.posted(), []);
}

proptest! {
    /// Whatever the guest does: late writes mean that no vector can be
    /// delivered, and are where the table answers.
    #[test]
    fn late_means_idle(steps in prop::collection::vec((0u8..5, any::<bool>(), any::<bool>()), 1..40)) {
        let mut setup = plain_decoded();
        let (mut control, mut on, mut address) = (0, true, BAR);
        for (step, a, b) in steps {
            match step {
                0 | 1 => {
                    control = if a { ON } else { 0 } | if b { FUNCTION_MASK } else { 0 };
                    setup.control(control);
                }
                2 => {
                    on = a;
                    let _ = setup.command(if on { MEMORY } else { 0 });
                }
                3 => {
                    address = if a { BAR } else { BAR + 0x10_0000 };
                    setup.place(address);
                }
                _ => {
                    let _ = setup.device.reset();
                    // A BAR at 0 is one without an address.
                    (control, on, address) = (0, false, 0);
                }
            }
            // As the wiring does after each write.
            let decoded = setup.device.decoded();
            setup.device.release(&decoded);
            setup.settle();
            let idle = control & ON == 0 || control & FUNCTION_MASK != 0;
            let expected = (on && idle && address != 0).then_some((address + 0x2000, 64));
            prop_assert_eq!(setup.posted(), Vec::from_iter(expected));
        }
    }
}
