use super::config::{ConfigSpace, Register};
use super::msix::MsiMessage;

/// The message control register, from the capability's start.
const CONTROL: u16 = 0x02;
const ADDRESS: u16 = 0x04;
const UPPER_ADDRESS: u16 = 0x08;
const CONTROL_ENABLE: u16 = 1 << 0;
const CONTROL_MULTIPLE_CAPABLE: u16 = 1;
const CONTROL_MULTIPLE_ENABLE: u16 = 4;
const CONTROL_64_BIT: u16 = 1 << 7;
const CONTROL_MASKABLE: u16 = 1 << 8;
/// A number of vectors is written as a power of two, at most 32.
const LARGEST_EXPONENT: u16 = 5;

/// What a function's MSI capability is like (PCIe 6.0 §7.7.1): how many
/// vectors, and which registers it has.
///
/// Pure: the registers stand in a [`ConfigSpace`], and [`Self::state`] says
/// what they mean. Extended message data is never offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiCapability {
    exponent: u16,
    is_64_bit: bool,
    is_maskable: bool,
}

impl MsiCapability {
    /// The capability that a message control register tells of. Reserved
    /// numbers of vectors are taken for the largest there is.
    pub const fn from_control(control: u16) -> Self {
        let exponent = control >> CONTROL_MULTIPLE_CAPABLE & 7;
        Self {
            exponent: if exponent > LARGEST_EXPONENT {
                LARGEST_EXPONENT
            } else {
                exponent
            },
            is_64_bit: control & CONTROL_64_BIT != 0,
            is_maskable: control & CONTROL_MASKABLE != 0,
        }
    }

    /// How many vectors the function can have: 1, 2, 4, 8, 16 or 32.
    pub const fn vectors(&self) -> u8 {
        1 << self.exponent
    }

    /// Bytes of the capability, in whole doublewords.
    pub const fn size(&self) -> u16 {
        let masks = if self.is_maskable { 8 } else { 0 };
        self.data() + 4 + masks
    }

    /// Where the upper half of the address is, from the capability's start;
    /// nothing when addresses have 32 bits.
    pub const fn upper_address(&self) -> Option<u16> {
        if self.is_64_bit {
            Some(UPPER_ADDRESS)
        } else {
            None
        }
    }

    /// Where the message data is, from the capability's start. It is 2 bytes
    /// long.
    pub const fn data(&self) -> u16 {
        if self.is_64_bit { 0x0c } else { 0x08 }
    }

    /// Where the mask bits are, from the capability's start; nothing when
    /// vectors can't be masked. They are 4 bytes long.
    pub const fn mask(&self) -> Option<u16> {
        if self.is_maskable {
            Some(self.data() + 4)
        } else {
            None
        }
    }

    /// Where the pending bits are, from the capability's start; nothing when
    /// vectors can't be masked. They are read-only and 4 bytes long.
    pub const fn pending(&self) -> Option<u16> {
        if self.is_maskable {
            Some(self.data() + 8)
        } else {
            None
        }
    }

    /// A bit for each vector.
    pub const fn vector_bits(&self) -> u32 {
        u32::MAX >> (32 - self.vectors())
    }

    /// The registers behind id and link with their values after reset, at
    /// offsets from the capability's start.
    pub fn registers(&self) -> Vec<Register> {
        let mut control = self.exponent << CONTROL_MULTIPLE_CAPABLE;
        if self.is_64_bit {
            control |= CONTROL_64_BIT;
        }
        if self.is_maskable {
            control |= CONTROL_MASKABLE;
        }
        let writable = CONTROL_ENABLE | 7 << CONTROL_MULTIPLE_ENABLE;
        let mut registers = vec![
            Register::writable(CONTROL, 2, control.into(), writable.into()),
            // A message is a doubleword, aligned.
            Register::writable(ADDRESS, 4, 0, !3),
            Register::writable(self.data(), 2, 0, 0xffff),
        ];
        if self.is_64_bit {
            registers.push(Register::writable(UPPER_ADDRESS, 4, 0, u32::MAX));
        }
        if let Some(mask) = self.mask() {
            registers.push(Register::writable(mask, 4, 0, self.vector_bits()));
        }
        if let Some(pending) = self.pending() {
            registers.push(Register::constant(pending, 4, 0));
        }
        registers
    }

    /// What the registers of the capability at `at` say.
    pub fn state(&self, space: &ConfigSpace, at: u16) -> MsiState {
        let control = space.u16(at.saturating_add(CONTROL));
        if control & CONTROL_ENABLE == 0 {
            return MsiState::OFF;
        }
        let word = |offset| u64::from(space.u32(at.saturating_add(offset)));
        // More than the function has must not be written; it gets what it has.
        let exponent = (control >> CONTROL_MULTIPLE_ENABLE & 7).min(self.exponent);
        let upper = if self.is_64_bit {
            word(UPPER_ADDRESS)
        } else {
            0
        };
        MsiState {
            vectors: 1 << exponent,
            message: MsiMessage {
                address: upper << 32 | word(ADDRESS) & !3,
                data: space.u16(at.saturating_add(self.data())).into(),
            },
            mask: self.mask().map_or(0, |mask| word(mask) as u32),
        }
    }
}

/// A function's MSI as the guest has programmed it (PCIe 6.0 §6.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiState {
    /// How many vectors are on, a power of two; 0 when MSI is off.
    vectors: u8,
    message: MsiMessage,
    mask: u32,
}

impl MsiState {
    /// MSI is off.
    pub const OFF: Self = Self {
        vectors: 0,
        message: MsiMessage {
            address: 0,
            data: 0,
        },
        mask: 0,
    };

