use devices::pci::{BarInfo, BarKind, ConfigSpace, capabilities};

use super::rule::{Rule, When};
use super::{express, view};
use crate::assigned::Placement;
use crate::vfio::{DeviceBackend, DeviceError};

const PCI_EXPRESS: u8 = 0x10;

/// The device that rules are applied to, and its place in the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// Its config space at the start.
    pub(crate) snapshot: &'a ConfigSpace,
    /// Its BARs, and the ROM that the guest is to see.
    pub(crate) bars: &'a [BarInfo],
    /// Where it stands in the guest.
    pub(crate) placement: Placement,
    /// The host can reset it.
    pub(crate) can_reset: bool,
    /// The host can deliver its MSI-X.
    pub(crate) has_msix: bool,
}

/// Where a device's PCI Express capability is.
fn find_express(snapshot: &ConfigSpace) -> Option<u16> {
    let mut list = capabilities(|at, data| snapshot.read(at, data));
    let found = list.find(|capability| capability.id == PCI_EXPRESS);
    found.map(|capability| capability.offset)
}

impl Placement {
    /// Where a device belongs: with a link behind a port, without one on the
    /// root bus.
    ///
    /// # Errors
    /// When its config space can't be read.
    pub fn natural(backend: &dyn DeviceBackend) -> Result<Self, DeviceError> {
        Ok(Self::natural_for(&view::snapshot(backend)?))
    }

    /// As [`Self::natural`], for a device with this config space.
    pub(crate) fn natural_for(snapshot: &ConfigSpace) -> Self {
        match find_express(snapshot) {
            Some(at) if express::has_link(snapshot, at) => Self::BehindPort,
            _ => Self::RootBus,
        }
    }
}

impl Subject<'_> {
    /// The rules of a table that hold for this device.
    pub(super) fn choose(&self, rules: &[Rule]) -> Vec<Rule> {
        let express = find_express(self.snapshot);
        let second = express.is_some_and(|at| express::has_second(self.snapshot, at));
        let behind_port = self.placement == Placement::BehindPort;
        let has = |wanted: fn(&BarKind) -> bool| self.bars.iter().any(|bar| wanted(&bar.kind));
        let holds = |rule: &&Rule| match rule.when {
            When::Always => true,
            When::Conventional => express.is_none(),
            When::Express => express.is_some(),
            When::Ports => has(|kind| kind.is_io()),
            When::Memory => has(|kind| !kind.is_io()),
            When::RootBus => !behind_port,
            When::BehindPort => behind_port,
            When::Reset => self.can_reset,
            When::Second => second,
            When::SecondBehindPort => second && behind_port,
        };
        rules.iter().filter(holds).copied().collect()
    }
}
