use devices::pci::{BarIndex, BarInfo, BarKind, PciAddress};

use super::data::{Inspection, RegionKind, Resets, Source};
use super::make::{Facts, InspectError, RegionFacts, inspection, snapshot};
use crate::assigned::Placement;
use crate::config;
use crate::vfio::{DeviceBackend, HotReset, IrqIndex};

const ROM: u32 = 6;
const CONFIG: u32 = 7;
const IRQS: [IrqIndex; 5] = [
    IrqIndex::Intx,
    IrqIndex::Msi,
    IrqIndex::Msix,
    IrqIndex::Error,
    IrqIndex::Request,
];

impl Inspection {
    /// Inspects the device at `device`, opened as `backend`. It is to stand at
    /// `placement`, or where it belongs ([`Placement::natural`]).
    ///
    /// A device whose BARs were written to since it was opened shows what was
    /// written as its addresses.
    ///
    /// # Errors
    /// [`InspectError::Device`] when it does not answer.
    pub fn of_backend(
        device: PciAddress,
        backend: &dyn DeviceBackend,
        placement: Option<Placement>,
    ) -> Result<Self, InspectError> {
        let error = |source| InspectError::Device { device, source };
        let config = config::snapshot(backend).map_err(error)?;
        let mut physical = vec![0; devices::pci::CONFIG_SPACE_SIZE];
        config.read(0, &mut physical);
        let size = backend.region(CONFIG).map_or(0, |region| region.size);
        physical.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        let bars = config::discover_bars(backend, &config);
        let rom = backend.region(ROM).map(|region| BarInfo {
            index: BarIndex::ROM,
            kind: BarKind::Rom,
            size: region.size,
        });
        let rom = rom.filter(BarInfo::is_valid);
        let region = |index: u32| {
            let region = backend.region(index)?;
            let index_of_bar = u8::try_from(index).ok().and_then(BarIndex::new);
            let register = index_of_bar.or((index == ROM).then_some(BarIndex::ROM));
            let register = register.map(BarIndex::register);
            let value = register.map_or(0, |register| config.u32(register));
            let kind = match index {
                ROM => RegionKind::Rom,
                CONFIG => RegionKind::Config,
                _ => config::bar_kind(value).into(),
            };
            let low_bits = match kind {
                RegionKind::Io => 0x3,
                RegionKind::Rom => 0x7ff,
                _ => 0xf,
            };
            let mut address = u64::from(value & !low_bits);
            if let (RegionKind::Memory64 { .. }, Some(register)) = (kind, register) {
                address |= u64::from(config.u32(register + 4)) << 32;
            }
            Some(RegionFacts {
                index,
                kind,
                size: region.size,
                address: (address != 0).then_some(address),
                mappable: region.mappable.clone(),
                asked: true,
            })
        };
        // It can't be taken either when the kernel does not tell.
        let hot_reset = backend.hot_reset_info().ok().flatten();
        let others = |reset: HotReset| {
            let affected = reset.affected.into_iter().map(|hit| hit.device);
            affected.filter(|hit| *hit != device).collect()
        };
        let count = |index| backend.irq(index).map_or(0, |irq| irq.count);
        Ok(inspection(Facts {
            device,
            source: Source::Vfio,
            placement,
            snapshot: snapshot(&physical),
            physical,
            bars: bars.map(|bars| bars.into_iter().chain(rom).collect()),
            regions: (0..=CONFIG).filter_map(region).collect(),
            resets: Resets {
                function: backend.can_reset(),
                methods: Vec::new(),
                bus: hot_reset.map(others),
            },
            vectors: IRQS.map(count),
        }))
    }
}

impl From<BarKind> for RegionKind {
    fn from(kind: BarKind) -> Self {
        match kind {
            BarKind::Memory32 { prefetchable } => Self::Memory32 { prefetchable },
            BarKind::Memory64 { prefetchable } => Self::Memory64 { prefetchable },
            BarKind::Io => Self::Io,
            BarKind::Rom => Self::Rom,
        }
    }
}
