//! What the registers of capabilities say, in words.

use std::ops::Range;

use devices::pci::ConfigSpace;

use super::data::Detail;

/// Collects details of the capability at one place.
struct Details<'a> {
    config: &'a ConfigSpace,
    place: Range<u16>,
    list: Vec<Detail>,
}

impl Details<'_> {
    fn say(&mut self, name: &str, value: impl ToString) {
        self.list.push(Detail {
            name: name.to_owned(),
            value: value.to_string(),
        });
    }

    fn flag(&mut self, name: &str, set: bool) {
        self.say(name, if set { "yes" } else { "no" });
    }

    fn u8(&self, offset: u16) -> u8 {
        self.config.u8(self.place.start.saturating_add(offset))
    }

    fn u16(&self, offset: u16) -> u16 {
        self.config.u16(self.place.start.saturating_add(offset))
    }

    fn u32(&self, offset: u16) -> u32 {
        self.config.u32(self.place.start.saturating_add(offset))
    }
}

/// What a capability says of itself. Its layout must be known for that; what
/// runs past its end is read all the same, and is zero past the end of config
/// space.
pub(super) fn details(
    config: &ConfigSpace,
    id: u16,
    extended: bool,
    place: Range<u16>,
) -> Vec<Detail> {
    let mut details = Details {
        config,
        place,
        list: Vec::new(),
    };
    match (extended, id) {
        (false, 0x01) => power(&mut details),
        (false, 0x05) => msi(&mut details),
        (false, 0x10) => express(&mut details),
        (false, 0x11) => msix(&mut details),
        (false, 0x13) => {
            let can_reset = details.u8(3) & 2 != 0;
            details.flag("function level reset", can_reset);
        }
        (false, 0x14) => {
            let entries = details.u8(2) & 0x3f;
            details.say("entries", entries);
        }
        (true, 0x01) => errors(&mut details),
        (true, 0x02 | 0x09) => {
            let channels = (details.u32(4) & 7) + 1;
            details.say("channels", channels);
        }
        (true, 0x03) => serial_number(&mut details),
        (true, 0x0b) => vendor(&mut details),
        (true, 0x0f) => {
            let enabled = details.u16(6) & 0x8000 != 0;
            details.flag("enabled", enabled);
        }
        (true, 0x10) => virtual_functions(&mut details),
        (true, 0x15) => resizable(&mut details),
        (true, 0x18) => latency(&mut details),
        (true, 0x1b) => {
            let bits = details.u16(4) >> 8 & 0x1f;
            details.say("bits", bits);
        }
        (true, 0x23) => {
            let (vendor, id) = (details.u16(4), details.u16(8));
            details.say("vendor", format!("{vendor:04x}"));
            details.say("id", format!("{id:#06x}"));
        }
        _ => {}
    }
    details.list
}

/// PCI PM 1.2 §3.2.
fn power(details: &mut Details<'_>) {
    let (capabilities, control) = (details.u16(2), details.u16(4));
    let mut states = String::from("D0");
    for (bit, state) in [(1 << 9, " D1"), (1 << 10, " D2")] {
        if capabilities & bit != 0 {
            states += state;
        }
    }
    details.say("states", states + " D3hot");
    let now = ["D0", "D1", "D2", "D3hot"];
    details.say("state", now[usize::from(control & 3)]);
    details.flag("keeps its settings in D3hot", control & 8 != 0);
}

/// PCIe 6.0 §7.7.1.
fn msi(details: &mut Details<'_>) {
    let control = details.u16(2);
    details.say("vectors", 1 << (control >> 1 & 7).min(5));
    details.flag("64-bit addresses", control & 1 << 7 != 0);
    details.flag("masks", control & 1 << 8 != 0);
    details.flag("enabled", control & 1 != 0);
}

/// PCIe 6.0 §7.7.2.
fn msix(details: &mut Details<'_>) {
    let (control, table, pending) = (details.u16(2), details.u32(4), details.u32(8));
    let place = |register: u32| format!("BAR {} at {:#x}", register & 7, register & !7);
    details.say("vectors", (control & 0x7ff) + 1);
    details.say("table", place(table));
    details.say("pending bits", place(pending));
    details.flag("enabled", control & 0x8000 != 0);
}

