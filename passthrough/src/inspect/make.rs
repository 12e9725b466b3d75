use std::io;

use devices::pci::{
    BarIndex, BarInfo, Capability as Standard, ConfigSpace, ExtendedCapability, PciAddress,
    capabilities, extended_capabilities,
};
use thiserror::Error;

use super::data::{
    Access as PartAccess, Bytes, Capability, Handling, Identity, Inspection, Interrupt, Region,
    RegionKind, Register, Resets, Source,
};
use super::{compare, decode, parts};
use crate::assigned::Placement;
use crate::config::{
    self, Access, ConfigError, ConfigView, Deliverable, Found, MsixCapability, RuleBook, Subject,
    name_of,
};
use crate::host::SurveyError;
use crate::vfio::{DeviceError, RegionArea};

/// Bytes of config space with all standard capabilities.
pub(super) const STANDARD: usize = 0x100;
const STATUS: u16 = 0x06;
const HEADER_TYPE: u16 = 0x0e;

/// Why a device can't be inspected.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The host has no such device.
    #[error("device {0} does not exist: `lspci -D` lists the host's devices")]
    NoDevice(PciAddress),
    /// sysfs can't be read.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// Its config space can't be read from sysfs.
    #[error("cannot read config space of device {device} from sysfs: look for why with `dmesg`")]
    Config {
        /// The device.
        device: PciAddress,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Its config space can't be read through VFIO.
    #[error("device {device} does not answer; see the host's kernel log")]
    Device {
        /// The device.
        device: PciAddress,
        /// What failed.
        #[source]
        source: DeviceError,
    },
}

/// What is known of a device before anything is made of it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) device: PciAddress,
    pub(super) source: Source,
    pub(super) placement: Option<Placement>,
    /// Config space as far as it could be read.
    pub(super) physical: Vec<u8>,
    /// The same, as the guest's view is made from it.
    pub(super) snapshot: ConfigSpace,
    /// BARs and ROM, or why there can't be any.
    pub(super) bars: Result<Vec<BarInfo>, ConfigError>,
    pub(super) regions: Vec<RegionFacts>,
    pub(super) resets: Resets,
    /// How many vectors of `INTx`, MSI, MSI-X, error and request.
    pub(super) vectors: [u32; 5],
}

/// A region as VFIO or sysfs has it.
#[derive(Debug)]
pub(super) struct RegionFacts {
    pub(super) index: u32,
    pub(super) kind: RegionKind,
    pub(super) size: u64,
    pub(super) address: Option<u64>,
    /// What can be mapped, and whether VFIO said so.
    pub(super) mappable: Vec<RegionArea>,
    pub(super) asked: bool,
}

