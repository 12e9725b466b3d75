//! Where BARs go: windows of guest addresses, and the placement in them.

use std::cmp::Reverse;
use std::fmt;

use thiserror::Error;

use super::address::PciAddress;
use super::bar::{BarInfo, BarKind};
use super::function::{Effects, FunctionHandle, PciFunction};
use super::root_complex::{both, lock};

/// A range of guest addresses, or of ports, that the root complex decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Window {
    /// The last address; nothing when the range is empty or past the end.
    pub const fn last(self) -> Option<u64> {
        match self.size.checked_sub(1) {
            Some(rest) => self.base.checked_add(rest),
            None => None,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last() {
            Some(last) => write!(f, "{:#x}..={last:#x}", self.base),
            None => write!(f, "{:#x} bytes from {:#x}", self.size, self.base),
        }
    }
}

/// The windows that a guest has for BARs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Memory below 4 GiB.
    pub memory32: Option<Window>,
    /// Memory anywhere, above 4 GiB as a rule.
    pub memory64: Option<Window>,
    /// Ports, below 64 Ki.
    pub io: Option<Window>,
}

/// One of the [`Windows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere.
    Memory64,
    /// Ports.
    Io,
}

impl WindowKind {
    /// The last address that such a window may have. The topmost place of the
    /// memory's address spaces is what a BAR holds while a guest sizes it.
    const fn limit(self) -> u64 {
        match self {
            Self::Memory32 => u32::MAX as u64,
            Self::Memory64 => u64::MAX,
            Self::Io => u16::MAX as u64,
        }
    }
}

impl fmt::Display for WindowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory32 => "32-bit memory window",
            Self::Memory64 => "64-bit memory window",
            Self::Io => "I/O window",
        })
    }
}

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

/// A size with the alignment that makes it enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceNeed {
    /// Bytes.
    pub size: u64,
    /// A power of two.
    pub alignment: u64,
}

/// Why BARs could not be placed or programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WindowError {
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
    /// The window is full, or has no hole with the right alignment.
    #[error(
        "cannot place {request}: it needs {needed:#x} bytes at a multiple of {needed:#x} in the \
         {kind} {window}, where {free:#x} bytes are free, {largest:#x} of them together; make the \
         window larger or give the guest fewer devices"
    )]
    NoRoom {
        /// The BAR.
        request: BarRequest,
        /// Its size, at least a page.
        needed: u64,
        /// The window's kind.
        kind: WindowKind,
        /// The window.
        window: Window,
        /// Bytes that are free in all.
        free: u64,
        /// Bytes of the largest free range.
        largest: u64,
    },
    /// All 64-bit BARs together are larger than the address space.
    #[error("the 64-bit BARs up to {0} do not fit in any address space")]
    TooMuch(BarRequest),
    /// The function did not take an address.
    #[error("cannot put {} of {function} at {address:#x}: its register reads {read:#x}", bar.index)]
    NotTaken {
        /// Whose BAR it is.
        function: PciAddress,
        /// The BAR.
        bar: BarInfo,
        /// The address that was written.
        address: u64,
        /// What the register holds instead.
        read: u64,
    },
}

/// The BARs of all `functions`, as [`place`] wants them.
pub fn bar_requests(functions: &[(PciAddress, FunctionHandle)]) -> Vec<BarRequest> {
    let of_one = |(address, function): &(PciAddress, FunctionHandle)| {
        let function_address = *address;
        lock(function)
            .bars()
            .into_iter()
            .map(move |bar| BarRequest {
                function: function_address,
                bar,
            })
    };
    functions.iter().flat_map(of_one).collect()
}

/// Finds a place for every BAR.
///
/// Addresses are multiples of the size. Memory BARs take at least
/// `page_size` (a power of two), so that two never share a page: what is mapped
/// into the guest is mapped in pages. The largest goes first, each into the
/// lowest hole, so nothing is wasted between them. 64-bit BARs go into the
/// 64-bit window, or into the 32-bit one if there is no other.
///
/// The answer is in the order of `requests`.
///
/// # Errors
/// See [`WindowError`].
pub fn place(
    windows: &Windows,
    page_size: u64,
    requests: &[BarRequest],
) -> Result<Vec<Placement>, WindowError> {
    let mut memory32 = Space::new(WindowKind::Memory32, windows.memory32)?;
    let mut memory64 = Space::new(WindowKind::Memory64, windows.memory64)?;
    let mut io = Space::new(WindowKind::Io, windows.io)?;
    let mut order = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        order.push((Reverse(footprint(request, page_size)?), index, request));
    }
    order.sort_by_key(|(size, index, _)| (*size, *index));
    let mut placed = Vec::with_capacity(requests.len());
    for (Reverse(size), index, request) in order {
        let space = match request.bar.kind {
            BarKind::Io => &mut io,
            BarKind::Memory64 { .. } if windows.memory64.is_some() => &mut memory64,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } | BarKind::Rom => &mut memory32,
        };
        let BarRequest { function, bar } = *request;
        let address = space.take(request, size)?;
        placed.push((
            index,
            Placement {
                function,
                bar,
                address,
            },
        ));
    }
    placed.sort_by_key(|(index, _)| *index);
    Ok(placed.into_iter().map(|(_, placement)| placement).collect())
}

