use proptest::prelude::*;

use super::super::bar::BarIndex;
use super::*;

const PAGE: u64 = 0x1000;
const PLAIN: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const WIDE: BarKind = BarKind::Memory64 { prefetchable: true };

fn bar(index: u8, kind: BarKind, size: u64) -> BarInfo {
    let index = BarIndex::new(index).unwrap_or(BarIndex::ROM);
    BarInfo { index, kind, size }
}

fn request(function: &str, index: u8, kind: BarKind, size: u64) -> BarRequest {
    BarRequest {
        function: function.parse().unwrap(),
        bar: bar(index, kind, size),
    }
}

fn window(base: u64, size: u64) -> Option<Window> {
    Some(Window { base, size })
}

/// The windows of a machine as the monitor lays it out.
fn windows() -> Windows {
    Windows {
        memory32: window(0xc000_0000, 0x2000_0000),
        memory64: window(1 << 40, 1 << 38),
        io: window(0x1000, 0xf000),
    }
}

/// Places BARs that all stand on the root bus.
fn on_root(windows: &Windows, page: u64, bars: &[BarRequest]) -> Result<Vec<u64>, PlaceError> {
    let requests = Requests {
        ports: Vec::new(),
        bars: bars.to_vec(),
    };
    let layout = place(windows, page, &requests)?;
    assert!(layout.ports.is_empty() && layout.left_out.is_empty());
    for (placement, request) in layout.bars.iter().zip(bars) {
        assert_eq!(placement.function, request.function);
        assert_eq!(placement.bar, request.bar);
    }
    Ok(layout.bars.iter().map(|bar| bar.address).collect())
}

fn addresses(windows: &Windows, bars: &[BarRequest]) -> Vec<u64> {
    on_root(windows, PAGE, bars).unwrap()
}

#[test]
fn each_kind_in_its_window_largest_first() {
    let requests = [
        request("00:01.0", 0, PLAIN, 0x4000),
        request("00:01.0", 1, BarKind::Io, 0x20),
        request("00:02.0", 0, WIDE, 0x1_0000),
        request("00:02.0", 2, WIDE, 1 << 34),
        request("00:03.0", 0, PLAIN, 0x10_0000),
        request("00:03.0", 6, BarKind::Rom, 0x800),
        request("00:03.0", 2, BarKind::Io, 0x100),
    ];
    let expected = [
        0xc010_0000,
        0x1100,
        (1 << 40) + (1 << 34),
        1 << 40,
        0xc000_0000,
        0xc010_4000,
        0x1000,
    ];
    assert_eq!(addresses(&windows(), &requests), expected);
}

#[test]
fn small_bars_get_pages_of_their_own() {
    let requests = [0, 1, 2].map(|index| request("00:01.0", index, PLAIN, 0x10 << index));
    let expected = [0xc000_0000, 0xc000_1000, 0xc000_2000];
    assert_eq!(addresses(&windows(), &requests), expected);
    let placed = on_root(&windows(), 0x1_0000, &requests).unwrap();
    assert_eq!(placed[1], 0xc001_0000, "pages of 64 KiB");
    let ports = [0, 1].map(|index| request("00:01.0", index, BarKind::Io, 8));
    assert_eq!(addresses(&windows(), &ports), [0x1000, 0x1008]);
}

#[test]
fn without_a_64_bit_window_the_32_bit_one_serves() {
    let requests = [request("00:01.0", 0, WIDE, 0x4000)];
    let narrow = Windows {
        memory64: None,
        ..windows()
    };
    assert_eq!(addresses(&narrow, &requests), [0xc000_0000]);
}

#[test]
fn holes_before_an_aligned_bar_are_used() {
    let odd = Windows {
        memory32: window(0xc000_3000, 0x1d000),
        ..Windows::default()
    };
    let requests = [
        request("00:01.0", 0, PLAIN, 0x1000),
        request("00:01.0", 1, PLAIN, 0x10000),
        request("00:01.0", 2, PLAIN, 0x8000),
        request("00:01.0", 3, PLAIN, 0x4000),
    ];
    let expected = [0xc000_3000, 0xc001_0000, 0xc000_8000, 0xc000_4000];
    assert_eq!(addresses(&odd, &requests), expected);
}

