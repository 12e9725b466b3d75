use proptest::prelude::*;

use super::super::bar::BarIndex;
use super::super::fake::FakeFunction;
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

fn addresses(windows: &Windows, requests: &[BarRequest]) -> Vec<u64> {
    let placed = place(windows, PAGE, requests).unwrap();
    for (placement, request) in placed.iter().zip(requests) {
        assert_eq!(placement.function, request.function);
        assert_eq!(placement.bar, request.bar);
    }
    placed.iter().map(|placement| placement.address).collect()
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
    let placed = place(&windows(), 0x1_0000, &requests).unwrap();
    assert_eq!(placed[1].address, 0xc001_0000, "pages of 64 KiB");
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
    assert!(place(&all, PAGE, &[half]).is_err());
    let quarters = [0, 1, 2].map(|index| request("00:01.0", index, PLAIN, 1 << 30));
    assert_eq!(addresses(&all, &quarters[..2]), [1 << 30, 2 << 30]);
    assert!(place(&all, PAGE, &quarters).is_err());
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
    let error = place(&small, PAGE, &requests).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot place BAR 2 of 0000:00:04.0 (0x4000 bytes): it needs 0x4000 bytes at a multiple \
         of 0x4000 in the 32-bit memory window 0xc0000000..=0xc0002fff, where 0x3000 bytes are \
         free, 0x3000 of them together; make the window larger or give the guest fewer devices"
    );
    let error = place(&small, PAGE, &[request("00:04.0", 1, BarKind::Io, 4)]);
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
        assert_eq!(
            place(&windows(), PAGE, &bad),
            Err(WindowError::BadSize(bad[0]))
        );
        assert!(memory64_need(PAGE, &bad).is_err());
    }
    let fine = [request("00:01.0", 0, WIDE, 0x100)];
    assert!(place(&windows(), 0x1800, &fine).is_err(), "page size");
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
        let error = place(&windows, PAGE, &[]).unwrap_err();
        assert!(error.to_string().contains(&kind.to_string()), "{error}");
    }
    let huge = [0, 2].map(|index| request("00:01.0", index, WIDE, 1 << 63));
    assert_eq!(
        memory64_need(PAGE, &huge),
        Err(WindowError::TooMuch(huge[1]))
    );
}

#[test]
fn the_need_counts_64_bit_bars_only() {
    let requests = [
        request("00:01.0", 0, WIDE, 0x100),
        request("00:01.0", 2, WIDE, 1 << 30),
        request("00:01.0", 4, PLAIN, 1 << 31),
    ];
    let need = memory64_need(PAGE, &requests).unwrap();
    let expected = SpaceNeed {
        size: (1 << 30) + PAGE,
        alignment: 1 << 30,
    };
    assert_eq!(need, expected);
    let none = memory64_need(PAGE, &requests[2..]).unwrap();
    assert_eq!((none.size, none.alignment), (0, PAGE));
}

fn function(
    bars: &[BarInfo],
) -> (
    FunctionHandle,
    std::sync::Arc<std::sync::Mutex<FakeFunction>>,
) {
    let function = FakeFunction::with_bars(bars.to_vec());
    (function.clone(), function)
}

#[test]
fn programming_turns_decoding_off_and_keeps_the_rest() {
    let bars = [
        bar(0, WIDE, 1 << 34),
        bar(2, PLAIN, 0x1000),
        bar(3, BarKind::Io, 0x20),
        bar(6, BarKind::Rom, 0x1_0000),
    ];
    let (handle, fake) = function(&bars);
    fake.lock().unwrap().space[4..6].copy_from_slice(&[0x07, 0x04]);
    let address: PciAddress = "00:05.0".parse().unwrap();
    let functions = [(address, handle.clone())];
    let requests = bar_requests(&functions);
    assert_eq!(requests.len(), 4);
    let mut placements = place(&windows(), PAGE, &requests).unwrap();
    // Another function's: not ours to write.
    placements.push(Placement {
        function: "00:06.0".parse().unwrap(),
        bar: bars[1],
        address: 0xdead_0000,
    });
    let effects = program(address, &handle, &placements).unwrap();
    assert!(effects.decoding && !effects.bus_master);
    let fake = fake.lock().unwrap();
    assert_eq!(fake.space[4..6], [0x04, 0x04]);
    assert_eq!(fake.space[0x10..0x18], (1_u64 << 40).to_le_bytes());
    assert_eq!(fake.space[0x18..0x1c], 0xc001_0000_u32.to_le_bytes());
    assert_eq!(fake.space[0x1c..0x20], 0x1000_u32.to_le_bytes());
    assert_eq!(fake.space[0x30..0x34], 0xc000_0000_u32.to_le_bytes());
}

