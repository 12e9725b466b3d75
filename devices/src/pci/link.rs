use super::capability::capabilities;
use super::function::PciFunction;

/// A PCI Express link, as the port above must show it to fit the device below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The largest speed, as the link capabilities code it: 1 is 2.5 GT/s,
    /// 2 is 5 GT/s, and so on to 6, 64 GT/s (PCIe 6.0 §7.5.3.6).
    pub max_speed: u8,
    /// The largest number of lanes.
    pub max_width: u8,
    /// The speed now, at most `max_speed`.
    pub speed: u8,
    /// The number of lanes now, at most `max_width`.
    pub width: u8,
    /// The largest payload that the device takes: 128 bytes shifted left by
    /// this, 0 to 5 (PCIe 6.0 §7.5.3.3).
    pub max_payload: u8,
    /// The payload size that the device is set to, coded likewise.
    pub payload: u8,
}

impl Default for Link {
    /// The slowest: 2.5 GT/s, one lane, payloads of 128 bytes.
    fn default() -> Self {
        Self {
            max_speed: 1,
            max_width: 1,
            speed: 1,
            width: 1,
            max_payload: 0,
            payload: 0,
        }
    }
}

/// The PCI Express capability, and its registers (PCIe 6.0 §7.5.3).
const PCI_EXPRESS: u8 = 0x10;
const FLAGS: u16 = 0x02;
const DEVICE_CAPABILITIES: u16 = 0x04;
const DEVICE_CONTROL: u16 = 0x08;
const LINK_CAPABILITIES: u16 = 0x0c;
const LINK_STATUS: u16 = 0x12;

const TYPE_ENDPOINT: u16 = 0x0;
const TYPE_LEGACY_ENDPOINT: u16 = 0x1;

const FASTEST: u8 = 6;
const WIDEST: u8 = 32;
const LARGEST_PAYLOAD: u8 = 5;

impl Link {
    /// The link that `function` says it is at the end of. Nothing when it is
    /// no endpoint with a link: conventional PCI, or integrated into the root
    /// complex.
    ///
    /// Virtual functions have link registers of zero (PCIe 6.0 §9.3.5.6), and
    /// emulated devices numbers that no link has: the slowest link then.
    pub fn of(function: &mut dyn PciFunction) -> Option<Self> {
        let read = |offset, data: &mut [u8]| function.config_read(offset, data);
        let at = capabilities(read).find(|found| found.id == PCI_EXPRESS)?;
        let mut dword = |register| {
            let mut data = [0; 4];
            function.config_read(at.offset.saturating_add(register), &mut data);
            u32::from_le_bytes(data)
        };
        let kind = (dword(FLAGS - 2) >> 20) as u16 & 0xf;
        if kind != TYPE_ENDPOINT && kind != TYPE_LEGACY_ENDPOINT {
            return None;
        }
        let capabilities = dword(LINK_CAPABILITIES);
        let status = dword(LINK_STATUS - 2) >> 16;
        let max_speed = (capabilities as u8 & 0xf).clamp(1, FASTEST);
        let max_width = width(capabilities).clamp(1, WIDEST);
        let max_payload = (dword(DEVICE_CAPABILITIES) as u8 & 7).min(LARGEST_PAYLOAD);
        let payload = (dword(DEVICE_CONTROL) >> 5) as u8 & 7;
        Some(Self {
            max_speed,
            max_width,
            speed: (status as u8 & 0xf).clamp(1, max_speed),
            width: width(status).clamp(1, max_width),
            max_payload,
            payload: payload.min(max_payload),
        })
    }
}

/// Bits 9:4 of link capabilities and of link status.
fn width(register: u32) -> u8 {
    (register >> 4) as u8 & 0x3f
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeFunction;
    use super::*;

    /// The link of an endpoint with these registers.
    fn link(flags: u16, registers: [(u16, u32); 4]) -> Option<Link> {
        let function = FakeFunction::with_bars(Vec::new());
        let mut function = function.lock().unwrap();
        function.space[0x06] = 0x10;
        function.space[0x34] = 0x40;
        function.space[0x40..0x42].copy_from_slice(&[0x01, 0x60]);
        function.space[0x60] = 0x10;
        function.space[0x62..0x64].copy_from_slice(&flags.to_le_bytes());
        for (register, value) in registers {
            let at = 0x60 + usize::from(register);
            function.space[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        Link::of(&mut *function)
    }

    #[test]
    fn what_the_device_says() {
        let found = link(
            0x0002,
            [(4, 2), (8, 0x20), (0x0c, 0x43), (0x10, 0x0022_0000)],
        );
        let expected = Link {
            max_speed: 3,
            max_width: 4,
            speed: 2,
            width: 2,
            max_payload: 2,
            payload: 1,
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn a_link_of_zeros_is_the_slowest() {
        let zeros = [(4, 0), (8, 0), (0x0c, 0), (0x10, 0)];
        assert_eq!(link(0x0012, zeros), Some(Link::default()));
    }

    #[test]
    fn hostile_numbers_are_cut() {
        let ones = [
            (4, u32::MAX),
            (8, u32::MAX),
            (0x0c, u32::MAX),
            (0x10, u32::MAX),
        ];
        let found = link(0x0002, ones).unwrap();
        assert_eq!((found.max_speed, found.speed), (6, 6));
        assert_eq!((found.max_width, found.width), (32, 32));
        assert_eq!((found.max_payload, found.payload), (5, 5));
    }

    #[test]
    fn only_endpoints_have_one() {
        let zeros = [(4, 0), (8, 0), (0x0c, 0), (0x10, 0)];
        for flags in [0x0042, 0x0092, 0x0072] {
            assert_eq!(link(flags, zeros), None, "{flags:#06x}");
        }
        let conventional = FakeFunction::with_bars(Vec::new());
        assert_eq!(Link::of(&mut *conventional.lock().unwrap()), None);
    }
}
