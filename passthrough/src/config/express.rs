use devices::pci::ConfigSpace;

use super::ConfigError;
use super::rule::{READ, Rule, Treatment, rule};

const FLAGS: u16 = 0x02;
const DEVICE_CAPABILITIES: u16 = 0x04;
/// The device control register, from the capability's start
/// (PCIe 6.0 §7.5.3.4).
pub(crate) const DEVICE_CONTROL: u16 = 0x08;
/// Initiate Function Level Reset; the bit reads as zero.
pub(crate) const FUNCTION_LEVEL_RESET: u16 = 1 << 15;

const TYPE_ENDPOINT: u8 = 0x0;
const TYPE_LEGACY_ENDPOINT: u8 = 0x1;
const TYPE_INTEGRATED_ENDPOINT: u8 = 0x9;

/// The capabilities without slot power (bits 27:18), which is the slot's, and
/// without phantom functions (4:3), which the kernel never enables.
const DEVCAP_SHOWN: u32 = !(0x3ff << 18 | 3 << 3);
const DEVCAP_FLR: u32 = 1 << 28;
/// What the guest may change: not the error reporting enables (3:0), which
/// serve the host's error handling, nor phantom functions (9), nor the reset
/// (15), which is carried out by itself.
const DEVCTL_WRITABLE: u32 = 0x7df0;
/// Without what needs the host's topology to agree: ARI forwarding (5), atomic
/// routing (6), LTR (11), 10-bit tags (17:16), OBFF (19:18).
const DEVCAP2_SHOWN: u32 = !(1 << 5 | 1 << 6 | 1 << 11 | 3 << 16 | 3 << 18);
/// Completion timeout (4:0), atomic requests (6), ID-based ordering (9:8).
const DEVCTL2_WRITABLE: u32 = 0x035f;

/// What the guest sees of a PCI Express capability.
pub(super) enum Express {
    /// The rules for it.
    Shown {
        rules: Vec<Rule>,
        /// The function can be reset by its control register.
        flr: bool,
    },
    /// The device looks like conventional PCI.
    Hidden,
}

/// The rules of the capability at `at` (PCIe 6.0 §7.5.3).
///
/// The guest sees the function on its root bus, where there is no link and
/// where only integrated endpoints live: an endpoint becomes one, and its link
/// registers are gone. A legacy endpoint may not be integrated (§1.3.2.3); it
/// loses the capability and looks like conventional PCI.
///
/// # Errors
/// When it is not an endpoint.
pub(super) fn rules(
    snapshot: &ConfigSpace,
    at: u16,
    can_reset: bool,
) -> Result<Express, ConfigError> {
    let flags = snapshot.u16(at + FLAGS);
    match (flags >> 4) as u8 & 0xf {
        TYPE_ENDPOINT | TYPE_INTEGRATED_ENDPOINT => {}
        TYPE_LEGACY_ENDPOINT => return Ok(Express::Hidden),
        other => return Err(ConfigError::PortType(other)),
    }
    // Some virtual functions claim version 0, which does not exist.
    let version = (flags & 0xf).max(1);
    let message = flags & 0x3e00;
    let shown = u32::from(message | u16::from(TYPE_INTEGRATED_ENDPOINT) << 4 | version);
    let devcap = snapshot.u32(at + DEVICE_CAPABILITIES);
    let flr = can_reset && devcap & DEVCAP_FLR != 0;
    let devcap_shown = if flr {
        DEVCAP_SHOWN
    } else {
        DEVCAP_SHOWN & !DEVCAP_FLR
    };
    let device = |writable| Treatment::Device { writable };
    let mut rules = vec![
        rule(
            FLAGS,
            2,
            Treatment::Value(shown),
            "capabilities, PCIe 6.0 §7.5.3.2",
        ),
        rule(
            0x04,
            4,
            Treatment::Constant(devcap_shown),
            "device capabilities, §7.5.3.3",
        ),
        rule(0x08, 2, device(DEVCTL_WRITABLE), "device control, §7.5.3.4"),
        // The error bits are the host's to clear; transactions pending (5)
        // is what drivers wait for before a reset.
        rule(0x0a, 2, READ, "device status, §7.5.3.5"),
    ];
    if version >= 2 {
        rules.extend([
            rule(
                0x24,
                4,
                Treatment::Constant(DEVCAP2_SHOWN),
                "device capabilities 2, §7.5.3.15",
            ),
            rule(
                0x28,
                2,
                device(DEVCTL2_WRITABLE),
                "device control 2, §7.5.3.16",
            ),
        ]);
    }
    Ok(Express::Shown { rules, flr })
}

/// Bytes of the capability at `at`: a first version ends before the second
/// set of registers.
pub(super) fn size(snapshot: &ConfigSpace, at: u16) -> u16 {
    match snapshot.u16(at + FLAGS) & 0xf {
        0 | 1 => 0x24,
        _ => 0x3c,
    }
}