#[test]
fn no_bar_at_zero_or_at_the_top() {
    let all = Windows {
        memory32: window(0, 1 << 32),
        memory64: window(u64::MAX - 0xffff, 0x1_0000),
        io: window(0, 1 << 16),
    };
    let half = request("00:01.0", 0, PLAIN, 1 << 31);
    assert!(on_root(&all, PAGE, &[half]).is_err());
    let quarters = [0, 1, 2].map(|index| request("00:01.0", index, PLAIN, 1 << 30));
    assert_eq!(addresses(&all, &quarters[..2]), [1 << 30, 2 << 30]);
    assert!(on_root(&all, PAGE, &quarters).is_err());
    let top = [request("00:01.0", 0, WIDE, 0x8000)];
    assert_eq!(addresses(&all, &top), [u64::MAX - 0xffff]);
    let ports = [request("00:01.0", 0, BarKind::Io, 0x100)];
    assert_eq!(addresses(&all, &ports), [0x100]);
}

#[test]
fn a_full_window_says_what_is_free() {
    let small = Windows {
        memory32: window(0xc000_0000, 0x3000),
        ..Windows::default()
    };
    let requests = [
        request("00:01.0", 0, PLAIN, 0x1000),
        request("00:04.0", 2, PLAIN, 0x4000),
    ];
    let error = on_root(&small, PAGE, &requests).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot place BAR 2 of 0000:00:04.0 (0x4000 bytes): it needs 0x4000 bytes at a multiple \
         of 0x4000 in the 32-bit memory window 0xc0000000..=0xc0002fff, where 0x3000 bytes are \
         free, 0x3000 of them together; make the window larger or give the guest fewer devices"
    );
    let error = on_root(&small, PAGE, &[request("00:04.0", 1, BarKind::Io, 4)]);
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot place BAR 1 of 0000:00:04.0 (0x4 bytes): the guest has no I/O window"
    );
}

#[test]
fn impossible_input_is_refused() {
    for size in [0, 3, 0x1800, u64::MAX] {
        let bad = [request("00:01.0", 0, WIDE, size)];
        let error = on_root(&windows(), PAGE, &bad).unwrap_err();
        assert_eq!(error, PlaceError::BadSize(bad[0]));
    }
    let fine = [request("00:01.0", 0, WIDE, 0x100)];
    assert!(on_root(&windows(), 0x1800, &fine).is_err(), "page size");
    for (kind, base, size) in [
        (WindowKind::Memory32, 0xf000_0000, 0x1000_0001),
        (WindowKind::Memory64, u64::MAX, 2),
        (WindowKind::Memory64, 0, 0),
        (WindowKind::Io, 0xff00, 0x101),
    ] {
        let mut windows = windows();
        *match kind {
            WindowKind::Memory32 => &mut windows.memory32,
            WindowKind::Memory64 => &mut windows.memory64,
            WindowKind::Io => &mut windows.io,
        } = window(base, size);
        let error = on_root(&windows, PAGE, &[]).unwrap_err();
        assert!(error.to_string().contains(&kind.to_string()), "{error}");
    }
    let lost = [request("03:00.0", 0, WIDE, 0x1000)];
    let error = on_root(&windows(), PAGE, &lost).unwrap_err();
    assert_eq!(error, PlaceError::NoPort(lost[0]));
    let huge = Requests {
        ports: vec![("00:01.0".parse().unwrap(), 1)],
        bars: [0, 2]
            .map(|index| request("01:00.0", index, WIDE, 1 << 63))
            .to_vec(),
    };
    let error = place(&windows(), PAGE, &huge).unwrap_err();
    assert!(
        error.to_string().contains("BAR 2 of 0000:01:00.0"),
        "{error}"
    );
}

const GIB: u64 = 1 << 30;

fn behind(ports: u8, bars: &[BarRequest]) -> Requests {
    let port = |number| (format!("00:{number:02x}.0").parse().unwrap(), number);
    Requests {
        ports: (1..=ports).map(port).collect(),
        bars: bars.to_vec(),
    }
}

