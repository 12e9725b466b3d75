//! Finds a place for every BAR, and the windows of the ports above them.

use std::cmp::Reverse;
use std::fmt;

use thiserror::Error;

use super::address::PciAddress;
use super::bar::{BarInfo, BarKind};
use super::root_complex::{RootComplex, lock};
use super::window::{Space, Window, WindowKind, Windows};

/// A BAR that needs a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRequest {
    /// Whose it is.
    pub function: PciAddress,
    /// The BAR.
    pub bar: BarInfo,
}

impl fmt::Display for BarRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, bar } = self;
        write!(f, "{} of {function} ({:#x} bytes)", bar.index, bar.size)
    }
}

/// Everything that needs a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// The root ports, each with the bus below it.
    pub ports: Vec<(PciAddress, u8)>,
    /// The BARs, on the root bus and below the ports.
    pub bars: Vec<BarRequest>,
}

impl Requests {
    /// What the functions of `root` need.
    pub fn of(root: &RootComplex) -> Self {
        let mut bars = Vec::new();
        for (function, handle) in root.functions() {
            let of_one = lock(&handle).bars();
            bars.extend(of_one.into_iter().map(|bar| BarRequest { function, bar }));
        }
        Self {
            ports: root.ports(),
            bars,
        }
    }
}

/// A BAR with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Whose BAR it is.
    pub function: PciAddress,
    /// The BAR.
    pub bar: BarInfo,
    /// The first guest address, or port.
    pub address: u64,
}

/// What a port is to let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortWindows {
    /// The port.
    pub port: PciAddress,
    /// The bus below it.
    pub bus: u8,
    /// Ports, in units of 4 KiB.
    pub io: Option<Window>,
    /// Memory below 4 GiB, in units of 1 MiB.
    pub memory: Option<Window>,
    /// Prefetchable memory, in units of 1 MiB.
    pub prefetchable: Option<Window>,
}

/// Where everything goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The BARs, in the order of the requests.
    pub bars: Vec<Placement>,
    /// The ports, in the order of the requests.
    pub ports: Vec<PortWindows>,
    /// I/O BARs below ports for which the ports did not suffice. Each root
    /// port needs 4 KiB of the 64 KiB. An endpoint must do without
    /// (PCIe 6.0 §1.3.2.2).
    pub left_out: Vec<BarRequest>,
}

/// Why BARs could not be placed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// The size of a BAR (or of a page) is impossible.
    #[error("cannot place {0}: a BAR's size must be a power of two")]
    BadSize(BarRequest),
    /// The window is not where such a window can be.
    #[error("the {kind} cannot be {window}: it must not be empty or end above {limit:#x}")]
    BadWindow {
        /// Which window.
        kind: WindowKind,
        /// As it was given.
        window: Window,
        /// The last address that it may have.
        limit: u64,
    },
    /// The BAR's kind of window does not exist.
    #[error("cannot place {request}: the guest has no {kind}")]
    NoWindow {
        /// The BAR.
        request: BarRequest,
        /// The window that it needs.
        kind: WindowKind,
    },
    /// The bus that the BAR's function is on does not exist.
    #[error("cannot place {0}: no port leads to its bus")]
    NoPort(BarRequest),
    /// The window is full, or has no hole with the right alignment.
    #[error(
        "cannot place {request}: {} needs {size:#x} bytes at a multiple of {alignment:#x} in the \
         {kind} {window}, where {free:#x} bytes are free, {largest:#x} of them together; make the \
         window larger or give the guest fewer devices",
        port.map_or("it".to_owned(), |port| format!("the port {port} above it"))
    )]
    NoRoom {
        /// The BAR; below a port, the largest of those that go together.
        request: BarRequest,
        /// The port whose window it is that has no room.
        port: Option<PciAddress>,
        /// Bytes needed.
        size: u64,
        /// The alignment needed.
        alignment: u64,
        /// The window's kind.
        kind: WindowKind,
        /// The window.
        window: Window,
        /// Bytes that are free in all.
        free: u64,
        /// Bytes of the largest free range.
        largest: u64,
    },
    /// The BARs below a port are together larger than the address space.
    #[error("the BARs below the port {port}, {request} among them, fit in no address space")]
    TooMuch {
        /// The port.
        port: PciAddress,
        /// The BAR with which it was too much.
        request: BarRequest,
    },
}

