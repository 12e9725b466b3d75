/// One of a function's interrupt pins, INTA# to INTD#: what it raises its
/// level-triggered interrupt with (PCIe 6.0 §7.5.1.1.13). Numbered as the
/// interrupt pin register has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum InterruptPin {
    /// INTA#, the only one of a device with one function.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}

impl InterruptPin {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// What a value of the interrupt pin register says: nothing for 0, which
    /// is none, and for reserved values.
    pub fn from_register(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|pin| *pin as u8 == value)
    }

    /// The pin's value in the interrupt pin register.
    pub const fn register(self) -> u8 {
        self as u8
    }

    /// The pin of a bridge or root port that this pin of device `device` below
    /// it comes out at (PCI-to-PCI Bridge 1.2 §9.1; PCIe 6.0 §2.2.8.1).
    ///
    /// Below a root port there is only device 0, whose pins keep their names.
    #[must_use]
    pub fn swizzled(self, device: u8) -> Self {
        Self::ALL[(self.index() + usize::from(device)) % Self::ALL.len()]
    }

    /// 0 for INTA#, as ACPI counts (ACPI 6.5 §6.2.13).
    pub(crate) const fn index(self) -> usize {
        self as usize - 1
    }
}

/// How the pins of the devices on the root bus are wired to the inputs of the
/// I/O APIC: one after the other, so that neighbours don't share a line.
///
/// ```text
///  input  first   first+1  first+2 …
///         0 INTA  0 INTB   0 INTC
///                 1 INTA   1 INTB
///                          2 INTA
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinWiring {
    /// The first input.
    pub first: u32,
    /// How many inputs, not 0.
    pub count: u32,
}

impl PinWiring {
    /// The input that `pin` of device `device` on the root bus drives.
    pub fn input(&self, device: u8, pin: InterruptPin) -> u32 {
        let number = u32::from(device) + pin.index() as u32;
        self.first + number.checked_rem(self.count).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_names_a_pin_or_none() {
        for value in 0..=u8::MAX {
            let pin = InterruptPin::from_register(value);
            assert_eq!(pin.is_some(), (1..=4).contains(&value));
            if let Some(pin) = pin {
                assert_eq!(pin.register(), value);
            }
        }
    }

    #[test]
    fn a_bridge_turns_the_pins() {
        use InterruptPin::{A, B, C, D};
        // The table of PCI-to-PCI Bridge 1.2 §9.1.
        for (devices, pins) in [
            ([0, 4, 28], [A, B, C, D]),
            ([1, 5, 29], [B, C, D, A]),
            ([2, 6, 30], [C, D, A, B]),
            ([3, 7, 31], [D, A, B, C]),
        ] {
            for device in devices {
                let seen = InterruptPin::ALL.map(|pin| pin.swizzled(device));
                assert_eq!(seen, pins, "device {device}");
            }
        }
    }

    #[test]
    fn neighbours_have_lines_of_their_own() {
        let wiring = PinWiring {
            first: 16,
            count: 8,
        };
        let lines: Vec<_> = (0..9)
            .map(|device| wiring.input(device, InterruptPin::A))
            .collect();
        assert_eq!(lines, [16, 17, 18, 19, 20, 21, 22, 23, 16]);
        assert_eq!(wiring.input(31, InterruptPin::D), 16 + (31 + 3) % 8);
        let broken = PinWiring {
            first: 16,
            count: 0,
        };
        assert_eq!(broken.input(3, InterruptPin::B), 16, "no panic");
    }
}
