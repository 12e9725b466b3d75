use serde::{Deserialize, Serialize};

use super::attributes::Reader;

/// A PCIe link, from the device's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What the device can do.
    pub max: LinkRate,
    /// What it runs at now. Asked only while the device is awake (D0), for the
    /// question wakes it; and not of a VF, whose PF has the link.
    pub current: Option<LinkRate>,
}

/// How fast a link is; 0 where the kernel does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRate {
    /// Megatransfers a second on each lane: 2500 for the first generation.
    pub speed: u32,
    /// Lanes.
    pub width: u8,
}

impl Link {
    /// The link of a function that has one. Only PCIe functions have the
    /// attributes (drivers/pci/pci-sysfs.c, `pcie_dev_attrs_are_visible`).
    pub(super) fn read(reader: &mut Reader<'_>, awake: bool) -> Option<Self> {
        if !reader.has("max_link_speed") {
            return None;
        }
        if reader.has("physfn") {
            return Some(Self::default());
        }
        let mut rate = |speed, width| LinkRate {
            speed: reader
                .text(speed)
                .and_then(|text| transfers(&text))
                .unwrap_or(0),
            width: reader
                .text(width)
                .and_then(|text| text.parse().ok())
                // What the kernel writes for "unknown".
                .filter(|width| *width != u8::MAX)
                .unwrap_or(0),
        };
        Some(Self {
            max: rate("max_link_speed", "max_link_width"),
            current: awake.then(|| rate("current_link_speed", "current_link_width")),
        })
    }
}

/// Megatransfers in `8.0 GT/s PCIe` or, up to Linux 5.6, `8 GT/s`.
fn transfers(text: &str) -> Option<u32> {
    let (number, _) = text.split_once(" GT/s")?;
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let tenths: u32 = (tenths.len() == 1).then(|| tenths.parse().ok())??;
    let whole: u32 = whole.parse().ok()?;
    whole.checked_mul(1000)?.checked_add(tenths * 100)
}

#[cfg(test)]
mod tests {
    use super::transfers;

    #[test]
    fn speeds_as_the_kernel_writes_them() {
        for (text, speed) in [
            ("2.5 GT/s PCIe", Some(2_500)),
            ("64.0 GT/s PCIe", Some(64_000)),
            ("8 GT/s", Some(8_000)),
            ("Unknown", None),
            ("", None),
            ("x GT/s", None),
            ("1.55 GT/s", None),
            ("4294967295 GT/s", None),
        ] {
            assert_eq!(transfers(text), speed, "{text}");
        }
    }
}