/// The smallest 64-bit window that takes all 64-bit BARs of `requests`, if its
/// base has the answer's alignment. The size is 0 if there are none.
///
/// # Errors
/// [`WindowError::BadSize`] and [`WindowError::TooMuch`].
pub fn memory64_need(page_size: u64, requests: &[BarRequest]) -> Result<SpaceNeed, WindowError> {
    let mut need = SpaceNeed {
        size: 0,
        alignment: page_size,
    };
    for request in requests.iter().filter(|r| r.bar.kind.is_64_bit()) {
        let size = footprint(request, page_size)?;
        need.alignment = need.alignment.max(size);
        // Powers of two, the largest first, pack without a hole.
        need.size = need
            .size
            .checked_add(size)
            .ok_or(WindowError::TooMuch(*request))?;
    }
    Ok(need)
}

/// Writes the addresses of `function`'s BARs, with its decoding turned off and
/// left off: the guest's firmware or kernel turns it on.
///
/// The caller carries out the effects as for any config write.
///
/// # Errors
/// [`WindowError::NotTaken`] when a register does not hold what was written.
pub fn program(
    address: PciAddress,
    function: &FunctionHandle,
    placements: &[Placement],
) -> Result<Effects, WindowError> {
    let mut guard = lock(function);
    let mut effects = decoding_off(&mut *guard);
    for placement in placements.iter().filter(|p| p.function == address) {
        let bytes = placement.address.to_le_bytes();
        let (low, high) = bytes.split_at(4);
        let register = placement.bar.index.register();
        effects = both(effects, guard.config_write(register, low));
        if placement.bar.kind.is_64_bit() {
            effects = both(effects, guard.config_write(register + 4, high));
        }
        let read = read_address(&mut *guard, &placement.bar);
        if read != placement.address {
            return Err(WindowError::NotTaken {
                function: address,
                bar: placement.bar,
                address: placement.address,
                read,
            });
        }
    }
    Ok(effects)
}

/// The command register, and its bits that decode ports and memory (PCI 3.0 §6.2.2).
const COMMAND: u16 = 0x04;
const DECODE: u8 = 3;

fn decoding_off(function: &mut dyn PciFunction) -> Effects {
    let mut command = [0; 2];
    function.config_read(COMMAND, &mut command);
    let [low, high] = command;
    if low & DECODE == 0 {
        return Effects::NONE;
    }
    function.config_write(COMMAND, &[low & !DECODE, high])
}

fn read_address(function: &mut dyn PciFunction, bar: &BarInfo) -> u64 {
    let mut read = |register| {
        let mut bytes = [0; 4];
        function.config_read(register, &mut bytes);
        u64::from(u32::from_le_bytes(bytes))
    };
    let register = bar.index.register();
    let low = read(register);
    match bar.kind {
        BarKind::Rom => low & !0x7ff,
        BarKind::Io => low & !0x3,
        BarKind::Memory32 { .. } => low & !0xf,
        BarKind::Memory64 { .. } => low & !0xf | read(register + 4) << 32,
    }
}

/// What a BAR takes of its window, and to what it is aligned.
fn footprint(request: &BarRequest, page_size: u64) -> Result<u64, WindowError> {
    let size = request.bar.size;
    let taken = match request.bar.kind {
        BarKind::Io => size,
        BarKind::Memory32 { .. } | BarKind::Memory64 { .. } | BarKind::Rom => size.max(page_size),
    };
    if size.is_power_of_two() && taken.is_power_of_two() {
        Ok(taken)
    } else {
        Err(WindowError::BadSize(*request))
    }
}

/// A window and what is free in it.
struct Space {
    kind: WindowKind,
    window: Option<Window>,
    /// First and last address of each hole, ascending.
    free: Vec<(u64, u64)>,
}

impl Space {
    fn new(kind: WindowKind, window: Option<Window>) -> Result<Self, WindowError> {
        let Some(given) = window else {
            return Ok(Self {
                kind,
                window,
                free: Vec::new(),
            });
        };
        let limit = kind.limit();
        let Some(last) = given.last().filter(|last| *last <= limit) else {
            return Err(WindowError::BadWindow {
                kind,
                window: given,
                limit,
            });
        };
        // Address 0 means "not set" in a BAR, and at the very top a BAR looks
        // as if it were being sized.
        let (first, last) = (given.base.max(1), last.min(limit - 1));
        Ok(Self {
            kind,
            window,
            free: Vec::from_iter((first <= last).then_some((first, last))),
        })
    }

    /// Takes `size` bytes, a power of two, from the lowest hole that has them.
    fn take(&mut self, request: &BarRequest, size: u64) -> Result<u64, WindowError> {
        let Some(window) = self.window else {
            return Err(WindowError::NoWindow {
                request: *request,
                kind: self.kind,
            });
        };
        let fits = |(first, last): &(u64, u64)| {
            let address = first.checked_next_multiple_of(size)?;
            let end = address.checked_add(size - 1)?;
            (end <= *last).then_some((address, end))
        };
        let hole = self.free.iter().enumerate();
        let found = hole
            .filter_map(|(index, hole)| Some((index, *hole, fits(hole)?)))
            .next();
        let Some((index, (first, last), (address, end))) = found else {
            let sizes = self.free.iter().map(|(first, last)| last - first + 1);
            return Err(WindowError::NoRoom {
                request: *request,
                needed: size,
                kind: self.kind,
                window,
                free: sizes.clone().sum(),
                largest: sizes.max().unwrap_or(0),
            });
        };
        let before = (address > first).then(|| (first, address - 1));
        let after = (end < last).then(|| (end + 1, last));
        self.free
            .splice(index..=index, before.into_iter().chain(after));
        Ok(address)
    }
}

#[cfg(test)]
#[path = "window_test.rs"]
mod tests;
