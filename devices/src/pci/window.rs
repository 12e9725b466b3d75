//! Where BARs can go: windows of guest addresses.

use std::fmt;

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
    pub(super) const fn limit(self) -> u64 {
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

/// What is free of a window.
#[derive(Debug)]
pub(super) struct Space {
    /// First and last address of each hole, ascending.
    free: Vec<(u64, u64)>,
}

impl Space {
    /// All of a window that lies where its kind can; nothing otherwise.
    pub(super) fn new(kind: WindowKind, window: Window) -> Option<Self> {
        let limit = kind.limit();
        let last = window.last().filter(|last| *last <= limit)?;
        // Address 0 means "not set" in a BAR, and at the very top of memory a
        // BAR looks as if it were being sized.
        let top = match kind {
            WindowKind::Io => limit,
            WindowKind::Memory32 | WindowKind::Memory64 => limit - 1,
        };
        let (first, last) = (window.base.max(1), last.min(top));
        Some(Self {
            free: Vec::from_iter((first <= last).then_some((first, last))),
        })
    }

    /// Takes `size` bytes at a multiple of `alignment`, a power of two, from
    /// the lowest hole that has them.
    pub(super) fn take(&mut self, size: u64, alignment: u64) -> Option<u64> {
        let fits = |(first, last): &(u64, u64)| {
            let address = first.checked_next_multiple_of(alignment)?;
            let end = address.checked_add(size.checked_sub(1)?)?;
            (end <= *last).then_some((address, end))
        };
        let hole = self.free.iter().enumerate();
        let (index, (first, last), (address, end)) = hole
            .filter_map(|(index, hole)| Some((index, *hole, fits(hole)?)))
            .next()?;
        let before = (address > first).then(|| (first, address - 1));
        let after = (end < last).then(|| (end + 1, last));
        self.free
            .splice(index..=index, before.into_iter().chain(after));
        Some(address)
    }

    /// Bytes that are free in all, and of the largest hole.
    pub(super) fn free(&self) -> (u64, u64) {
        let sizes = self.free.iter().map(|(first, last)| last - first + 1);
        (sizes.clone().sum(), sizes.max().unwrap_or(0))
    }
}