/// PCIe 6.0 §7.5.3.
fn express(details: &mut Details<'_>) {
    let flags = details.u16(2);
    let kind = match flags >> 4 & 0xf {
        0x0 => "endpoint",
        0x1 => "legacy endpoint",
        0x4 => "root port",
        0x5 => "upstream port",
        0x6 => "downstream port",
        0x7 => "bridge to conventional PCI",
        0x8 => "bridge from conventional PCI",
        0x9 => "integrated endpoint",
        0xa => "event collector",
        _ => "unknown",
    };
    details.say("type", kind);
    details.say("version", flags & 0xf);
    let (capabilities, control) = (details.u32(4), details.u16(8));
    let payload = |code: u32| format!("{} bytes", 128_u32 << (code & 7));
    details.say("largest payload", payload(capabilities));
    details.say("payload", payload(u32::from(control >> 5)));
    details.say("read request", payload(u32::from(control >> 12)));
    details.flag("function level reset", capabilities & 1 << 28 != 0);
    if matches!(flags >> 4 & 0xf, 0x9 | 0xa) {
        return;
    }
    let link = |register: u32| {
        let speed = match register & 0xf {
            1 => "2.5 GT/s",
            2 => "5 GT/s",
            3 => "8 GT/s",
            4 => "16 GT/s",
            5 => "32 GT/s",
            6 => "64 GT/s",
            _ => "unknown speed",
        };
        format!("{speed} x{}", register >> 4 & 0x3f)
    };
    let (capabilities, status) = (details.u32(0x0c), details.u16(0x12));
    details.say("best link", link(capabilities));
    details.say("link", link(status.into()));
}

/// PCIe 6.0 §7.8.4.
fn errors(details: &mut Details<'_>) {
    let (uncorrectable, correctable) = (details.u32(0x04), details.u32(0x10));
    details.say("uncorrectable errors", format!("{uncorrectable:#x}"));
    details.say("correctable errors", format!("{correctable:#x}"));
}

/// PCIe 6.0 §7.9.3.
fn serial_number(details: &mut Details<'_>) {
    let number = u64::from(details.u32(8)) << 32 | u64::from(details.u32(4));
    let bytes = number.to_be_bytes().map(|byte| format!("{byte:02x}"));
    details.say("serial number", bytes.join("-"));
}

/// PCIe 6.0 §7.9.5.
fn vendor(details: &mut Details<'_>) {
    let header = details.u32(4);
    details.say("id", format!("{:#06x}", header & 0xffff));
    details.say("revision", header >> 16 & 0xf);
    details.say("length", header >> 20);
}

/// PCIe 6.0 §9.3.3.
fn virtual_functions(details: &mut Details<'_>) {
    let (control, total, now) = (details.u16(0x08), details.u16(0x0e), details.u16(0x10));
    details.say("possible virtual functions", total);
    details.say("virtual functions", if control & 1 != 0 { now } else { 0 });
}

/// PCIe 6.0 §7.8.6.
fn resizable(details: &mut Details<'_>) {
    let count = (details.u32(8) >> 5 & 7) as u16;
    for entry in 0..count {
        let at = 4 + entry * 8;
        let (sizes, control) = (details.u32(at), details.u32(at + 4));
        let bar = format!("BAR {}", control & 7);
        let now = size(control >> 8 & 0x3f);
        let possible: Vec<_> = (0..28)
            .filter(|code| sizes >> (code + 4) & 1 != 0)
            .map(size)
            .collect();
        details.say(&bar, format!("{now} of {}", possible.join(" ")));
    }
}

/// A size that is coded as a power of two MiB.
fn size(code: u32) -> String {
    match code {
        0..10 => format!("{} MiB", 1 << code),
        10..20 => format!("{} GiB", 1 << (code - 10)),
        20..44 => format!("{} TiB", 1 << (code - 20)),
        _ => format!("2^{} bytes", code + 20),
    }
}

/// PCIe 6.0 §7.8.2.
fn latency(details: &mut Details<'_>) {
    for (name, offset) in [("snooped", 4), ("not snooped", 6)] {
        let register = details.u16(offset);
        let value = u64::from(register & 0x3ff) << (u64::from(register >> 10 & 7) * 5);
        details.say(name, format!("{value} ns"));
    }
}
