use std::sync::Arc;

use devices::pci::{BarDecode, BarIndex, BarInfo, PciAddress};

use super::{BarLayout, BarMapping, DirectMemory, Emulated};
use crate::config::MsixCapability;
use crate::iommu::{AddressSpace, Peer};
use crate::limit::LogLimit;
use crate::ports::{HostMemory, MemoryMapper};
use crate::sys;
use crate::vfio::{DeviceBackend, RegionArea};

/// Messages about BARs that can't be mapped; a guest can cause any number.
const MAX_MESSAGES: u32 = 8;

/// A BAR: how it is divided, and where it is now.
#[derive(Debug)]
struct Bar {
    info: BarInfo,
    layout: BarLayout,
    direct: Vec<DirectMemory>,
    mapping: Option<BarMapping>,
    /// Where mapping it was refused: not tried there again.
    refused: Option<u64>,
}

impl Bar {
    /// Whether it can be mapped where it is. A BAR below a page can be put
    /// into the middle of one, where the rest of its page would not fit.
    fn is_mappable_at(&self, address: u64) -> bool {
        !self.direct.is_empty() && address.is_multiple_of(sys::page_size())
    }
}

/// The BARs of a device, each with what it has in the guest's address space.
///
/// What is mapped follows from where the BARs are decoded:
/// [`Self::unmap_stale`] takes away whatever is not where it should
/// be, [`Self::map_decoded`] adds what is missing. A BAR is mapped with all of
/// its pieces or with none. One that the mapper refuses is trapped, which is
/// slow and right, and is asked for again once it has moved or was off.
#[derive(Debug)]
pub(crate) struct Bars {
    host: PciAddress,
    bars: Vec<Bar>,
    mapper: Arc<dyn MemoryMapper>,
    peer: Peer,
    log: LogLimit,
}

impl Bars {
    /// No BARs yet, of the device at `host`.
    pub(crate) fn new(
        host: PciAddress,
        mapper: Arc<dyn MemoryMapper>,
        space: Arc<dyn AddressSpace>,
    ) -> Self {
        Self {
            host,
            bars: Vec::new(),
            mapper,
            peer: Peer::join(host, space),
            log: LogLimit::new(MAX_MESSAGES),
        }
    }

    /// Divides a BAR and brings what is direct into this process. What can't
    /// be mapped is trapped.
    pub(crate) fn add(
        &mut self,
        info: BarInfo,
        backend: &dyn DeviceBackend,
        msix: Option<&MsixCapability>,
    ) {
        let region = u32::from(info.index.get());
        let mappable = match backend.region(region) {
            Some(region) if !info.kind.is_io() && region.readable && region.writable => {
                region.mappable.as_slice()
            }
            _ => &[],
        };
        let emulated = emulated(info.index, msix);
        let layout = BarLayout::new(info.size, mappable, &emulated, sys::page_size());
        let mut direct = Vec::with_capacity(layout.direct.len());
        for &area in &layout.direct {
            match backend.region_map(region, area) {
                Ok(memory) => direct.push(DirectMemory {
                    offset: area.offset,
                    memory,
                }),
                Err(error) => {
                    let (host, index) = (self.host, info.index);
                    log::warn!("{host}: {index} is slow, as it can't be mapped: {error}");
                }
            }
        }
        log::debug!("{}: {info:?}: {layout:x?}", self.host);
        self.bars.push(Bar {
            info,
            layout,
            direct,
            mapping: None,
            refused: None,
        });
    }

    /// What the BARs are.
    pub(crate) fn infos(&self) -> impl Iterator<Item = BarInfo> {
        self.bars.iter().map(|bar| bar.info)
    }

    /// What of a BAR is emulated; nothing when there is no such BAR.
    pub(crate) fn emulated(&self, index: BarIndex) -> Option<&[(RegionArea, Emulated)]> {
        let bar = self.bars.iter().find(|bar| bar.info.index == index)?;
        Some(&bar.layout.emulated)
    }

    /// Takes the BARs away that don't answer where they are mapped.
    pub(crate) fn unmap_stale(&mut self, decoded: &[BarDecode]) {
        for bar in &mut self.bars {
            let address = address_of(decoded, bar.info.index);
            if address != bar.mapping.as_ref().map(BarMapping::address) {
                bar.mapping = None;
            }
            if address != bar.refused {
                bar.refused = None;
            }
        }
    }

    /// Gives up the memory of all BARs, which must be unmapped. None is mapped
    /// again.
    pub(crate) fn take_memory(&mut self) -> Vec<Arc<dyn HostMemory>> {
        let direct = self.bars.iter_mut().flat_map(|bar| bar.direct.drain(..));
        direct.map(|part| part.memory).collect()
    }

    /// Maps the BARs that answer and are not mapped yet. The device's memory
    /// decoding must be on.
    pub(crate) fn map_decoded(&mut self, decoded: &[BarDecode]) {
        for bar in &mut self.bars {
            let Some(address) = address_of(decoded, bar.info.index) else {
                continue;
            };
            if bar.mapping.is_some() || bar.refused.is_some() || !bar.is_mappable_at(address) {
                continue;
            }
            match BarMapping::new(address, &bar.direct, &*self.mapper, &self.peer) {
                Ok(mapping) => bar.mapping = Some(mapping),
                Err(error) => {
                    bar.refused = Some(address);
                    if let Some(end) = self.log.admit() {
                        let (host, index) = (self.host, bar.info.index);
                        log::warn!(
                            "{host}: {index} at {address:#x} is slow, as it can't be mapped into \
                             the guest: {error}{end}"
                        );
                    }
                }
            }
        }
    }
}

/// What of a BAR the guest must not reach directly.
fn emulated(index: BarIndex, msix: Option<&MsixCapability>) -> Vec<(RegionArea, Emulated)> {
    let Some(msix) = msix else {
        return Vec::new();
    };
    [
        (Some(msix.table), Emulated::Table),
        (msix.pba, Emulated::Pba),
    ]
    .into_iter()
    .filter_map(|(place, what)| Some((place?, what)))
    .filter(|(place, _)| place.bar == index)
    .map(|(place, what)| (place.area, what))
    .collect()
}

/// Where a BAR is decoded, if it is.
pub(crate) fn address_of(decoded: &[BarDecode], index: BarIndex) -> Option<u64> {
    let found = decoded.iter().find(|decode| decode.bar.index == index);
    found.map(|decode| decode.address)
}

#[cfg(test)]
#[path = "bars_test.rs"]
mod tests;
