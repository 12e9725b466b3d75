use std::sync::Arc;

use super::power::{PowerEvent, PowerEvents};
use crate::bus::BusDevice;

/// The guest's kernel panicked.
const PANICKED: u8 = 1 << 0;
/// The guest's kernel panicked and boots its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The port at which a guest says that its kernel panicked (QEMU's
/// docs/specs/pvpanic.rst, linux/pvpanic.h). ACPI names it `QEMU0001`.
///
/// Reading tells which reports are understood. A guest that goes on into its
/// crash kernel is not reported: it handles the crash itself, and whoever ended
/// it here would lose the dump.
#[derive(Debug)]
pub struct PvPanic {
    events: Arc<dyn PowerEvents>,
}

impl PvPanic {
    /// Ports that it answers.
    pub const SIZE: u64 = 1;

    /// A port that reports to `events`.
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0
            && let Some(byte) = data.first_mut()
        {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(byte) = data.first().filter(|_| offset == 0) else {
            return;
        };
        if byte & CRASH_LOADED != 0 {
            log::info!("the guest's kernel panicked and starts its crash kernel");
        } else if byte & PANICKED != 0 {
            self.events.signal(PowerEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::power::tests::Record;
    use super::*;

    #[test]
    fn reports_a_panic() {
        let record = Arc::new(Record::default());
        let device = PvPanic::new(record.clone());
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        device.write(0, &[PANICKED]);
        assert_eq!(record.take(), [PowerEvent::Panicked]);
    }

    #[test]
    fn leaves_a_crash_kernel_alone() {
        let record = Arc::new(Record::default());
        let device = PvPanic::new(record.clone());
        device.write(0, &[CRASH_LOADED]);
        device.write(0, &[PANICKED | CRASH_LOADED]);
        device.write(0, &[0xfc]);
        device.write(0, &[]);
        device.write(1, &[PANICKED]);
        device.write(u64::MAX, &[PANICKED]);
        assert_eq!(record.take(), []);
    }
}
