use devices::pci::PciAddress;

/// What a hot reset of a device would hit: everything on its bus, or in its
/// slot (`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`, linux/vfio.h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotReset {
    /// The device itself and the others, in the kernel's order.
    pub affected: Vec<Affected>,
}

/// A device that a hot reset hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affected {
    /// Where it is.
    pub device: PciAddress,
    /// Who has it.
    pub holder: Holder,
}

/// Who has a device that a hot reset hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Who asks has it open, or may have: through groups the kernel only tells
    /// how many devices of a group are open.
    This,
    /// Nobody has it open, and nobody but who asks can open it.
    Nobody,
    /// The host or another process has it, or could.
    Other,
}

impl HotReset {
    /// Whom a hot reset for `device` would disturb: all others that it hits,
    /// besides those that nobody uses.
    pub fn disturbed(&self, device: PciAddress) -> Vec<PciAddress> {
        let others = self.affected.iter().filter(|hit| hit.device != device);
        others
            .filter(|hit| hit.holder != Holder::Nobody)
            .map(|hit| hit.device)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_neighbours_are_not_disturbed() {
        let address = |text: &str| text.parse().unwrap();
        let hit = |device, holder| Affected {
            device: address(device),
            holder,
        };
        let reset = HotReset {
            affected: vec![
                hit("0000:02:01.0", Holder::This),
                hit("0000:02:02.0", Holder::Nobody),
                hit("0000:02:03.0", Holder::Other),
                hit("0000:02:04.0", Holder::This),
            ],
        };
        assert_eq!(
            reset.disturbed(address("0000:02:01.0")),
            ["0000:02:03.0", "0000:02:04.0"].map(address)
        );
    }
}
