use devices::pci::{ConfigSpace, MsiCapability, MsiState};

use super::rule::{Rule, Treatment, rule};

/// The message control register, from the capability's start.
const CONTROL: u16 = 2;

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

    /// The rules of the capability: all of it is the guest's, and nothing that
    /// it writes reaches the device. The kernel would take the number of
    /// vectors from the guest's control register, and the enable bit without
    /// asking; it writes both itself when the vectors are armed.
    pub(super) fn rules(&self) -> Vec<Rule> {
        self.capability
            .registers()
            .into_iter()
            .map(|register| {
                let (value, writable) = (register.value, register.writable);
                rule(
                    register.offset,
                    register.size.into(),
                    Treatment::Guest { value, writable },
                    "MSI, PCIe 6.0 §7.7.1",
                )
            })
            .collect()
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
