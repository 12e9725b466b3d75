use std::ops::Range;

/// Bytes of one entry of the MSI-X table (PCIe 6.0 §7.7.2.2).
const ENTRY_SIZE: u64 = 16;
/// The most vectors that a function can have: the size field has 11 bits.
const MAX_VECTORS: u16 = 2048;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASKED: u32 = 1;

/// An MSI message: what a device writes to raise an interrupt
/// (PCIe 6.0 §6.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// The address, both halves.
    pub address: u64,
    /// The data.
    pub data: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    control: u32,
}

impl Entry {
    /// After reset a vector is masked; its message is undefined, here zero.
    const RESET: Self = Self {
        message: MsiMessage {
            address: 0,
            data: 0,
        },
        control: VECTOR_MASKED,
    };

    fn to_bytes(self) -> [u8; ENTRY_SIZE as usize] {
        let mut bytes = [0; ENTRY_SIZE as usize];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    /// Bits 1:0 of the address are always zero; of the vector control only
    /// the mask bit exists.
    fn from_bytes(bytes: [u8; ENTRY_SIZE as usize]) -> Self {
        let dword = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        Self {
            message: MsiMessage {
                address: u64::from(dword(4)) << 32 | u64::from(dword(0) & !3),
                data: dword(8),
            },
            control: dword(12) & VECTOR_MASKED,
        }
    }
}

/// A function's MSI-X state: the table, the enable and the function mask
/// (PCIe 6.0 §6.1.4.2, §7.7.2). Pure: it knows which message a vector would
/// send, but sends none.
///
/// Table accesses may have any size and alignment, although the specification
/// allows only aligned ones of 4 and 8 bytes; a byte that is not written keeps
/// its value. What lies past the table reads as zero and ignores writes.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    function_mask: bool,
}

impl Msix {
    /// The state after reset: disabled, all `vectors` masked. Nothing when
    /// there are none or more than 2048.
    pub fn new(vectors: u16) -> Option<Self> {
        (1..=MAX_VECTORS).contains(&vectors).then(|| Self {
            entries: vec![Entry::RESET; usize::from(vectors)],
            enabled: false,
            function_mask: false,
        })
    }