#[test]
fn an_address_that_is_not_taken_is_an_error() {
    let info = bar(0, PLAIN, 0x1000);
    let (handle, _) = function(&[info]);
    let address: PciAddress = "00:05.0".parse().unwrap();
    let placement = Placement {
        function: address,
        bar: info,
        address: 0xc000_0010,
    };
    let error = program(address, &handle, &[placement]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot put BAR 0 of 0000:00:05.0 at 0xc0000010: its register reads 0xc0000000"
    );
}

fn any_bar() -> impl Strategy<Value = (BarKind, u64)> {
    prop_oneof![
        (4u32..22).prop_map(|bits| (PLAIN, 1 << bits)),
        (4u32..36).prop_map(|bits| (WIDE, 1 << bits)),
        (2u32..9).prop_map(|bits| (BarKind::Io, 1 << bits)),
    ]
}

proptest! {
    /// Whatever fits is aligned, inside its window, and apart by whole pages.
    #[test]
    fn placements_are_sound(bars in proptest::collection::vec(any_bar(), 0..40), skew in 0u64..64, with_64: bool) {
        let requests: Vec<_> = bars.iter().enumerate()
            .map(|(index, (kind, size))| {
                let at = format!("00:{:02x}.0", index / 6);
                request(&at, (index % 6) as u8, *kind, *size)
            })
            .collect();
        let windows = Windows {
            memory32: window(0xc000_0000 + skew * PAGE, 0x2000_0000),
            memory64: if with_64 { window((1 << 32) + skew * PAGE, 1 << 38) } else { None },
            io: window(0x1000 + skew, 0xf000 - skew),
        };
        let placed = match place(&windows, PAGE, &requests) {
            Ok(placed) => placed,
            Err(WindowError::NoRoom { needed, kind, window, free, .. }) => {
                // Only without the large window can these BARs be too much.
                prop_assert!(!with_64 && kind == WindowKind::Memory32);
                prop_assert!(needed > PAGE && free <= window.size);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert_eq!(placed.len(), requests.len());
        let mut taken = Vec::new();
        for placement in &placed {
            let size = placement.bar.size;
            prop_assert_eq!(placement.address % size, 0);
            let is_io = placement.bar.kind.is_io();
            let grain = if is_io { 1 } else { PAGE };
            prop_assert_eq!(placement.address % grain, 0);
            let home = match placement.bar.kind {
                BarKind::Io => windows.io,
                BarKind::Memory64 { .. } => windows.memory64.or(windows.memory32),
                BarKind::Memory32 { .. } | BarKind::Rom => windows.memory32,
            }.unwrap();
            let last = placement.address + (size.max(grain) - 1);
            prop_assert!(placement.address >= home.base && last <= home.last().unwrap());
            taken.push((is_io, placement.address, last));
        }
        taken.sort_unstable();
        for pair in taken.windows(2) {
            prop_assert!(pair[0].0 != pair[1].0 || pair[0].2 < pair[1].1, "{:x?}", pair);
        }
    }

    /// The computed need is enough, and a page less is not.
    #[test]
    fn the_need_is_exact(bars in proptest::collection::vec((4u32..40).prop_map(|bits| 1u64 << bits), 1..40), turn in 1u64..16) {
        let requests: Vec<_> = bars.iter().enumerate()
            .map(|(index, size)| request("00:01.0", (index % 5) as u8, WIDE, *size))
            .collect();
        let need = memory64_need(PAGE, &requests).unwrap();
        let base = need.alignment * turn;
        let just = Windows { memory64: window(base, need.size), ..Windows::default() };
        prop_assert!(place(&just, PAGE, &requests).is_ok());
        let less = Windows { memory64: window(base, need.size - 1), ..Windows::default() };
        prop_assert!(place(&less, PAGE, &requests).is_err());
    }
}
