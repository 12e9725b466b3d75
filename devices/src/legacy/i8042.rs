use std::sync::Arc;

use super::power::{PowerEvent, PowerEvents};
use crate::bus::BusDevice;

/// The data port, 0x60, from the block's start.
const DATA: u64 = 0;
/// The status (read) and command (write) port, 0x64.
const COMMAND: u64 = 4;
/// Status: the output buffer holds a byte for the guest. Bit 1, "busy with
/// what the guest wrote", is never set.
const OUTPUT_FULL: u8 = 1 << 0;

/// The reset line of a keyboard controller, without the controller.
///
/// `outb(0xfe, 0x64)` resets a PC; Linux does so with `reboot=k`, and as the
/// next thing to try when the ACPI reset register did nothing. First it waits
/// until the status says "not busy", for up to 65,536 reads.
///
/// There is no keyboard, so the FADT and the DSDT don't name a controller and
/// Linux never probes for one. Without ACPI, or with `i8042.nopnp`, it does:
///
/// * A status of 0 ("empty") would cost half a second. Linux sends a command
///   and waits for the answer, 10,000 reads of the status 50 µs apart.
/// * All ones ("full and busy") would be seen as "no controller" at once, but
///   would make the reboot wait.
/// * So the status is "full, not busy", for ever: draining the buffer does not
///   empty it, Linux says "No controller found" after 17 reads, and the reboot
///   doesn't wait.
#[derive(Debug)]
pub struct I8042 {
    events: Arc<dyn PowerEvents>,
}

impl I8042 {
    /// The first port of the block.
    pub const BASE: u64 = 0x60;
    /// Ports in the block. 0x61 between them (timer gate and speaker) is the
    /// hypervisor's, or reads as all ones.
    pub const SIZE: u64 = 5;

    /// A reset line that reports to `events`.
    pub fn new(events: Arc<dyn PowerEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (port, byte) in (offset..Self::SIZE).zip(data) {
            *byte = match port {
                COMMAND => OUTPUT_FULL,
                DATA => 0,
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..Self::SIZE).zip(data) {
            // Commands 0xf0 to 0xff pull output lines low for a moment, those
            // whose bit is 0. Line 0 is the CPU's reset.
            if port == COMMAND && byte & 0xf1 == 0xf0 {
                self.events.signal(PowerEvent::Reset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::power::tests::Record;
    use super::*;

    fn read(device: &I8042, offset: u64) -> u8 {
        let mut data = [0x55];
        device.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn pulsing_line_0_resets() {
        let record = Arc::new(Record::default());
        let device = I8042::new(record.clone());
        for command in 0..=255_u8 {
            device.write(COMMAND, &[command]);
            let reset = command >= 0xf0 && command % 2 == 0;
            let expected: &[_] = if reset { &[PowerEvent::Reset] } else { &[] };
            assert_eq!(record.take(), expected, "{command:#x}");
        }
        device.write(DATA, &[0xfe]);
        device.write(1, &[0xfe; 3]);
        device.write(u64::MAX, &[0xfe; 2]);
        assert_eq!(record.take(), []);
    }

    /// The loops of Linux's drivers/input/serio/i8042.c (i8042_flush) and
    /// arch/x86/kernel/reboot.c (kb_wait).
    #[test]
    fn linux_neither_finds_a_controller_nor_waits() {
        let device = I8042::new(Arc::new(Record::default()));
        let mut drained = 0;
        while read(&device, COMMAND) & 1 != 0 && drained <= 16 {
            read(&device, DATA);
            drained += 1;
        }
        assert!(drained > 16, "Linux would go on and probe");
        assert_eq!(read(&device, COMMAND) & 2, 0, "Linux would wait");
        // pit_calibrate_tsc() spins until bit 5 of port 0x61 is set.
        assert_ne!(read(&device, 1) & 0x20, 0);
    }
}
