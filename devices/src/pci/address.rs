use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The address of a PCI function: segment, bus, device, function ("BDF").
///
/// Host and guest use the same type. It is written `SSSS:BB:DD.F` in
/// hexadecimal; the segment may be left out and is then 0.
///
/// ```
/// use devices::pci::PciAddress;
/// let address: PciAddress = "0000:01:00.0".parse()?;
/// assert_eq!(address.bus(), 1);
/// assert_eq!("01:00.0".parse(), Ok(address));
/// # Ok::<(), devices::pci::PciAddressError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "String", try_from = "String")
)]
pub struct PciAddress {
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text or a set of numbers is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PciAddressError {
    /// The text has not the form of an address.
    #[error(
        "'{0}' is not a PCI address: write it as SSSS:BB:DD.F in hexadecimal, for example 0000:01:00.0 (see `lspci -D`)"
    )]
    Malformed(String),
    /// A part is larger than PCI allows.
    #[error("'{text}' is not a PCI address: {part} {value:#x} is above {max:#x}")]
    OutOfRange {
        /// The whole address as it was given.
        text: String,
        /// Which part.
        part: &'static str,
        /// Its value.
        value: u32,
        /// The largest that PCI allows.
        max: u32,
    },
}

impl PciAddress {
    /// An address from its parts: device 0 to 31, function 0 to 7.
    ///
    /// # Errors
    /// [`PciAddressError::OutOfRange`] for a larger device or function.
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Result<Self, PciAddressError> {
        let check = |part, value: u8, max: u8| {
            if value <= max {
                return Ok(());
            }
            Err(PciAddressError::OutOfRange {
                text: format!("{segment:04x}:{bus:02x}:{device:02x}.{function:x}"),
                part,
                value: value.into(),
                max: max.into(),
            })
        };
        check("device", device, 0x1f)?;
        check("function", function, 7)?;
        Ok(Self {
            segment,
            bus,
            device,
            function,
        })
    }

    /// The address on `segment` 0 that a 16-bit requester id names: bus in
    /// bits 15:8, device in 7:3, function in 2:0 (PCIe 6.0 §2.2.4.2).
    pub const fn from_requester_id(id: u16) -> Self {
        Self {
            segment: 0,
            bus: (id >> 8) as u8,
            device: (id >> 3) as u8 & 0x1f,
            function: id as u8 & 7,
        }
    }

    /// The PCI segment group, called domain by Linux.
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// The 16-bit requester id within the segment (PCIe 6.0 §2.2.4.2).
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | (self.device as u16) << 3 | self.function as u16
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment, self.bus, self.device, self.function
        )
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for PciAddress {
    type Error = PciAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || PciAddressError::Malformed(text.to_owned());
        let number = |part: &str, digits: usize| {
            let fits = !part.is_empty() && part.len() <= digits;
            if !fits || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            u32::from_str_radix(part, 16).map_err(|_| malformed())
        };
        let (front, function) = text.rsplit_once('.').ok_or_else(malformed)?;
        let (front, device) = front.rsplit_once(':').ok_or_else(malformed)?;
        let (segment, bus) = front.rsplit_once(':').unwrap_or(("0", front));
        let bounded = |part, value: u32, max: u32| {
            if value <= max {
                return Ok(value);
            }
            Err(PciAddressError::OutOfRange {
                text: text.to_owned(),
                part,
                value,
                max,
            })
        };
        Ok(Self {
            segment: number(segment, 4)? as u16,
            bus: number(bus, 2)? as u8,
            device: bounded("device", number(device, 2)?, 0x1f)? as u8,
            function: bounded("function", number(function, 1)?, 7)? as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_that_users_type() {
        let full: PciAddress = "0000:01:00.0".parse().unwrap();
        assert_eq!("01:00.0".parse(), Ok(full));
        assert_eq!("0:1:0.0".parse(), Ok(full));
        let upper: PciAddress = "ABCD:EF:1F.7".parse().unwrap();
        assert_eq!(upper.to_string(), "abcd:ef:1f.7");
    }

    #[test]
    fn malformed_text_is_named() {
        for text in [
            "",
            "1",
            "01:00",
            "0000:01:00",
            "01.0",
            "x:1:0.0",
            "00000:01:00.0",
            "01:00.0.0",
            "+1:00.0",
            "01:00.8x",
            ":01:00.0",
            "01:-1.0",
            "nvme0",
            "0000:0100.0",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn parts_out_of_range_are_named() {
        let error = "01:20.0".parse::<PciAddress>().unwrap_err().to_string();
        assert!(error.contains("device 0x20 is above 0x1f"), "{error}");
        let error = "01:00.8".parse::<PciAddress>().unwrap_err().to_string();
        assert!(error.contains("function 0x8 is above 0x7"), "{error}");
        assert!(PciAddress::new(0, 0, 32, 0).is_err());
        assert!(PciAddress::new(0, 0, 0, 8).is_err());
    }

    proptest! {
        #[test]
        fn text_and_requester_id_go_round(id: u16, segment: u16) {
            let on_zero = PciAddress::from_requester_id(id);
            prop_assert_eq!(on_zero.requester_id(), id);
            let address = PciAddress::new(segment, on_zero.bus(), on_zero.device(), on_zero.function()).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-fx:. ]{0,16}") {
            let _ = text.parse::<PciAddress>();
        }
    }
}