/// An inspection of a device of which these are the facts.
pub(super) fn inspection(facts: Facts) -> Inspection {
    let snapshot = &facts.snapshot;
    let size = |bar: BarIndex| {
        let mut regions = facts.regions.iter();
        let region = regions.find(|region| region.index == u32::from(bar.get()));
        region.map_or(0, |region| region.size)
    };
    let natural = || Placement::natural_by(|at, data| snapshot.read(at, data), size);
    let placement = facts.placement.unwrap_or_else(natural);
    let [pins, msi_vectors, msix_vectors, ..] = facts.vectors;
    let deliverable = Deliverable {
        pin: pins > 0 && config::pin(snapshot).is_some(),
        msi: msi_vectors > 0,
        msix: msix_vectors > 0,
    };
    let book = match &facts.bars {
        _ if facts.physical.len() < STANDARD => Err(format!(
            "only {} bytes of its config space could be read: run as root to see the rest",
            facts.physical.len()
        )),
        Err(error) => Err(error.to_string()),
        Ok(bars) => RuleBook::new(&Subject {
            snapshot,
            bars,
            placement,
            can_reset: facts.resets.function,
            deliverable,
        })
        .map_err(|error| error.to_string()),
    };
    let mut inspection = Inspection {
        device: facts.device,
        source: facts.source,
        placement,
        identity: identity(snapshot),
        physical: Bytes(facts.physical.clone()),
        guest: None,
        refusal: None,
        regions: Vec::new(),
        interrupts: Vec::new(),
        resets: facts.resets.clone(),
        capabilities: Vec::new(),
        registers: Vec::new(),
        differences: Vec::new(),
    };
    let mut msix = None;
    let mut delivered = [0; 3];
    match book {
        Ok(book) => {
            msix = book.msix;
            delivered = [
                deliverable.pin.into(),
                book.msi.map_or(0, |msi| msi.capability.vectors().into()),
                book.msix.map_or(0, |msix| msix.vectors.into()),
            ];
            inspection.registers = registers(&book);
            inspection.capabilities = shown_capabilities(snapshot, &book);
            let view = ConfigView::new(snapshot, book);
            let guest = view.at_first(snapshot);
            inspection.differences =
                compare::differences(&facts.physical, &guest, &view.book.rules);
            inspection.guest = Some(Bytes(guest));
        }
        Err(refusal) => {
            if facts.physical.len() >= STANDARD {
                inspection.capabilities = bare_capabilities(snapshot, &refusal);
            }
            inspection.refusal = Some(refusal);
        }
    }
    let bars = match (&facts.bars, &inspection.guest) {
        (Ok(bars), Some(_)) => bars.as_slice(),
        _ => &[],
    };
    let regions = facts.regions.iter();
    inspection.regions = regions
        .map(|region| self::region(region, bars, msix.as_ref(), inspection.guest.is_some()))
        .collect();
    inspection.interrupts = interrupts(facts.vectors, delivered);
    inspection
}

pub(super) fn identity(config: &ConfigSpace) -> Identity {
    let class = config.u32(0x08);
    let header_type = config.u8(HEADER_TYPE);
    Identity {
        vendor: config.u16(0x00),
        device: config.u16(0x02),
        subsystem_vendor: config.u16(0x2c),
        subsystem_device: config.u16(0x2e),
        class: class >> 8,
        revision: class as u8,
        header_type: header_type & 0x7f,
        multi_function: header_type & 0x80 != 0,
        command: config.u16(0x04),
        status: config.u16(STATUS),
    }
}

fn registers(book: &RuleBook) -> Vec<Register> {
    let mut registers: Vec<_> = (book.rules.iter())
        .map(|placed| Register {
            offset: placed.place.start,
            size: placed.place.end - placed.place.start,
            bits: placed.rule.bits,
            name: placed.rule.name.to_owned(),
            section: placed.rule.section.to_owned(),
            handling: handling(placed.rule.access),
            reason: placed.rule.why.to_owned(),
        })
        .collect();
    // Stable: of two at one place the later still has the last word.
    registers.sort_by_key(|register| register.offset);
    registers
}

fn handling(access: Access) -> Handling {
    match access {
        Access::Constant(shown) => Handling::Constant { shown },
        Access::Value(value) => Handling::Value { value },
        Access::Guest { value, writable } | Access::Kept { value, writable } => {
            Handling::Guest { value, writable }
        }
        Access::Shared { writable } => Handling::Shared { writable },
        Access::Device {
            readable,
            writable,
            clearable,
        } => Handling::Device {
            readable,
            writable,
            clearable,
        },
    }
}

/// The capabilities as the rules have found them.
fn shown_capabilities(config: &ConfigSpace, book: &RuleBook) -> Vec<Capability> {
    let made = |found: &Found| Capability {
        id: found.id,
        extended: found.version.is_some(),
        name: found.title.0.to_owned(),
        section: found.title.1.to_owned(),
        offset: found.place.start,
        size: found.place.end - found.place.start,
        version: found.version,
        hidden: found.hidden.map(str::to_owned),
        details: decode::details(
            config,
            found.id,
            found.version.is_some(),
            found.place.clone(),
        ),
    };
    book.found.iter().map(made).collect()
}