    /// Whether MSI is on.
    pub const fn is_enabled(&self) -> bool {
        self.vectors > 0
    }

    /// How many vectors are on: 0 when MSI is off, else a power of two.
    pub const fn vectors(&self) -> u8 {
        self.vectors
    }

    /// What `vector` sends: nothing while it is masked or not on. All have one
    /// address; the low bits of the data are the vector's number
    /// (PCIe 6.0 §6.1.4.3).
    pub fn delivery(&self, vector: u8) -> Option<MsiMessage> {
        let masked = self.mask.checked_shr(vector.into()).unwrap_or(0) & 1 != 0;
        let number = u32::from(self.vectors.wrapping_sub(1));
        (vector < self.vectors && !masked).then_some(MsiMessage {
            data: self.message.data & !number | u32::from(vector),
            ..self.message
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: u16 = 0x50;

    fn space(capability: &MsiCapability) -> ConfigSpace {
        let mut space = ConfigSpace::new();
        for register in capability.registers() {
            let offset = AT + register.offset;
            space.define(Register { offset, ..register });
        }
        space
    }

    /// A capability, and its registers as a guest has them after writes.
    fn programmed(control: u16, writes: &[(u16, u32)]) -> (MsiCapability, ConfigSpace) {
        let capability = MsiCapability::from_control(control);
        let mut space = space(&capability);
        for (offset, value) in writes {
            space.write(AT + offset, &value.to_le_bytes());
        }
        (capability, space)
    }

    #[test]
    fn four_layouts() {
        // As PCIe 6.0 figures 7-44 to 7-47 draw them.
        for (control, size, pending) in [
            (0x0000, 0x0c, None),
            (0x0080, 0x10, None),
            (0x0100, 0x14, Some(0x10)),
            (0x0180, 0x18, Some(0x14)),
        ] {
            let capability = MsiCapability::from_control(control);
            assert_eq!((capability.size(), capability.pending()), (size, pending));
            let registers = capability.registers();
            let end = registers.iter().map(|r| r.offset + u16::from(r.size)).max();
            assert_eq!(end.unwrap().next_multiple_of(4), size);
            assert_eq!(space(&capability).u16(AT + 2), control, "{control:#x}");
        }
    }

    #[test]
    fn numbers_of_vectors() {
        for (exponent, vectors) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 32)] {
            let capability = MsiCapability::from_control(0x100 | exponent << 1);
            assert_eq!(capability.vectors(), vectors);
            let bits = capability.vector_bits();
            assert_eq!(bits.count_ones(), vectors.into());
        }
    }

    #[test]
    fn what_a_guest_can_write() {
        let (_, space) = programmed(0x0002, &[(0, u32::MAX), (4, u32::MAX), (8, u32::MAX)]);
        assert_eq!(space.u16(AT + 2), 0x0073, "enable and number, no more");
        assert_eq!(space.u32(AT + 4), u32::MAX - 3);
        assert_eq!(space.u32(AT + 8), 0xffff);
        let (_, space) = programmed(0x0184, &[(8, 1), (0x10, u32::MAX), (0x14, u32::MAX)]);
        assert_eq!((space.u32(AT + 8), space.u32(AT + 0x10)), (1, 0xf));
        assert_eq!(space.u32(AT + 0x14), 0, "pending bits are read-only");
    }

    #[test]
    fn each_vector_has_its_number_in_the_data() {
        let writes = [(4, 0xfee0_1000), (8, 0x7), (0xc, 0x4043), (0, 0x0021_0000)];
        let (capability, space) = programmed(0x0084, &writes);
        let state = capability.state(&space, AT);
        assert_eq!((state.is_enabled(), state.vectors()), (true, 4));
        let data: Vec<_> = (0..4).map(|v| state.delivery(v).unwrap().data).collect();
        assert_eq!(data, [0x4040, 0x4041, 0x4042, 0x4043]);
        assert_eq!(state.delivery(3).unwrap().address, 0x7_fee0_1000);
        assert_eq!(state.delivery(4), None);
        assert_eq!(state.delivery(255), None);
    }

    #[test]
    fn masks_and_the_enable_bit() {
        let writes = [(4, 0xfee0_0000), (8, 0x40), (0xc, 0b10), (0, 0x0011_0000)];
        let (capability, mut space) = programmed(0x0102, &writes);
        let state = capability.state(&space, AT);
        assert!(state.delivery(0).is_some());
        assert_eq!(state.delivery(1), None);
        space.write(AT + 2, &[0]);
        assert_eq!(capability.state(&space, AT), MsiState::OFF);
        assert_eq!(MsiState::OFF.delivery(0), None);
    }

    #[test]
    fn more_vectors_than_there_are() {
        let (capability, space) = programmed(0x0002, &[(0, 0x0071_0000)]);
        assert_eq!(capability.state(&space, AT).vectors(), 2);
    }

    proptest! {
        #[test]
        fn any_registers_mean_something(control: u16, bytes: [u8; 32], at in 0_u16..0x1010) {
            let capability = MsiCapability::from_control(control);
            let mut space = ConfigSpace::new();
            space.set(AT, &bytes);
            for at in [AT, at] {
                let state = capability.state(&space, at);
                prop_assert!(state.vectors() <= capability.vectors());
                for vector in 0..=u8::MAX {
                    if let Some(message) = state.delivery(vector) {
                        prop_assert!(vector < state.vectors());
                        prop_assert!(message.data <= 0xffff && message.address & 3 == 0);
                    }
                }
            }
        }
    }
}
