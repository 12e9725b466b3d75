use crate::vfio::RegionArea;

/// What of a BAR belongs to us and not to the device: places that the guest
/// must never reach directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emulated {
    /// The MSI-X table.
    Table,
    /// The MSI-X pending bit array.
    Pba,
}

/// How many pieces of a BAR are mapped at most. Each takes one of the
/// hypervisor's slots, and it is the host's driver that says how many there
/// are; those that are known have a handful.
const MAX_DIRECT: usize = 32;

/// How the bytes of a BAR are divided.
///
/// ```text
///  0          page        2 pages      3 pages          size
///  | direct    | direct    |  trapped   | direct         |
///                            |table|
/// ```
///
/// Direct areas are whole host pages, in ascending order, and hold nothing
/// that is emulated. Everything else is trapped.
///
/// A BAR smaller than a page has one direct area, the page that it begins, or
/// none:
///
/// ```text
///  0        size                      page
///  |  BAR    |  nothing of the host's  |
/// ```
///
/// The kernel says that such a BAR may be mapped only where it begins a page
/// and the rest of the page could be kept free of other devices
/// (`vfio_pci_probe_mmaps`, drivers/vfio/pci/vfio_pci_core.c). On the guest's
/// side the page must hold nothing else either; [`MemoryMapper::map`] sees to
/// that.
///
/// [`MemoryMapper::map`]: crate::ports::MemoryMapper::map
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BarLayout {
    /// What is mapped straight into the guest.
    pub(crate) direct: Vec<RegionArea>,
    /// Where accesses are answered by us, inside the BAR, in ascending order.
    pub(crate) emulated: Vec<(RegionArea, Emulated)>,
}

impl BarLayout {
    /// Divides a BAR of `size` bytes.
    ///
    /// `mappable` is what the kernel allows to map; it is hostile, so areas
    /// may overlap or leave the BAR. `emulated` is what we answer ourselves;
    /// what of it lies outside of the BAR is cut off. `page` is the host's page
    /// size, a power of two.
    pub(crate) fn new(
        size: u64,
        mappable: &[RegionArea],
        emulated: &[(RegionArea, Emulated)],
        page: u64,
    ) -> Self {
        let mut inside: Vec<_> = emulated
            .iter()
            .filter_map(|&(area, what)| Some((clip(area, size)?, what)))
            .collect();
        inside.sort_by_key(|(area, _)| *area);
        let mut direct: Vec<RegionArea> = Vec::new();
        let mut allowed: Vec<_> = mappable.iter().filter_map(|&a| clip(a, size)).collect();
        allowed.sort_unstable();
        if size < page {
            let whole = RegionArea { offset: 0, size };
            let direct = if size > 0 && inside.is_empty() && allowed.contains(&whole) {
                let size = page;
                vec![RegionArea { size, ..whole }]
            } else {
                Vec::new()
            };
            let emulated = inside;
            return Self { direct, emulated };
        }
        let mut done = 0;
        for area in allowed {
            // Overlapping areas are taken once.
            let mut at = round_up(area.offset, page).max(done);
            let end = (area.offset + area.size) & !(page - 1);
            for (hole, _) in &inside {
                let hole_start = hole.offset & !(page - 1);
                let hole_end = round_up(hole.offset + hole.size, page);
                push(&mut direct, at, end.min(hole_start));
                at = at.max(hole_end.min(end));
            }
            push(&mut direct, at, end);
            done = done.max(end);
        }
        let mut direct = merge(direct);
        direct.truncate(MAX_DIRECT);
        Self {
            direct,
            emulated: inside,
        }
    }
}

/// The part of `area` that lies below `size`.
fn clip(area: RegionArea, size: u64) -> Option<RegionArea> {
    let left = size.checked_sub(area.offset)?;
    let size = area.size.min(left);
    (size > 0).then_some(RegionArea { size, ..area })
}

/// The next page boundary; the last one there is when the sum would overflow.
fn round_up(value: u64, page: u64) -> u64 {
    value.checked_next_multiple_of(page).unwrap_or(!(page - 1))
}

fn push(areas: &mut Vec<RegionArea>, start: u64, end: u64) {
    if start < end {
        areas.push(RegionArea {
            offset: start,
            size: end - start,
        });
    }
}

/// Joins neighbours: fewer maps. `areas` are sorted and don't overlap.
fn merge(areas: Vec<RegionArea>) -> Vec<RegionArea> {
    let mut merged: Vec<RegionArea> = Vec::with_capacity(areas.len());
    for area in areas {
        match merged.last_mut() {
            Some(last) if last.offset + last.size == area.offset => last.size += area.size,
            _ => merged.push(area),
        }
    }
    merged
}

/// Who answers a piece of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BarPiece {
    /// Who: something of ours, or the device.
    pub(crate) emulated: Option<Emulated>,
    /// Where in the BAR, or in what is emulated.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) size: usize,
}

/// Cuts an access of `size` bytes at `offset` into pieces that one side
/// answers alone. Pieces for the device have a power of two of bytes, at most
/// 8, and are naturally aligned, as a bus would carry them.
pub(crate) fn pieces(
    emulated: &[(RegionArea, Emulated)],
    offset: u64,
    size: usize,
) -> impl Iterator<Item = BarPiece> {
    let mut at = offset;
    // No BAR reaches the last byte of all.
    let mut left = (size as u64).min(u64::MAX - offset);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let piece = piece(emulated, at, left);
        at += piece.1;
        left -= piece.1;
        Some(piece.0)
    })
}

fn piece(emulated: &[(RegionArea, Emulated)], at: u64, left: u64) -> (BarPiece, u64) {
    let mut until = left;
    for &(area, what) in emulated {
        if let Some(within) = at.checked_sub(area.offset) {
            if within < area.size {
                let size = left.min(area.size - within);
                let piece = BarPiece {
                    emulated: Some(what),
                    offset: within,
                    size: size as usize,
                };
                return (piece, size);
            }
        } else {
            until = until.min(area.offset - at);
        }
    }
    let aligned = if at == 0 {
        8
    } else {
        1 << at.trailing_zeros().min(3)
    };
    let largest = 1 << until.min(8).ilog2();
    let size = aligned.min(largest);
    let piece = BarPiece {
        emulated: None,
        offset: at,
        size: size as usize,
    };
    (piece, size)
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod tests;
