/// Bytes of a function's config space: 256 of conventional PCI, the rest only
/// of PCI Express (PCIe 6.0 §7.2).
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// A register of an emulated function, as data.
///
/// A bit is read-only unless it is in `writable` or `clearable`; a bit in both
/// is cleared by writing a one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Offset of the first byte.
    pub offset: u16,
    /// Bytes: 1 to 4.
    pub size: u8,
    /// The value after reset.
    pub value: u32,
    /// Bits that the guest may write (RW).
    pub writable: u32,
    /// Bits that the guest clears by writing a one (RW1C).
    pub clearable: u32,
}

impl Register {
    /// A register that the guest can only read.
    pub const fn constant(offset: u16, size: u8, value: u32) -> Self {
        Self {
            offset,
            size,
            value,
            writable: 0,
            clearable: 0,
        }
    }

    /// A register whose `writable` bits the guest may write.
    pub const fn writable(offset: u16, size: u8, value: u32, writable: u32) -> Self {
        Self {
            offset,
            size,
            value,
            writable,
            clearable: 0,
        }
    }
}

/// The 4 KiB of a function's config space: the bytes, and for each bit whether
/// the guest may write it or clear it.
///
/// Everything reads as zero and is read-only until it is defined. No access
/// panics: what lies past the end reads as zero, writes there are dropped.
/// All values are little-endian, as on the wire.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    clearable: Box<[u8; CONFIG_SPACE_SIZE]>,
}

impl Default for ConfigSpace {
    fn default() -> Self {
        Self::new()
    }
}

impl ConfigSpace {
    /// An empty space: all zero, all read-only.
    pub fn new() -> Self {
        Self {
            bytes: Box::new([0; CONFIG_SPACE_SIZE]),
            writable: Box::new([0; CONFIG_SPACE_SIZE]),
            clearable: Box::new([0; CONFIG_SPACE_SIZE]),
        }
    }

    /// A space with these registers.
    pub fn from_registers(registers: &[Register]) -> Self {
        let mut space = Self::new();
        for register in registers {
            space.define(*register);
        }
        space
    }

    /// Defines a register: its value and the rights of the guest.
    pub fn define(&mut self, register: Register) {
        let value = register.value.to_le_bytes();
        let writable = register.writable.to_le_bytes();
        let clearable = register.clearable.to_le_bytes();
        for index in 0..usize::from(register.size.min(4)) {
            let at = usize::from(register.offset) + index;
            if at < CONFIG_SPACE_SIZE {
                self.bytes[at] = value[index];
                self.writable[at] = writable[index];
                self.clearable[at] = clearable[index];
            }
        }
    }

    /// Reads as the guest does.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes as the guest does: only writable bits change, ones clear the
    /// clearable bits. Says whether any bit changed.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let mut changed = false;
        for (&byte, at) in data.iter().zip(usize::from(offset)..CONFIG_SPACE_SIZE) {
            let old = self.bytes[at];
            let writable = self.writable[at] & !self.clearable[at];
            let new = ((old & !writable) | (byte & writable)) & !(byte & self.clearable[at]);
            changed |= new != old;
            self.bytes[at] = new;
        }
        changed
    }

    /// Sets bytes as the function itself does, whatever the guest may write.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (&byte, at) in data.iter().zip(usize::from(offset)..CONFIG_SPACE_SIZE) {
            self.bytes[at] = byte;
        }
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: u16) -> u8 {
        let mut data = [0; 1];
        self.read(offset, &mut data);
        data[0]
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// The bits at `offset` that the guest may write or clear.
    pub fn guest_bits(&self, offset: u16) -> u8 {
        let at = usize::from(offset);
        let writable = self.writable.get(at).copied().unwrap_or(0);
        writable | self.clearable.get(at).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGISTERS: [Register; 3] = [
        Register::constant(0x00, 4, 0x1234_5678),
        Register::writable(0x04, 2, 0x0001, 0x0407),
        Register {
            offset: 0x06,
            size: 2,
            value: 0xf910,
            writable: 0,
            clearable: 0xf900,
        },
    ];

    #[test]
    fn writes_respect_the_masks() {
        let mut space = ConfigSpace::from_registers(&REGISTERS);
        assert!(!space.write(0, &[0xff; 4]));
        assert_eq!(space.u32(0), 0x1234_5678);
        assert!(space.write(4, &[0xfe, 0xff]));
        assert_eq!(space.u16(4), 0x0406);
    }

    #[test]
    fn ones_clear() {
        let mut space = ConfigSpace::from_registers(&REGISTERS);
        assert!(!space.write(6, &[0, 0]));
        assert!(space.write(6, &[0, 0x80]));
        assert_eq!(space.u16(6), 0x7910);
        assert_eq!(space.guest_bits(7), 0xf9);
    }

    #[test]
    fn an_access_may_straddle_registers_and_the_end() {
        let mut space = ConfigSpace::from_registers(&REGISTERS);
        let mut data = [0; 4];
        space.read(2, &mut data);
        assert_eq!(data, [0x34, 0x12, 0x01, 0x00]);
        space.read(0xffe, &mut data);
        space.write(0xfff, &[1; 8]);
        space.set(0xfff, &[1; 8]);
        space.define(Register::constant(0xffe, 4, u32::MAX));
        space.read(0xffe, &mut data);
        assert_eq!(data, [0xff, 0xff, 0, 0]);
    }

    proptest! {
        #[test]
        fn only_guest_bits_change(offset: u16, data in proptest::collection::vec(any::<u8>(), 0..9)) {
            let mut space = ConfigSpace::from_registers(&REGISTERS);
            let before = space.clone();
            let changed = space.write(offset, &data);
            let mut differs = false;
            for at in 0..CONFIG_SPACE_SIZE as u16 {
                let difference = before.u8(at) ^ space.u8(at);
                prop_assert_eq!(difference & !before.guest_bits(at), 0);
                differs |= difference != 0;
            }
            prop_assert_eq!(changed, differs);
        }
    }
}
