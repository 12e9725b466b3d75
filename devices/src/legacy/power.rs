use std::fmt::Debug;
use std::sync::Arc;

use crate::bus::BusDevice;

/// What the guest asked of, or reported to, its monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked. It may still reset itself afterwards.
    Panicked,
}

/// Where the devices of this room report. Called by the vCPU whose access it
/// was, with no lock held; must not block.
pub trait PowerEvents: Send + Sync + Debug {
    /// Takes note of `event`. The same event may be reported again.
    fn signal(&self, event: PowerEvent);
}

/// The sleep type of S5 (off): the DSDT's `\_S5` says the same.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// SLP_EN of the sleep control register; SLP_TYP stands in bits 4:2.
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers by which a guest with hardware-reduced ACPI switches itself
/// off or resets itself (ACPI 6.5 §4.8.3.7, §4.8.3.6), a byte each:
///
/// | offset | register | written | read |
/// |---|---|---|---|
/// | 0 | sleep control | SLP_EN with SLP_TYP 5: off | 0 |
/// | 1 | sleep status | ignored | 0: never woken |
/// | 2 | reset | [`Self::RESET_VALUE`]: reset | 0 |
///
/// Everything else that is written is ignored: S5 is the only state that the
/// DSDT offers.
#[derive(Debug)]
pub struct PowerBlock {
    events: Arc<dyn PowerEvents>,
}

impl PowerBlock {
    /// Ports in the block.
    pub const SIZE: u64 = 4;
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register.
    pub const RESET: u64 = 2;
    /// What resets the machine when it is written to the reset register.
    pub const RESET_VALUE: u8 = 0x52;

    /// A block that reports to `events`.
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PowerBlock {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..Self::SIZE).zip(data) {
            let sleep_type = byte >> 2 & 7;
            match port {
                Self::SLEEP_CONTROL if byte & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF => {
                    self.events.signal(PowerEvent::PowerOff);
                }
                Self::RESET if *byte == Self::RESET_VALUE => {
                    self.events.signal(PowerEvent::Reset);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    pub(in crate::legacy) struct Record {
        events: Mutex<Vec<PowerEvent>>,
    }

    impl Record {
        /// What was reported since the last call.
        pub(in crate::legacy) fn take(&self) -> Vec<PowerEvent> {
            std::mem::take(&mut self.events.lock().unwrap())
        }
    }

    impl PowerEvents for Record {
        fn signal(&self, event: PowerEvent) {
            self.events.lock().unwrap().push(event);
        }
    }

    #[test]
    fn only_the_off_state_switches_off() {
        let record = Arc::new(Record::default());
        let block = PowerBlock::new(record.clone());
        for value in 0..=255_u8 {
            block.write(PowerBlock::SLEEP_CONTROL, &[value]);
            let off = value & 0x3c == 0x34;
            let expected: &[_] = if off { &[PowerEvent::PowerOff] } else { &[] };
            assert_eq!(record.take(), expected, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let record = Arc::new(Record::default());
        let block = PowerBlock::new(record.clone());
        for value in 0..=255_u8 {
            block.write(PowerBlock::RESET, &[value]);
            let reset = value == PowerBlock::RESET_VALUE;
            let expected: &[_] = if reset { &[PowerEvent::Reset] } else { &[] };
            assert_eq!(record.take(), expected, "{value:#x}");
        }
    }

    #[test]
    fn wide_accesses_reach_each_register() {
        let record = Arc::new(Record::default());
        let block = PowerBlock::new(record.clone());
        block.write(0, &[0x34, 0xff, PowerBlock::RESET_VALUE, 0]);
        assert_eq!(record.take(), [PowerEvent::PowerOff, PowerEvent::Reset]);
        block.write(1, &[0x34, 0x34, 0x34]);
        block.write(u64::MAX, &[0x34, 0x34]);
        assert_eq!(record.take(), []);
        let mut data = [0x55; 4];
        block.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