#[test]
fn a_port_has_what_its_device_needs() {
    let narrow_wide = BarKind::Memory64 {
        prefetchable: false,
    };
    let requests = behind(
        3,
        &[
            // A graphics card.
            request("01:00.0", 0, PLAIN, 0x100_0000),
            request("01:00.0", 1, WIDE, 16 * GIB),
            request("01:00.0", 3, WIDE, 0x200_0000),
            request("01:00.0", 5, BarKind::Io, 0x80),
            request("01:00.0", 6, BarKind::Rom, 0x8_0000),
            // An NVMe: 64 bits, but not prefetchable.
            request("02:00.0", 0, narrow_wide, 0x4000),
            // On the root bus.
            request("00:1f.0", 0, narrow_wide, 0x4000),
            request("00:1f.0", 2, BarKind::Io, 0x20),
        ],
    );
    let layout = place(&windows(), PAGE, &requests).unwrap();
    let base = 1 << 40;
    let placed: Vec<u64> = layout.bars.iter().map(|bar| bar.address).collect();
    let expected = [
        0xc000_0000,
        base,
        base + 16 * GIB,
        0x2000,
        0xc100_0000,
        0xc110_0000,
        base + 16 * GIB + 0x200_0000,
        0x1000,
    ];
    assert_eq!(placed, expected);
    let [card, disk, empty] = layout.ports[..] else {
        panic!("{:?}", layout.ports);
    };
    assert_eq!(card.bus, 1);
    assert_eq!(card.io, window(0x2000, 0x1000));
    assert_eq!(card.memory, window(0xc000_0000, 0x110_0000));
    assert_eq!(card.prefetchable, window(base, 16 * GIB + 0x200_0000));
    assert_eq!(disk.memory, window(0xc110_0000, 0x10_0000));
    assert_eq!((disk.io, disk.prefetchable), (None, None));
    let closed = (empty.io, empty.memory, empty.prefetchable);
    assert_eq!(closed, (None, None, None));
}

#[test]
fn huge_bars_fit_under_a_39_bit_iommu() {
    let narrow = Windows {
        memory64: window(5 * GIB, 507 * GIB),
        ..windows()
    };
    let bars = [
        request("01:00.0", 0, WIDE, 128 * GIB),
        request("02:00.0", 0, WIDE, 16 * GIB),
        request("03:00.0", 0, WIDE, 128 * GIB),
        request("03:00.0", 2, WIDE, 0x1000),
    ];
    let layout = place(&narrow, PAGE, &behind(3, &bars)).unwrap();
    // Sized from the real sum: a GiB would have been lost for the last page.
    let ends = layout.ports.iter().map(|port| port.prefetchable.unwrap());
    let ends: Vec<(u64, u64)> = ends.map(|window| (window.base, window.size)).collect();
    let expected = [
        (256 * GIB + 128 * GIB, 128 * GIB),
        (16 * GIB, 16 * GIB),
        (128 * GIB, 128 * GIB + 0x10_0000),
    ];
    assert_eq!(ends, expected);
    let more = [bars[0], request("02:00.0", 0, WIDE, 256 * GIB), bars[2]];
    let error = place(&narrow, PAGE, &behind(3, &more)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot place BAR 0 of 0000:03:00.0 (0x2000000000 bytes): the port 0000:00:03.0 above it \
         needs 0x2000000000 bytes at a multiple of 0x2000000000 in the 64-bit memory window \
         0x140000000..=0x7fffffffff, where 0x1ec0000000 bytes are free, 0x1ec0000000 of them \
         together; make the window larger or give the guest fewer devices"
    );
}

#[test]
fn ports_that_run_out_go_to_who_needs_them() {
    let mut bars: Vec<_> = (1..=16)
        .map(|bus| request(&format!("{bus:02x}:00.0"), 0, BarKind::Io, 0x20))
        .collect();
    bars.push(request("00:1f.0", 0, BarKind::Io, 0x20));
    let layout = place(&windows(), PAGE, &behind(16, &bars)).unwrap();
    assert_eq!(layout.left_out, bars[14..16]);
    assert_eq!(layout.bars.len(), 15);
    assert_eq!(layout.bars[14].function, bars[16].function);
    assert_eq!(layout.ports[14].io, None);
    // A conventional device can't do without.
    let bars = [
        request("00:1e.0", 0, BarKind::Io, 0x8000),
        request("00:1f.0", 0, BarKind::Io, 0x8000),
    ];
    assert!(on_root(&windows(), PAGE, &bars).is_err());
}