    /// How many vectors the table has.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        self.entries.len() as u64 * ENTRY_SIZE
    }

    /// Bytes of the pending bit array: one bit a vector, in whole quadwords.
    pub fn pba_size(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(64) * 8
    }

    /// Whether the guest has enabled MSI-X.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether no vector sends anything, whatever the table says: MSI-X is off,
    /// or the function is masked.
    pub fn is_idle(&self) -> bool {
        !self.enabled || self.function_mask
    }

    /// What `vector` sends at the moment: nothing while it is masked, the
    /// function is masked or MSI-X is off.
    pub fn delivery(&self, vector: u16) -> Option<MsiMessage> {
        let entry = self.entries.get(usize::from(vector))?;
        let masked = entry.control & VECTOR_MASKED != 0;
        (!self.is_idle() && !masked).then_some(entry.message)
    }

    /// The message control register (PCIe 6.0 §7.7.2.1).
    pub fn control(&self) -> u16 {
        let mut control = self.vectors() - 1;
        if self.enabled {
            control |= CONTROL_ENABLE;
        }
        if self.function_mask {
            control |= CONTROL_FUNCTION_MASK;
        }
        control
    }

    /// Writes the message control register. Answers the range outside of
    /// which no vector's [`Self::delivery`] changed.
    pub fn write_control(&mut self, value: u16) -> Range<u16> {
        let before = self.is_idle();
        self.enabled = value & CONTROL_ENABLE != 0;
        self.function_mask = value & CONTROL_FUNCTION_MASK != 0;
        if before == self.is_idle() {
            return 0..0;
        }
        let unmasked = |entry: &Entry| entry.control & VECTOR_MASKED == 0;
        let first = self.entries.iter().position(unmasked);
        let last = self.entries.iter().rposition(unmasked);
        match (first, last) {
            (Some(first), Some(last)) => first as u16..last as u16 + 1,
            _ => 0..0,
        }
    }

    /// Back to the state after reset.
    pub fn reset(&mut self) {
        self.entries.fill(Entry::RESET);
        self.enabled = false;
        self.function_mask = false;
    }

    /// Reads from the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..self.table_size()) {
            let entry = usize::try_from(at / ENTRY_SIZE).ok();
            *byte = entry
                .and_then(|entry| self.entries.get(entry))
                .map_or(0, |entry| entry.to_bytes()[(at % ENTRY_SIZE) as usize]);
        }
    }

    /// Writes to the table. Answers the range outside of which no vector's
    /// [`Self::delivery`] changed.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) -> Range<u16> {
        let mut changed = 0..0;
        let mut data = data;
        let mut at = offset;
        while !data.is_empty() {
            let within = (at % ENTRY_SIZE) as usize;
            let (now, later) = data.split_at(data.len().min(ENTRY_SIZE as usize - within));
            // A vector number past the table has no entry to change.
            let vector = u16::try_from(at / ENTRY_SIZE).unwrap_or(u16::MAX);
            if self.write_entry(vector, within, now) {
                if changed.is_empty() {
                    changed.start = vector;
                }
                changed.end = vector + 1;
            }
            data = later;
            at = at.saturating_add(now.len() as u64);
        }
        changed
    }

    fn write_entry(&mut self, vector: u16, within: usize, data: &[u8]) -> bool {
        let before = self.delivery(vector);
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else {
            return false;
        };
        let mut bytes = entry.to_bytes();
        bytes[within..within + data.len()].copy_from_slice(data);
        *entry = Entry::from_bytes(bytes);
        self.delivery(vector) != before
    }

    /// Reads from the pending bit array (PCIe 6.0 §7.7.2.3), asking `pending`
    /// about the vectors that the read covers. The array can't be written.
    pub fn pba_read(&self, offset: u64, data: &mut [u8], mut pending: impl FnMut(u16) -> bool) {
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..self.pba_size()) {
            for bit in 0..8 {
                let vector = at * 8 + bit;
                if vector < u64::from(self.vectors()) && pending(vector as u16) {
                    *byte |= 1 << bit;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn enabled(vectors: u16) -> Msix {
        let mut msix = Msix::new(vectors).unwrap();
        assert_eq!(msix.write_control(CONTROL_ENABLE), 0..0);
        msix
    }

    fn program(msix: &mut Msix, vector: u16, message: MsiMessage, control: u32) -> Range<u16> {
        let entry = Entry { message, control };
        msix.table_write(u64::from(vector) * 16, &entry.to_bytes())
    }

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x4041,
    };

    #[test]
    fn sizes() {
        assert!(Msix::new(0).is_none());
        assert!(Msix::new(2049).is_none());
        let msix = Msix::new(65).unwrap();
        assert_eq!((msix.table_size(), msix.pba_size()), (65 * 16, 16));
        assert_eq!(msix.control(), 64);
        assert_eq!(Msix::new(2048).unwrap().control(), 0x7ff);
    }

    #[test]
    fn all_vectors_are_masked_after_reset() {
        let mut msix = enabled(4);
        let _ = program(&mut msix, 1, MESSAGE, 0);
        msix.reset();
        assert!(!msix.is_enabled());
        let mut control = [0xff; 4];
        msix.table_read(16 + 12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
    }

    #[test]
    fn a_vector_speaks_only_when_nothing_masks_it() {
        let mut msix = enabled(4);
        assert_eq!(program(&mut msix, 2, MESSAGE, 1), 0..0, "still masked");
        assert_eq!(msix.delivery(2), None);
        assert_eq!(msix.table_write(2 * 16 + 12, &[0; 4]), 2..3);
        assert_eq!(msix.delivery(2), Some(MESSAGE));
        let masked = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
        assert_eq!(msix.write_control(masked), 2..3);
        assert_eq!(msix.delivery(2), None);
        assert_eq!(msix.control(), masked | 3);
        assert_eq!(msix.write_control(masked), 0..0);
        assert_eq!(msix.write_control(CONTROL_ENABLE), 2..3);
        assert_eq!(msix.write_control(0), 2..3);
        assert_eq!(msix.delivery(2), None);
    }

    #[test]
    fn a_new_message_of_a_live_vector_is_a_change() {
        let mut msix = enabled(2);
        assert_eq!(program(&mut msix, 0, MESSAGE, 0), 0..1);
        assert_eq!(program(&mut msix, 0, MESSAGE, 0), 0..0);
        assert_eq!(msix.table_write(8, &[0x42]), 0..1);
        assert_eq!(msix.delivery(0).unwrap().data, 0x4042);
    }

    #[test]
    fn reserved_bits_are_zero() {
        let mut msix = enabled(1);
        let _ = msix.table_write(0, &[0xff; 8]);
        let _ = msix.table_write(8, &[0xff; 8]);
        let mut entry = [0; 16];
        msix.table_read(0, &mut entry);
        assert_eq!((entry[0], entry[12], entry[13]), (0xfc, 1, 0));
    }

    #[test]
    fn an_access_may_straddle_entries_and_the_end() {
        let mut msix = enabled(2);
        assert_eq!(msix.table_write(12, &[0, 0, 0, 0, 4, 0, 0, 0]), 0..1);
        assert_eq!(msix.table_write(28, &[0; 8]), 1..2);
        let mut data = [0xff; 8];
        msix.table_read(30, &mut data);
        assert_eq!(data, [0; 8]);
        assert_eq!(msix.table_write(u64::MAX, &[0; 8]), 0..0);
        msix.table_read(u64::MAX, &mut data);
    }

    #[test]
    fn pending_bits() {
        let msix = enabled(66);
        let mut data = [0xff; 8];
        msix.pba_read(0, &mut data, |vector| vector == 9 || vector == 65);
        assert_eq!(data, [0, 2, 0, 0, 0, 0, 0, 0]);
        msix.pba_read(8, &mut data, |_| true);
        assert_eq!(data, [3, 0, 0, 0, 0, 0, 0, 0]);
        msix.pba_read(u64::MAX - 3, &mut data, |_| true);
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_its_word(
            writes in proptest::collection::vec(
                (0_u64..80, proptest::collection::vec(any::<u8>(), 1..9), any::<Option<u16>>()),
                0..64,
            ),
        ) {
            let mut msix = Msix::new(4).unwrap();
            for (offset, data, control) in writes {
                let before: Vec<_> = (0..4).map(|v| msix.delivery(v)).collect();
                let changed = match control {
                    Some(value) => msix.write_control(value),
                    None => msix.table_write(offset, &data),
                };
                for vector in 0..4 {
                    if !changed.contains(&vector) {
                        prop_assert_eq!(before[usize::from(vector)], msix.delivery(vector));
                    }
                }
                prop_assert!(changed.end <= 4);
            }
        }

        #[test]
        fn aligned_writes_read_back(vector in 0_u64..4, message: (u32, u64)) {
            let mut msix = Msix::new(4).unwrap();
            let address = message.1 & !3;
            let _ = msix.table_write(vector * 16, &address.to_le_bytes());
            let _ = msix.table_write(vector * 16 + 8, &message.0.to_le_bytes());
            let mut data = [0; 12];
            msix.table_read(vector * 16, &mut data);
            prop_assert_eq!(&data[..8], &address.to_le_bytes());
            prop_assert_eq!(&data[8..], &message.0.to_le_bytes());
        }
    }
}
