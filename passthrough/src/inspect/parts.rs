use devices::pci::{BarIndex, BarInfo};

use super::data::{Access, Area, RegionPart};
use crate::bar::{BarLayout, Emulated};
use crate::config::MsixCapability;
use crate::sys;
use crate::vfio::RegionArea;

/// How a guest reaches the bytes of a BAR of which `mappable` can be mapped.
pub(super) fn of_bar(
    bar: &BarInfo,
    mappable: &[RegionArea],
    msix: Option<&MsixCapability>,
) -> Vec<RegionPart> {
    let mappable = if bar.kind.is_io() { &[] } else { mappable };
    let emulated = msix.map_or_else(Vec::new, |msix| emulated(bar.index, msix));
    let layout = BarLayout::new(bar.size, mappable, &emulated, sys::page_size());
    let direct = layout.direct.iter().map(|area| (*area, Access::Direct));
    let answered = layout.emulated.iter().map(|(area, what)| match what {
        Emulated::Table => (*area, Access::MsixTable),
        Emulated::Pba => (*area, Access::MsixPendingBits),
    });
    let mut taken: Vec<_> = direct.chain(answered).collect();
    taken.sort_by_key(|(area, _)| *area);
    divide(bar.size, &taken)
}

/// Everything, trapped.
pub(super) fn trapped(size: u64) -> Vec<RegionPart> {
    divide(size, &[])
}

/// Fills up what is left between parts in ascending order.
fn divide(size: u64, taken: &[(RegionArea, Access)]) -> Vec<RegionPart> {
    let mut parts = Vec::new();
    let mut push = |offset: u64, end: u64, access| {
        if offset < end {
            let size = end - offset;
            let area = Area { offset, size };
            parts.push(RegionPart { area, access });
        }
    };
    let mut at = 0;
    for &(area, access) in taken {
        let end = area.offset.saturating_add(area.size).min(size);
        push(at, area.offset.min(size), Access::Trapped);
        push(at.max(area.offset), end, access);
        at = at.max(end);
    }
    push(at, size, Access::Trapped);
    parts
}

fn emulated(index: BarIndex, msix: &MsixCapability) -> Vec<(RegionArea, Emulated)> {
    let table = (msix.table, Emulated::Table);
    let pending = msix.pba.map(|pba| (pba, Emulated::Pba));
    let both = [Some(table), pending].into_iter().flatten();
    both.filter(|(place, _)| place.bar == index)
        .map(|(place, what)| (place.area, what))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_the_region() {
        let area = |offset, size| RegionArea { offset, size };
        let taken = [
            (area(0x10, 0x10), Access::Direct),
            (area(0x20, 8), Access::MsixTable),
            (area(0x24, 8), Access::MsixPendingBits),
            (area(0x38, 0x20), Access::Direct),
        ];
        let parts: Vec<_> = divide(0x40, &taken)
            .iter()
            .map(|part| (part.area.offset, part.area.size, part.access))
            .collect();
        assert_eq!(
            parts,
            [
                (0, 0x10, Access::Trapped),
                (0x10, 0x10, Access::Direct),
                (0x20, 8, Access::MsixTable),
                (0x28, 4, Access::MsixPendingBits),
                (0x2c, 0xc, Access::Trapped),
                (0x38, 8, Access::Direct),
            ]
        );
        assert_eq!(trapped(0), []);
        assert_eq!(divide(8, &[(area(9, 9), Access::Direct)]).len(), 1);
    }
}
