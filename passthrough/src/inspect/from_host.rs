use std::io;

use devices::pci::{
    BarIndex, BarInfo, BarKind, CONFIG_SPACE_SIZE, ConfigSpace, PciAddress, capabilities,
};

use super::data::{Inspection, RegionKind, Resets, Source};
use super::make::{Facts, InspectError, RegionFacts, inspection, snapshot};
use crate::assigned::Placement;
use crate::config::ConfigError;
use crate::host::{Function, Host, Resource, Survey};
use crate::sys;
use crate::vfio::RegionArea;

/// What a resource is (linux/ioport.h, `IORESOURCE_*`).
const IO: u64 = 0x100;
const PREFETCHABLE: u64 = 0x2000;
const ROM: u8 = 6;
const CONFIG: u32 = 7;

const INTERRUPT_PIN: u16 = 0x3d;
const MSI: u8 = 0x05;
const MSI_X: u8 = 0x11;

impl Inspection {
    /// Inspects the device at `device` by what sysfs tells of it, on whatever
    /// driver it is. It is to stand at `placement`, or where it belongs
    /// ([`Placement::natural`]).
    ///
    /// Opens no VFIO file, and so resets nothing. A device that sleeps is woken
    /// to read its config space. Without privilege sysfs gives 64 bytes of it:
    /// there is no guest's view then, and [`Self::refusal`] says so.
    ///
    /// # Errors
    /// When there is no such device, or sysfs can't be read.
    pub fn of_host(
        host: &Host,
        device: PciAddress,
        placement: Option<Placement>,
    ) -> Result<Self, InspectError> {
        let survey = Survey::read(host)?;
        let function = survey.functions.get(&device);
        let function = function.ok_or(InspectError::NoDevice(device))?;
        let (physical, config) = config(host, function, CONFIG_SPACE_SIZE)
            .map_err(|source| InspectError::Config { device, source })?
            .ok_or(InspectError::NoDevice(device))?;
        let reset = survey.reset_of(function);
        let mut regions: Vec<_> = function.resources.iter().map(region).collect();
        regions.push(RegionFacts {
            index: CONFIG,
            kind: RegionKind::Config,
            size: physical.len() as u64,
            address: None,
            mappable: Vec::new(),
            asked: false,
        });
        Ok(inspection(Facts {
            device,
            source: Source::Sysfs,
            placement,
            bars: bars(function),
            regions,
            resets: Resets {
                function: reset.possible,
                methods: reset.methods,
                bus: survey.reset_along(function),
            },
            vectors: vectors(&config),
            snapshot: config,
            physical,
        }))
    }
}

/// The first `size` bytes of a function's config space, or as many as sysfs gives, as
/// they are and with what a virtual function has elsewhere. Nothing when there is no such
/// function.
pub(super) fn config(
    host: &Host,
    function: &Function,
    size: usize,
) -> io::Result<Option<(Vec<u8>, ConfigSpace)>> {
    let Some(file) = host.config(&function.address.to_string())? else {
        return Ok(None);
    };
    let physical = file.bytes(size)?;
    let mut config = snapshot(&physical);
    if let (Some(ids), true) = (&function.ids, function.physical_function.is_some()) {
        config.set(0x00, &ids.vendor.to_le_bytes());
        config.set(0x02, &ids.device.to_le_bytes());
    }
    Ok(Some((physical, config)))
}

fn kind(resource: &Resource) -> BarKind {
    let prefetchable = resource.flags & PREFETCHABLE != 0;
    match resource.index {
        ROM => BarKind::Rom,
        _ if resource.flags & IO != 0 => BarKind::Io,
        _ if resource.is_64_bit() => BarKind::Memory64 { prefetchable },
        _ => BarKind::Memory32 { prefetchable },
    }
}

fn bars(function: &Function) -> Result<Vec<BarInfo>, ConfigError> {
    let mut bars = Vec::new();
    for resource in &function.resources {
        let kind = kind(resource);
        let index = match resource.index {
            ROM => Some(BarIndex::ROM),
            index => BarIndex::new(index),
        };
        // The kernel's VFIO, too, shows what has no address as absent.
        let (Some(index), 1..) = (index, resource.start) else {
            continue;
        };
        let size = resource.size;
        let bar = BarInfo { index, kind, size };
        match bar.is_valid() {
            true => bars.push(bar),
            false if index == BarIndex::ROM => {}
            false => return Err(ConfigError::Bar { index, kind, size }),
        }
    }
    Ok(bars)
}

/// A resource, with the map that VFIO offers of most BARs: all of it, from a
/// page on.
fn region(resource: &Resource) -> RegionFacts {
    let whole = RegionArea {
        offset: 0,
        size: resource.size,
    };
    let can_map = resource.is_memory_bar() && resource.size >= sys::page_size();
    RegionFacts {
        index: resource.index.into(),
        kind: kind(resource).into(),
        size: resource.size,
        address: (resource.start != 0).then_some(resource.start),
        mappable: can_map.then_some(whole).into_iter().collect(),
        asked: false,
    }
}

/// How many vectors config space says that there are.
fn vectors(config: &ConfigSpace) -> [u32; 5] {
    let pin = u32::from(config.u8(INTERRUPT_PIN) != 0);
    let mut vectors = [pin, 0, 0, 0, 0];
    for capability in capabilities(|at, data| config.read(at, data)) {
        let control = u32::from(config.u16(capability.offset + 2));
        match capability.id {
            MSI => vectors[1] = 1 << (control >> 1 & 7).min(5),
            MSI_X => vectors[2] = (control & 0x7ff) + 1,
            _ => {}
        }
    }
    vectors
}