/// Finds a place for every BAR, and windows for the ports.
///
/// Addresses are multiples of the size. Memory BARs take at least
/// `page_size` (a power of two), so that two never share a page: what is mapped
/// into the guest is mapped in pages. What needs the largest alignment goes
/// first, each into the lowest hole. The BARs below a port go together, the
/// largest first, so that nothing is wasted between them:
///
/// ```text
///  64-bit window   | port 1: 16 GiB BAR | 64 KiB BAR | to 1 MiB | port 2 ...
/// ```
///
/// | BAR | on the root bus | below a port |
/// |---|---|---|
/// | 64-bit, prefetchable | 64-bit window | the prefetchable window, in the 64-bit window |
/// | 64-bit | 64-bit window | the memory window, below 4 GiB |
/// | 32-bit, ROM | 32-bit window | the memory window |
/// | I/O | I/O window | the I/O window |
///
/// Without a 64-bit window the 32-bit one serves.
///
/// PCI Express would let a prefetchable window hold any memory BAR (PCIe 6.0
/// §7.5.1.2.1). But Linux does not: it takes such a BAR for misplaced and moves
/// it below 4 GiB (`pci_find_parent_resource`), so that is where it goes at
/// once. On the root bus no window is prefetchable and the choice is free: a
/// device with a huge BAR that is not prefetchable belongs there.
///
/// # Errors
/// See [`PlaceError`].
pub fn place(windows: &Windows, page_size: u64, requests: &Requests) -> Result<Layout, PlaceError> {
    let mut spaces = Spaces::new(windows)?;
    let mut items = gather(windows, page_size, requests)?;
    items.sort_by_key(|item| {
        let (alignment, size) = (Reverse(item.alignment), Reverse(item.size));
        (item.is_optional(), alignment, size, item.order)
    });
    let mut placer = Placer::new(requests);
    for item in items {
        match spaces.take(&item) {
            Ok(address) => placer.put(&item, address),
            Err(_) if item.is_optional() => {
                let left_out = item.contents.iter().map(|(_, _, request)| *request);
                placer.layout.left_out.extend(left_out);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(placer.finish())
}

/// What a port can let through: the units of its windows' registers
/// (PCIe 6.0 §7.5.1.3.6 and §7.5.1.3.8).
const MEMORY_UNIT: u64 = 1 << 20;
const IO_UNIT: u64 = 1 << 12;

/// A range that must be found in one of the root complex's windows: a BAR on
/// the root bus, or a window of a port.
struct Item {
    kind: WindowKind,
    port: Option<(PciAddress, Side)>,
    size: u64,
    alignment: u64,
    /// Among equals, the first request goes first.
    order: usize,
    /// Bytes taken, the index of the request, the request.
    contents: Vec<(u64, usize, BarRequest)>,
}

/// Which window of a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Io,
    Memory,
    Prefetchable,
}

impl Side {
    fn of(kind: BarKind) -> Self {
        match kind {
            BarKind::Io => Self::Io,
            BarKind::Memory64 { prefetchable: true } => Self::Prefetchable,
            BarKind::Memory64 { .. } | BarKind::Memory32 { .. } | BarKind::Rom => Self::Memory,
        }
    }
}

fn gather(windows: &Windows, page: u64, requests: &Requests) -> Result<Vec<Item>, PlaceError> {
    let wide = match windows.memory64 {
        Some(_) => WindowKind::Memory64,
        None => WindowKind::Memory32,
    };
    let mut items: Vec<Item> = Vec::new();
    for (index, request) in requests.bars.iter().enumerate() {
        let taken = footprint(request, page)?;
        let content = (taken, index, *request);
        let side = Side::of(request.bar.kind);
        if request.function.bus() == 0 {
            let kind = match request.bar.kind {
                BarKind::Io => WindowKind::Io,
                BarKind::Memory64 { .. } => wide,
                BarKind::Memory32 { .. } | BarKind::Rom => WindowKind::Memory32,
            };
            items.push(Item {
                kind,
                port: None,
                size: taken,
                alignment: taken,
                order: index,
                contents: vec![content],
            });
            continue;
        }
        let mut ports = requests.ports.iter();
        let Some((port, _)) = ports.find(|(_, bus)| *bus == request.function.bus()) else {
            return Err(PlaceError::NoPort(*request));
        };
        let above = Some((*port, side));
        match items.iter_mut().find(|item| item.port == above) {
            Some(item) => item.contents.push(content),
            None => items.push(Item {
                kind: match side {
                    Side::Io => WindowKind::Io,
                    Side::Memory => WindowKind::Memory32,
                    Side::Prefetchable => wide,
                },
                port: above,
                size: 0,
                alignment: 0,
                order: index,
                contents: vec![content],
            }),
        }
    }
    for item in &mut items {
        item.measure()?;
    }
    Ok(items)
}

impl Item {
    /// Whether the guest does without when there is no room for it. These are
    /// placed last.
    fn is_optional(&self) -> bool {
        self.port.is_some_and(|(_, side)| side == Side::Io)
    }

    /// Sizes the window of a port after what is in it.
    fn measure(&mut self) -> Result<(), PlaceError> {
        let Some((port, side)) = self.port else {
            return Ok(());
        };
        let unit = match side {
            Side::Io => IO_UNIT,
            Side::Memory | Side::Prefetchable => MEMORY_UNIT,
        };
        // Powers of two, the largest first, pack without a hole.
        self.contents
            .sort_by_key(|(taken, index, _)| (Reverse(*taken), *index));
        let mut sum = 0_u64;
        for &(taken, _, request) in &self.contents {
            sum = sum
                .checked_add(taken)
                .filter(|sum| sum.checked_next_multiple_of(unit).is_some())
                .ok_or(PlaceError::TooMuch { port, request })?;
        }
        self.size = sum.next_multiple_of(unit);
        let largest = self.contents.first().map_or(unit, |(taken, _, _)| *taken);
        self.alignment = largest.max(unit);
        Ok(())
    }
}

/// What a BAR takes of its window, and to what it is aligned.
fn footprint(request: &BarRequest, page_size: u64) -> Result<u64, PlaceError> {
    let size = request.bar.size;
    let taken = match request.bar.kind {
        BarKind::Io => size,
        BarKind::Memory32 { .. } | BarKind::Memory64 { .. } | BarKind::Rom => size.max(page_size),
    };
    if size.is_power_of_two() && taken.is_power_of_two() {
        Ok(taken)
    } else {
        Err(PlaceError::BadSize(*request))
    }
}

/// The root complex's windows and what is free in each.
struct Spaces([(WindowKind, Option<(Window, Space)>); 3]);

impl Spaces {
    fn new(windows: &Windows) -> Result<Self, PlaceError> {
        let space = |kind: WindowKind, window: Option<Window>| {
            let Some(window) = window else {
                return Ok((kind, None));
            };
            let bad = PlaceError::BadWindow {
                kind,
                window,
                limit: kind.limit(),
            };
            let space = Space::new(kind, window).ok_or(bad)?;
            Ok((kind, Some((window, space))))
        };
        Ok(Self([
            space(WindowKind::Memory32, windows.memory32)?,
            space(WindowKind::Memory64, windows.memory64)?,
            space(WindowKind::Io, windows.io)?,
        ]))
    }

    fn take(&mut self, item: &Item) -> Result<u64, PlaceError> {
        let kind = item.kind;
        let Some((_, _, request)) = item.contents.first() else {
            return Ok(0);
        };
        let spaces = self.0.iter_mut();
        let found = spaces
            .filter(|(of, _)| *of == kind)
            .find_map(|(_, s)| s.as_mut());
        let Some((window, space)) = found else {
            return Err(PlaceError::NoWindow {
                request: *request,
                kind,
            });
        };
        space.take(item.size, item.alignment).ok_or_else(|| {
            let (free, largest) = space.free();
            PlaceError::NoRoom {
                request: *request,
                port: item.port.map(|(port, _)| port),
                size: item.size,
                alignment: item.alignment,
                kind,
                window: *window,
                free,
                largest,
            }
        })
    }
}

/// Collects what has been placed.
struct Placer {
    layout: Layout,
    bars: Vec<(usize, Placement)>,
}

impl Placer {
    fn new(requests: &Requests) -> Self {
        let closed = |&(port, bus): &(PciAddress, u8)| PortWindows {
            port,
            bus,
            io: None,
            memory: None,
            prefetchable: None,
        };
        let layout = Layout {
            ports: requests.ports.iter().map(closed).collect(),
            ..Layout::default()
        };
        Self {
            layout,
            bars: Vec::with_capacity(requests.bars.len()),
        }
    }

    fn put(&mut self, item: &Item, base: u64) {
        let mut address = base;
        for &(taken, index, request) in &item.contents {
            let placement = Placement {
                function: request.function,
                bar: request.bar,
                address,
            };
            self.bars.push((index, placement));
            address = address.saturating_add(taken);
        }
        let Some((port, side)) = item.port else {
            return;
        };
        let window = Some(Window {
            base,
            size: item.size,
        });
        for windows in self.layout.ports.iter_mut().filter(|w| w.port == port) {
            match side {
                Side::Io => windows.io = window,
                Side::Memory => windows.memory = window,
                Side::Prefetchable => windows.prefetchable = window,
            }
        }
    }

    fn finish(mut self) -> Layout {
        self.bars.sort_by_key(|(index, _)| *index);
        let bars = self.bars.into_iter().map(|(_, placement)| placement);
        self.layout.bars = bars.collect();
        self.layout
    }
}

#[cfg(test)]
#[path = "placement_test.rs"]
mod tests;
