use devices::pci::{ConfigSpace, MsiCapability, MsiState};

use super::rule::{Access, Rule};

/// The message control register, from the capability's start.
const CONTROL: u16 = 2;

/// Its field with how many vectors the function can have.
const VECTOR_BITS: u32 = 0x000e;

/// What a register is and where that is specified, and why the guest does not
/// see the device's.
type Reason = ((&'static str, &'static str), &'static str);

const VECTORS: Reason = (
    ("message control: vectors", "PCIe 6.0 §7.7.1.2"),
    "what the device has, as far as such numbers are specified",
);
const UPPER: Reason = (("message upper address", "PCIe 6.0 §7.7.1.4"), OF_THE_GUEST);
const DATA: Reason = (("message data", "PCIe 6.0 §7.7.1.5"), OF_THE_GUEST);
const MASK: Reason = (
    ("mask bits", "PCIe 6.0 §7.7.1.7"),
    "the host holds masked vectors back",
);
const PENDING: Reason = (
    ("pending bits", "PCIe 6.0 §7.7.1.8"),
    "those of masked vectors are held by the host, and shown from there",
);
const OF_THE_GUEST: &str =
    "the host sends its own messages, and the guest gets those that it asks for";

/// A function's MSI capability, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MsiPlace {
    /// The capability's offset in config space.
    pub(crate) offset: u16,
    /// What it is like.
    pub(crate) capability: MsiCapability,
}

impl MsiPlace {
    /// Reads the capability at `at`.
    pub(super) fn read(snapshot: &ConfigSpace, at: u16) -> Self {
        Self {
            offset: at,
            capability: MsiCapability::from_control(snapshot.u16(at + CONTROL)),
        }
    }

    /// The rules of what this very capability has, besides those of all
    /// (`table/standard.rs`): how many vectors, and the registers that follow
    /// the address.
    pub(super) fn rules(&self) -> Vec<Rule> {
        let capability = &self.capability;
        let vectors = capability.vectors().trailing_zeros() << 1;
        let bits = capability.vector_bits();
        let guest = |writable| Access::Guest { value: 0, writable };
        let number = Rule::new(CONTROL, 2, Access::Value(vectors), VECTORS.0, VECTORS.1);
        let mut rules = vec![number.bits(VECTOR_BITS)];
        for (offset, size, access, (title, why)) in [
            (capability.upper_address(), 4, guest(u32::MAX), UPPER),
            (Some(capability.data()), 2, guest(0xffff), DATA),
            (capability.mask(), 4, guest(bits), MASK),
            (capability.pending(), 4, guest(0), PENDING),
        ] {
            rules.extend(offset.map(|at| Rule::new(at, size, access, title, why)));
        }
        rules
    }

    /// What the guest has programmed.
    pub(crate) fn state(&self, space: &ConfigSpace) -> MsiState {
        self.capability.state(space, self.offset)
    }

    /// Where in config space the pending bits are, if there are any: 4 bytes.
    pub(crate) fn pending(&self) -> Option<u16> {
        self.offset.checked_add(self.capability.pending()?)
    }
}
