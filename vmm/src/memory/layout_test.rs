use super::*;
use proptest::prelude::*;

/// What the emulated VT-d of QEMU reports by default.
const VTD_39_BIT: [IovaRange; 2] = [
    IovaRange {
        start: 0,
        last: 0xfedf_ffff,
    },
    IovaRange {
        start: 0xfef0_0000,
        last: 0x7f_ffff_ffff,
    },
];

#[test]
fn small_guest_under_a_narrow_iommu() {
    let layout = GuestLayout::new(512 << 20, 48, Some(&VTD_39_BIT)).unwrap();
    assert_eq!(layout.ram.len(), 1);
    let window = layout.mmio64.unwrap();
    assert_eq!(window.start, 4 * GIB);
    assert_eq!(window.end(), 1 << 39);
}

#[test]
fn nothing_overlaps_below_4_gib() {
    let layout = GuestLayout::new(8 * GIB, 46, None).unwrap();
    assert_eq!(layout.ram[0].end(), layout.mmio32.start);
    assert_eq!(layout.mmio32.end(), layout.ecam.start);
    assert_eq!(layout.ecam.size, 32 << 20);
    assert!(layout.ecam.end() <= 0xfec0_0000, "the IOAPIC");
    // Where ACPI can say that it is: at a multiple of its size.
    assert!(layout.ecam.start.is_multiple_of(layout.ecam.size));
}

#[test]
fn large_guest_is_split_round_the_hole() {
    let layout = GuestLayout::new(8 * GIB, 46, None).unwrap();
    assert_eq!(layout.ram[0].end(), 3 * GIB);
    assert_eq!(layout.ram[1].start, 4 * GIB);
    assert_eq!(layout.ram[1].size, 5 * GIB);
    assert_eq!(layout.mmio64.unwrap().start, 9 * GIB);
    assert_eq!(layout.mmio64.unwrap().end(), 1 << 46);
}

#[test]
fn too_much_ram_is_refused_with_the_numbers() {
    let error = GuestLayout::new(513 * GIB, 48, Some(&VTD_39_BIT)).unwrap_err();
    assert!(
        error.to_string().contains("0xfef00000-0x7fffffffff"),
        "{error}"
    );
    let error = GuestLayout::new(1 << 40, 39, None).unwrap_err();
    assert!(error.to_string().contains("39 bits"), "{error}");
    assert!(GuestLayout::new(u64::MAX, 64, None).is_err());
}

#[test]
fn the_largest_of_several_windows_is_taken() {
    let ranges = [
        IovaRange {
            start: 0,
            last: 0xfc_ffff_ffff,
        },
        IovaRange {
            start: 0x100_0000_0000,
            last: u64::MAX,
        },
    ];
    let layout = GuestLayout::new(GIB, 48, Some(&ranges)).unwrap();
    assert_eq!(layout.mmio64.unwrap().start, 0x100_0000_0000);
    assert_eq!(layout.mmio64.unwrap().end(), 1 << 48);
}

#[test]
fn no_room_above_means_no_window() {
    let layout = GuestLayout::new(GIB, 32, None).unwrap();
    assert_eq!(layout.mmio64, None);
}

const fn iova(start: u64, last: u64) -> IovaRange {
    IovaRange { start, last }
}

fn pieces(layout: &GuestLayout) -> Vec<(u64, u64)> {
    let ram = layout.ram.iter();
    ram.map(|piece| (piece.start, piece.end())).collect()
}

/// Firmware's memory for graphics and USB, as many a desktop has it, and the
/// hole of AMD's HyperTransport.
#[test]
fn ram_goes_round_what_is_reserved() {
    let reach = [
        iova(0, 0x7af0_ffff),
        iova(0x7b10_0000, 0x7fff_ffff),
        iova(0x8080_0000, 0xfedf_ffff),
        iova(0xfef0_0000, 0xfc_ffff_ffff),
        iova(0x100_0000_0000, u64::MAX),
    ];
    let layout = GuestLayout::new(4 * GIB, 48, Some(&reach)).unwrap();
    let low = [
        (0, 0x7ae0_0000),
        (0x7b20_0000, 0x8000_0000),
        (0x8080_0000, 0xc000_0000),
    ];
    assert_eq!(pieces(&layout)[..3], low);
    let in_low: u64 = low.iter().map(|(start, end)| end - start).sum();
    assert_eq!(
        pieces(&layout)[3..],
        [(4 * GIB, 4 * GIB + 4 * GIB - in_low)]
    );
    let large = GuestLayout::new(1100 * GIB, 48, Some(&reach)).unwrap();
    assert_eq!(large.ram[3].end(), 0xfd_0000_0000);
    assert_eq!(large.ram[4].start, 0x100_0000_0000);
    assert_eq!(large.mmio64.unwrap().end(), 1 << 48);
}