/// The capabilities of a device that no guest can have.
fn bare_capabilities(config: &ConfigSpace, refusal: &str) -> Vec<Capability> {
    let read = |at, data: &mut [u8]| config.read(at, data);
    let standard = capabilities(read).map(|Standard { id, offset }| (id.into(), offset, None));
    let extended = extended_capabilities(read).map(
        |ExtendedCapability {
             id,
             version,
             offset,
         }| (id, offset, Some(version)),
    );
    let all: Vec<(u16, u16, Option<u8>)> = standard.chain(extended).collect();
    let end = |at: u16| {
        let next = all.iter().map(|(_, offset, _)| *offset);
        let limit = if at < STANDARD as u16 { 0x100 } else { 0x1000 };
        next.filter(|next| *next > at)
            .min()
            .unwrap_or(limit)
            .min(limit)
    };
    let made = |&(id, offset, version): &(u16, u16, Option<u8>)| {
        let (name, section) = name_of(id, version.is_some());
        let place = offset..end(offset);
        Capability {
            id,
            extended: version.is_some(),
            name: name.to_owned(),
            section: section.to_owned(),
            offset,
            size: place.end - place.start,
            version,
            hidden: Some(refusal.to_owned()),
            details: decode::details(config, id, version.is_some(), place),
        }
    };
    all.iter().map(made).collect()
}

fn region(
    facts: &RegionFacts,
    bars: &[BarInfo],
    msix: Option<&MsixCapability>,
    assignable: bool,
) -> Region {
    let index = match facts.kind {
        RegionKind::Config => None,
        RegionKind::Rom => Some(BarIndex::ROM),
        _ => u8::try_from(facts.index).ok().and_then(BarIndex::new),
    };
    let bar = bars.iter().find(|bar| Some(bar.index) == index);
    let parts = match (bar, facts.kind) {
        (Some(_), RegionKind::Rom) => parts::trapped(facts.size),
        (Some(bar), _) => parts::of_bar(bar, &facts.mappable, msix),
        (None, RegionKind::Config) if assignable => parts::trapped(facts.size),
        _ => Vec::new(),
    };
    let is_direct = |part: &super::RegionPart| part.access == PartAccess::Direct;
    let reason = match facts.kind {
        _ if parts.is_empty() => Some("the guest has no such region"),
        RegionKind::Config => Some("the guest sees it by the rules of its registers"),
        RegionKind::Rom => Some("read once, and then answered from memory"),
        RegionKind::Io => Some("ports are no memory that could be mapped"),
        _ if parts.iter().all(is_direct) => None,
        _ if facts.mappable.is_empty() && facts.asked => Some("VFIO lets nobody map it"),
        _ if facts.mappable.is_empty() => {
            Some("whether a BAR below a page can be mapped, VFIO says when it is asked")
        }
        _ => Some("what shares a page with the MSI-X table, or can't be mapped, is trapped"),
    };
    let mappable = facts.mappable.iter().map(|area| super::Area {
        offset: area.offset,
        size: area.size,
    });
    Region {
        index: facts.index,
        kind: facts.kind,
        size: facts.size,
        address: facts.address,
        mappable: facts.asked.then(|| mappable.collect()),
        parts,
        reason: reason.map(str::to_owned),
    }
}

/// The kinds of interrupts that there are, and what becomes of them: how many
/// of pin, MSI and MSI-X reach the guest.
fn interrupts(vectors: [u32; 5], [pins, msi, msix]: [u32; 3]) -> Vec<Interrupt> {
    const FEWER: &str = "the host has fewer vectors to give, or none that a guest can use";
    const OURS: &str = "it is the host's word to airlock and not to the guest";
    let kinds = [
        ("INTx", pins, "the function has no pin to raise it with"),
        ("MSI", msi, FEWER),
        ("MSI-X", msix, FEWER),
        ("error", 0, OURS),
        ("request", 0, OURS),
    ];
    let rows = kinds.into_iter().zip(vectors);
    rows.filter(|(_, vectors)| *vectors > 0)
        .map(|((kind, guest, why), vectors)| Interrupt {
            kind: kind.to_owned(),
            vectors,
            guest: guest.min(vectors),
            reason: (guest < vectors).then(|| why.to_owned()),
        })
        .collect()
}

/// What could be read, zeros after it.
pub(super) fn snapshot(physical: &[u8]) -> ConfigSpace {
    let mut snapshot = ConfigSpace::new();
    snapshot.set(0, physical);
    snapshot
}
