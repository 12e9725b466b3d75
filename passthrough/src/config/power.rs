use devices::pci::ConfigSpace;

use super::rule::{Rule, Treatment, rule};

/// Bytes of the power management capability (PCI PM 1.2 §3.2).
pub(super) const SIZE: u16 = 8;
const CAPABILITIES: u16 = 2;
/// The control and status register, from the capability's start.
pub(crate) const CONTROL: u16 = 4;
const STATE: u16 = 3;
const NO_SOFT_RESET: u32 = 1 << 3;
const D1_SUPPORT: u16 = 1 << 9;
const D2_SUPPORT: u16 = 1 << 10;
/// What the capability register may say: wake-up events (bits 15:11) go to the
/// host and can't be had.
const NO_PME: u32 = 0x07ff;

/// The rules of the capability at `at`. State changes are handed to the device
/// when their effects are settled: in D3hot it answers no memory access, so
/// its BARs leave the guest first.
pub(super) fn rules(snapshot: &ConfigSpace, at: u16) -> Vec<Rule> {
    let control = u32::from(snapshot.u16(at + CONTROL)) & NO_SOFT_RESET;
    let state = Treatment::Guest {
        value: control,
        writable: STATE.into(),
    };
    vec![
        rule(
            CAPABILITIES,
            2,
            Treatment::Constant(NO_PME),
            "PMC, PCI PM 1.2 §3.2.3",
        ),
        rule(CONTROL, 2, state, "PMCSR, PCI PM 1.2 §3.2.4"),
    ]
}

/// A device power state (PCI PM 1.2 §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PowerState {
    /// Fully on.
    #[default]
    D0,
    /// Lighter sleep, optional.
    D1,
    /// Deeper sleep, optional.
    D2,
    /// Off but for config space.
    D3Hot,
}

impl PowerState {
    /// The state in a value of the control register.
    pub(crate) fn from_control(control: u16) -> Self {
        match control & STATE {
            0 => Self::D0,
            1 => Self::D1,
            2 => Self::D2,
            _ => Self::D3Hot,
        }
    }

    /// As the control register's state field.
    pub(crate) fn to_control(self) -> u16 {
        self as u16
    }

    /// Whether a device whose PMC register is `capabilities` has the state. A
    /// write of one that it has not changes nothing (PCI PM 1.2 §3.2.4).
    pub(crate) fn is_supported(self, capabilities: u16) -> bool {
        match self {
            Self::D0 | Self::D3Hot => true,
            Self::D1 => capabilities & D1_SUPPORT != 0,
            Self::D2 => capabilities & D2_SUPPORT != 0,
        }
    }
}