#[test]
fn pages_of_1_gib_stay_whole() {
    let reach = [iova(0, 0x7af0_ffff), iova(0x7b10_0000, 0x7f_ffff_ffff)];
    let layout = GuestLayout::with_pages(4 * GIB, GIB, 48, Some(&reach)).unwrap();
    let expected = [(0, GIB), (2 * GIB, 3 * GIB), (4 * GIB, 6 * GIB)];
    assert_eq!(pieces(&layout), expected);
}

#[test]
fn room_is_told_to_the_page() {
    let error = GuestLayout::new(513 * GIB, 48, Some(&VTD_39_BIT)).unwrap_err();
    let LayoutError::Room { most, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(most, 511 * GIB, "without the fourth GiB");
    let layout = GuestLayout::new(most, 48, Some(&VTD_39_BIT)).unwrap();
    assert_eq!(layout.ram[1].end(), 1 << 39);
    assert_eq!(layout.mmio64, None);
    assert!(GuestLayout::new(most + HUGE_PAGE, 48, Some(&VTD_39_BIT)).is_err());
}

#[test]
fn a_reserved_bottom_is_refused() {
    for reach in [&[iova(0x10_0000, u64::MAX)][..], &[]] {
        let error = GuestLayout::new(GIB, 48, Some(reach)).unwrap_err();
        assert!(matches!(error, LayoutError::Bottom { .. }), "{error}");
    }
}

#[test]
fn what_the_open_tells_narrows_the_window_or_is_refused() {
    let layout = GuestLayout::new(8 * GIB, 48, None).unwrap();
    let same = layout.clone().within(&VTD_39_BIT).unwrap();
    assert_eq!(same.ram, layout.ram);
    assert_eq!(same.mmio64.unwrap().end(), 1 << 39);
    // The guest has been told of the window: it never grows.
    assert_eq!(same.clone().within(&[iova(0, u64::MAX)]), Ok(same));
    let error = layout.within(&[iova(0, 0x1_ffff_ffff)]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0x100000000-0x23fffffff"), "{text}");
    assert!(text.contains("0x0-0x1ffffffff"), "{text}");
}

/// Ranges in ascending order that don't touch.
fn reaches() -> impl Strategy<Value = Vec<IovaRange>> {
    let hole = (0u64..6 * GIB, 1u64..GIB);
    (prop::collection::vec(hole, 0..6), 32u32..49).prop_map(|(mut holes, bits)| {
        holes.push((0xfee0_0000, 0x10_0000));
        holes.sort_unstable();
        let mut next = 0;
        let mut reach = Vec::new();
        for (start, size) in holes {
            if start > next {
                reach.push(iova(next, start - 1));
            }
            next = next.max(start + size);
        }
        let end = 1 << bits;
        if end > next {
            reach.push(iova(next, end - 1));
        }
        reach
    })
}

proptest! {
    /// All of it is there, in whole pages, in reach, and in nobody's way.
    #[test]
    fn every_layout_is_sound(
        reach in reaches(),
        pages in 1u64..4096,
        shift in prop::sample::select(vec![21u32, 30]),
        bits in 32u8..52,
    ) {
        let page = 1 << shift;
        let memory = pages << 21 >> shift << shift;
        prop_assume!(memory > 0);
        match GuestLayout::with_pages(memory, page, bits, Some(&reach)) {
            Ok(layout) => {
                let sum: u64 = layout.ram.iter().map(|piece| piece.size).sum();
                prop_assert_eq!(sum, memory);
                prop_assert_eq!(layout.ram[0].start, 0);
                for piece in &layout.ram {
                    prop_assert!(piece.size > 0);
                    prop_assert!(piece.start.is_multiple_of(page) && piece.size.is_multiple_of(page));
                    prop_assert!(reach.iter().any(|range| range.contains(piece.start, piece.size)));
                    prop_assert!(piece.end() <= 1 << bits);
                    prop_assert!(piece.end() <= LOW_RAM_END || piece.start >= HIGH_RAM_START);
                }
                for pair in layout.ram.windows(2) {
                    prop_assert!(pair[0].end() <= pair[1].start);
                }
                if let Some(window) = layout.mmio64 {
                    prop_assert!(window.start >= layout.ram.last().unwrap().end().max(4 * GIB));
                    prop_assert!(window.end() <= 1 << bits);
                    prop_assert!(reach.iter().any(|range| range.contains(window.start, window.size)));
                }
                let again = layout.clone().within(&reach);
                prop_assert_eq!(again, Ok(layout));
            }
            Err(LayoutError::Room { most, .. }) => {
                prop_assert!(most < memory && most.is_multiple_of(page));
                if most > 0 {
                    let largest = GuestLayout::with_pages(most, page, bits, Some(&reach));
                    prop_assert!(largest.is_ok());
                }
            }
            Err(LayoutError::Bottom { .. }) => {
                let whole = |range: &IovaRange| range.contains(0, page);
                prop_assert!(!reach.iter().any(whole) || (1u64 << bits) < page);
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
