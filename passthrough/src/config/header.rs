use devices::pci::{BarInfo, ConfigSpace, InterruptPin};

use super::ConfigError;
use super::rule::{CONSTANT, PASSED, Rule, Treatment, rule};

/// The command register (PCIe 6.0 §7.5.1.1.3).
pub(crate) const COMMAND: u16 = 0x04;
/// Ports are decoded.
pub(crate) const COMMAND_IO: u16 = 1 << 0;
/// Memory is decoded.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may send requests: DMA and MSI.
pub(crate) const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
/// The interrupt pin is off.
pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// The status register (PCIe 6.0 §7.5.1.1.4).
pub(crate) const STATUS: u16 = 0x06;
/// The function wants to interrupt by its pin, whether that is off or not.
/// Answered by the device itself while its pin is on.
pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
/// The interrupt pin register (PCIe 6.0 §7.5.1.1.13).
const INTERRUPT_PIN: u16 = 0x3d;

const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;
/// Bits of the status register that never change: 66 MHz, fast back-to-back,
/// DEVSEL timing. The error bits read as zero: they are the host's to handle
/// and clear, and the kernel would drop the guest's clearing write.
const STATUS_CONSTANT: u32 = 0x06a0;

/// What of the header needs no look at the device. BARs and the capability
/// pointer follow from the device and come from elsewhere.
const HEADER: [Rule; 11] = [
    rule(0x00, 4, CONSTANT, "vendor and device, PCIe 6.0 §7.5.1.1.1"),
    rule(
        0x06,
        2,
        Treatment::Constant(STATUS_CONSTANT),
        "status, §7.5.1.1.4",
    ),
    rule(0x08, 4, CONSTANT, "revision and class, §7.5.1.1.5"),
    // Real registers on conventional PCI, without effect on PCI Express.
    rule(
        0x0c,
        2,
        PASSED,
        "cache line size, latency timer, §7.5.1.1.7",
    ),
    // Where a function stands among others is the guest topology's to say.
    rule(
        0x0e,
        1,
        Treatment::Constant(0x7f),
        "header type, §7.5.1.1.9",
    ),
    // A self-test takes the function off the bus for up to two seconds.
    rule(0x0f, 1, Treatment::Value(0), "no self-test, §7.5.1.1.10"),
    rule(0x28, 4, CONSTANT, "CardBus CIS pointer, §7.5.1.2.2"),
    rule(0x2c, 4, CONSTANT, "subsystem, §7.5.1.2.3"),
    // No expansion ROM is shown yet.
    rule(0x30, 4, Treatment::Value(0), "expansion ROM, §7.5.1.2.4"),
    rule(
        0x3c,
        1,
        Treatment::Guest {
            value: 0,
            writable: 0xff,
        },
        "interrupt line: the guest's notes, §7.5.1.1.12",
    ),
    rule(0x3e, 2, CONSTANT, "Min_Gnt and Max_Lat, §7.5.1.2.5"),
];

/// The rules of the header.
///
/// # Errors
/// When the device does not answer or is a bridge.
pub(super) fn rules(
    snapshot: &ConfigSpace,
    bars: &[BarInfo],
    has_pin: bool,
) -> Result<Vec<Rule>, ConfigError> {
    if snapshot.u32(0) == u32::MAX {
        return Err(ConfigError::NoAnswer);
    }
    match snapshot.u8(HEADER_TYPE) & !MULTI_FUNCTION {
        0 => {}
        other => return Err(ConfigError::HeaderType(other)),
    }
    let mut rules = HEADER.to_vec();
    rules.push(rule(
        COMMAND,
        2,
        Treatment::Guest {
            value: 0,
            writable: u32::from(command_bits(bars)),
        },
        "command: handed on when its effects are settled, §7.5.1.1.3",
    ));
    rules.push(rule(
        INTERRUPT_PIN,
        1,
        if has_pin {
            CONSTANT
        } else {
            Treatment::Value(0)
        },
        "interrupt pin, where it can be delivered, §7.5.1.1.13",
    ));
    Ok(rules)
}

/// The pin that the function interrupts with, if it has one.
pub(crate) fn pin(snapshot: &ConfigSpace) -> Option<InterruptPin> {
    InterruptPin::from_register(snapshot.u8(INTERRUPT_PIN))
}

/// The bits of the command register that the guest can write. A function that
/// decodes no ports, or no memory, has no such bit.
fn command_bits(bars: &[BarInfo]) -> u16 {
    let mut bits = COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
    for bar in bars {
        bits |= if bar.kind.is_io() {
            COMMAND_IO
        } else {
            COMMAND_MEMORY
        };
    }
    bits
}