fn any_bar() -> impl Strategy<Value = (BarKind, u64, u8)> {
    let kind = prop_oneof![
        (4u32..22).prop_map(|bits| (PLAIN, 1 << bits)),
        (4u32..36).prop_map(|bits| (WIDE, 1 << bits)),
        (11u32..22).prop_map(|bits| (BarKind::Rom, 1 << bits)),
        (2u32..9).prop_map(|bits| (BarKind::Io, 1 << bits)),
    ];
    (kind, 0u8..8).prop_map(|((kind, size), bus)| (kind, size, bus))
}

proptest! {
    /// Whatever fits is aligned, inside its window and its port's, and apart by
    /// whole pages. Ports are apart, too, and no larger than needed.
    #[test]
    fn placements_are_sound(bars in proptest::collection::vec(any_bar(), 0..40), skew in 0u64..64, with_64: bool) {
        let bars: Vec<_> = bars.iter().enumerate()
            .map(|(index, &(kind, size, bus))| {
                let device = if bus == 0 { 8 + index / 6 } else { 0 };
                request(&format!("{bus:02x}:{device:02x}.0"), (index % 6) as u8, kind, size)
            })
            .collect();
        let windows = Windows {
            memory32: window(0xc000_0000 + skew * PAGE, 0x2000_0000),
            memory64: if with_64 { window((1 << 32) + skew * PAGE, 1 << 39) } else { None },
            io: window(0x1000 + skew, 0xf000 - skew),
        };
        let requests = behind(7, &bars);
        let layout = match place(&windows, PAGE, &requests) {
            Ok(layout) => layout,
            Err(PlaceError::NoRoom { size, kind, window, free, .. }) => {
                // Only without the large window can these BARs be too much.
                prop_assert!(!with_64 && kind == WindowKind::Memory32);
                prop_assert!(size > PAGE && free <= window.size);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert!(layout.left_out.is_empty());
        prop_assert_eq!(layout.bars.len(), bars.len());
        let mut at_root = Vec::new();
        let mut taken = Vec::new();
        for placement in &layout.bars {
            let (kind, size) = (placement.bar.kind, placement.bar.size);
            let grain = if kind.is_io() { 1 } else { PAGE };
            let last = placement.address + (size.max(grain) - 1);
            prop_assert_eq!(placement.address % size.max(grain), 0);
            taken.push((kind.is_io(), placement.address, last));
            let port = layout.ports.iter().find(|port| port.bus == placement.function.bus());
            let home = match (port, kind) {
                (Some(port), BarKind::Io) => port.io,
                (Some(port), BarKind::Memory64 { prefetchable: true }) => port.prefetchable,
                (Some(port), _) => port.memory,
                (None, BarKind::Io) => windows.io,
                (None, BarKind::Memory64 { .. }) => windows.memory64.or(windows.memory32),
                (None, _) => windows.memory32,
            }.unwrap();
            prop_assert!(placement.address >= home.base && last <= home.last().unwrap());
            if port.is_none() {
                at_root.push((kind.is_io(), placement.address, last));
            }
        }
        for port in &layout.ports {
            let wide = windows.memory64.or(windows.memory32);
            for (window, unit, home, side) in [
                (port.io, 0x1000, windows.io, Side::Io),
                (port.memory, 1 << 20, windows.memory32, Side::Memory),
                (port.prefetchable, 1 << 20, wide, Side::Prefetchable),
            ] {
                let here = bars.iter().filter(|bar| {
                    bar.function.bus() == port.bus && Side::of(bar.bar.kind) == side
                });
                let sum: u64 = here.map(|bar| footprint(bar, PAGE).unwrap()).sum();
                let Some(window) = window else {
                    prop_assert_eq!(sum, 0);
                    continue;
                };
                prop_assert_eq!(window.base % unit, 0);
                prop_assert_eq!(window.size, sum.next_multiple_of(unit));
                let (home, last) = (home.unwrap(), window.last().unwrap());
                prop_assert!(window.base >= home.base && last <= home.last().unwrap());
                at_root.push((side == Side::Io, window.base, last));
            }
        }
        for mut ranges in [taken, at_root] {
            ranges.sort_unstable();
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1, "{:x?}", pair);
            }
        }
    }
}
