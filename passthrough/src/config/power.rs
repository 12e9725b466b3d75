/// The capabilities register, from the capability's start.
pub(crate) const CAPABILITIES: u16 = 2;
/// The control and status register, likewise.
pub(crate) const CONTROL: u16 = 4;
const STATE: u16 = 3;
/// The device keeps its settings on the way from D3hot to D0.
const NO_SOFT_RESET: u16 = 1 << 3;
const D1_SUPPORT: u16 = 1 << 9;
const D2_SUPPORT: u16 = 1 << 10;

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

    /// Whether a device whose PMC register is `capabilities` goes from this
    /// state to `next`: to D0 from each, deeper only to those that it has. A
    /// write of another changes nothing (PCI PM 1.2 §3.2.4, §5.5).
    pub(crate) fn may_become(self, next: Self, capabilities: u16) -> bool {
        let has = match next {
            Self::D0 | Self::D3Hot => true,
            Self::D1 => capabilities & D1_SUPPORT != 0,
            Self::D2 => capabilities & D2_SUPPORT != 0,
        };
        has && (next == Self::D0 || next >= self)
    }

    /// Whether a device whose control register is `control` is reset when it
    /// goes from this state to `next` (PCI PM 1.2 §5.4.1).
    pub(crate) fn resets(self, next: Self, control: u16) -> bool {
        self == Self::D3Hot && next == Self::D0 && control & NO_SOFT_RESET == 0
    }
}

#[cfg(test)]
mod tests {
    use super::PowerState::{D0, D1, D2, D3Hot};
    use super::*;

    #[test]
    fn ways_between_states() {
        let both = D1_SUPPORT | D2_SUPPORT;
        for (from, to, capabilities, possible) in [
            (D0, D3Hot, 0, true),
            (D3Hot, D0, 0, true),
            (D0, D1, 0, false),
            (D0, D1, D1_SUPPORT, true),
            (D0, D2, D1_SUPPORT, false),
            (D1, D2, both, true),
            (D2, D1, both, false),
            (D3Hot, D1, both, false),
            (D1, D1, both, true),
        ] {
            assert_eq!(
                from.may_become(to, capabilities),
                possible,
                "{from:?} {to:?}"
            );
        }
    }

    #[test]
    fn settings_are_lost_on_the_way_back() {
        assert!(D3Hot.resets(D0, 0));
        assert!(!D3Hot.resets(D0, NO_SOFT_RESET));
        assert!(!D2.resets(D0, 0) && !D0.resets(D0, 0));
    }
}
