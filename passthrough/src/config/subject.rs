use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, capabilities};

use super::express;
use super::rule::{Rule, When};
use crate::assigned::Placement;
use crate::vfio::{DeviceBackend, DeviceError};

/// VFIO's region of config space.
const CONFIG_REGION: u32 = 7;
const PCI_EXPRESS: u8 = 0x10;
/// From this size on a BAR that must be below 4 GiB when it is behind a port
/// leaves no room there for those of other devices.
pub(crate) const LARGE: u64 = 256 << 20;

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
    /// Which of its interrupts can be delivered.
    pub(crate) deliverable: Deliverable,
}

/// Which kinds of a device's interrupts can be delivered to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deliverable {
    /// The interrupt pin.
    pub(crate) pin: bool,
    /// MSI.
    pub(crate) msi: bool,
    /// MSI-X.
    pub(crate) msix: bool,
}

/// Where a device's PCI Express capability is.
fn find_express(read: impl FnMut(u16, &mut [u8])) -> Option<u16> {
    let found = capabilities(read).find(|capability| capability.id == PCI_EXPRESS);
    found.map(|capability| capability.offset)
}

impl Placement {
    /// Where a device belongs: with a link behind a port, without one on the
    /// root bus. There, too, with a large 64-bit BAR that is not prefetchable: behind
    /// a port it would have to be below 4 GiB (see [`devices::pci::placement::place`]).
    ///
    /// # Errors
    /// When its config space can't be read.
    pub fn natural(backend: &dyn DeviceBackend) -> Result<Self, DeviceError> {
        let mut failed = None;
        let read = |at: u16, data: &mut [u8]| {
            if let Err(error) = backend.region_read(CONFIG_REGION, at.into(), data) {
                data.fill(0);
                failed.get_or_insert(error);
            }
        };
        let size = |bar: BarIndex| backend.region(bar.get().into()).map(|region| region.size);
        let placement = Self::natural_by(read, |bar| size(bar).unwrap_or(0));
        failed.map_or(Ok(placement), Err)
    }

    /// As [`Self::natural`], for a device whose config space is read so, and whose BARs
    /// are of such sizes.
    pub(crate) fn natural_by(
        mut read: impl FnMut(u16, &mut [u8]),
        size: impl Fn(BarIndex) -> u64,
    ) -> Self {
        let Some(at) = find_express(&mut read) else {
            return Self::RootBus;
        };
        let mut flags = [0; 2];
        read(at + express::FLAGS, &mut flags);
        if !express::has_link(u16::from_le_bytes(flags)) {
            return Self::RootBus;
        }
        let mut low = BarIndex::all().filter(|bar| size(*bar) >= LARGE);
        match low.any(|bar| is_wide_and_low(&mut read, bar)) {
            true => Self::RootBus,
            false => Self::BehindPort,
        }
    }
}

/// Memory, 64 bits, not prefetchable: the low bits of a BAR (PCIe 6.0
/// §7.5.1.2.1).
fn is_wide_and_low(mut read: impl FnMut(u16, &mut [u8]), bar: BarIndex) -> bool {
    let mut low = [0];
    read(bar.register(), &mut low);
    low[0] & 0xf == 4
}

impl Subject<'_> {
    /// The rules of a table that hold for this device.
    pub(super) fn choose(&self, rules: &[Rule]) -> Vec<Rule> {
        let express = find_express(|at, data| self.snapshot.read(at, data));
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
            When::Pin => self.deliverable.pin,
            When::Second => second,
            When::SecondBehindPort => second && behind_port,
        };
        rules.iter().filter(holds).copied().collect()
    }
}
