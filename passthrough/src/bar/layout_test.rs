use super::*;
use proptest::prelude::*;

const PAGE: u64 = 0x1000;

fn area(offset: u64, size: u64) -> RegionArea {
    RegionArea { offset, size }
}

fn table(offset: u64, size: u64) -> (RegionArea, Emulated) {
    (area(offset, size), Emulated::Table)
}

fn pba(offset: u64, size: u64) -> (RegionArea, Emulated) {
    (area(offset, size), Emulated::Pba)
}

fn direct(size: u64, emulated: &[(RegionArea, Emulated)]) -> Vec<(u64, u64)> {
    with_areas(size, &[area(0, size)], emulated)
}

fn with_areas(
    size: u64,
    mappable: &[RegionArea],
    emulated: &[(RegionArea, Emulated)],
) -> Vec<(u64, u64)> {
    let layout = BarLayout::new(size, mappable, emulated, PAGE);
    let ends = |area: &RegionArea| (area.offset, area.offset + area.size);
    layout.direct.iter().map(ends).collect()
}

#[test]
fn a_plain_bar_is_direct() {
    assert_eq!(direct(0x4000, &[]), [(0, 0x4000)]);
    assert_eq!(direct(1 << 40, &[]), [(0, 1 << 40)]);
}

#[test]
fn nothing_mappable_is_all_trapped() {
    assert_eq!(with_areas(0x4000, &[], &[]), []);
    assert_eq!(
        BarLayout::new(0, &[], &[table(0, 16)], PAGE),
        BarLayout::default()
    );
}

#[test]
fn a_bar_below_a_page_takes_its_page() {
    assert_eq!(direct(0x100, &[]), [(0, 0x1000)]);
    assert_eq!(direct(0x10, &[]), [(0, 0x1000)]);
    let layout = BarLayout::new(0x1000, &[area(0, 0x1000)], &[], 0x10000);
    assert_eq!(layout.direct, [area(0, 0x10000)], "of a host with 64 KiB");
}

#[test]
fn a_bar_below_a_page_is_trapped_unless_all_of_it_may_be_mapped() {
    assert_eq!(with_areas(0x100, &[], &[]), []);
    assert_eq!(with_areas(0x100, &[area(0, 0x80)], &[]), []);
    assert_eq!(with_areas(0x100, &[area(0x80, 0x80)], &[]), []);
    let halves = [area(0, 0x80), area(0x80, 0x80)];
    assert_eq!(with_areas(0x100, &halves, &[]), []);
    assert_eq!(direct(0x800, &[table(0, 0x40)]), []);
    assert_eq!(direct(0x800, &[pba(0x400, 8)]), []);
}

#[test]
fn a_bar_in_more_pieces_than_drivers_have_is_trapped_in_part() {
    let every_other: Vec<_> = (0..1000).map(|at| area(at * 2 * PAGE, PAGE)).collect();
    let areas = with_areas(2000 * PAGE, &every_other, &[]);
    assert_eq!(areas.len(), MAX_DIRECT);
    assert_eq!(areas[MAX_DIRECT - 1], (62 * PAGE, 63 * PAGE));
}

#[test]
fn pages_of_the_table_are_carved_out() {
    assert_eq!(
        direct(0x4000, &[table(0x2000, 0x410)]),
        [(0, 0x2000), (0x3000, 0x4000)]
    );
    assert_eq!(direct(0x4000, &[table(0, 0x10)]), [(0x1000, 0x4000)]);
    assert_eq!(direct(0x1000, &[table(0x800, 0x10)]), []);
}

#[test]
fn a_table_that_is_not_page_aligned() {
    let expected = [(0, 0x1000), (0x3000, 0x4000)];
    assert_eq!(direct(0x4000, &[table(0x1ff0, 0x20)]), expected);
    assert_eq!(direct(0x4000, &[table(0x1010, 0x1fe0)]), expected);
}

#[test]
fn a_table_at_the_end() {
    assert_eq!(direct(0x4000, &[table(0x3ff0, 0x10)]), [(0, 0x3000)]);
    assert_eq!(
        direct(0x4000, &[table(0x3ff0, 0x8000)]),
        [(0, 0x3000)],
        "and past it"
    );
    assert_eq!(direct(0x4000, &[table(u64::MAX, u64::MAX)]), [(0, 0x4000)]);
}

#[test]
fn table_and_pending_bits_in_one_page() {
    let both = [table(0x2000, 0x100), pba(0x2800, 8)];
    assert_eq!(direct(0x4000, &both), [(0, 0x2000), (0x3000, 0x4000)]);
}

#[test]
fn pending_bits_before_the_table() {
    let both = [table(0x3000, 0x100), pba(0x1000, 8)];
    assert_eq!(
        direct(0x5000, &both),
        [(0, 0x1000), (0x2000, 0x3000), (0x4000, 0x5000)]
    );
}

#[test]
fn sparse_areas_shrink_to_whole_pages() {
    let areas = [area(0x5800, 0x2800), area(0x800, 0x2000)];
    assert_eq!(
        with_areas(0x8000, &areas, &[]),
        [(0x1000, 0x2000), (0x6000, 0x8000)]
    );
    assert_eq!(with_areas(0x8000, &[area(0x100, 0x1000)], &[]), []);
}

#[test]
fn sparse_areas_around_the_table() {
    let areas = [area(0, 0x2000), area(0x2000, 0x2000)];
    let expected = [(0, 0x1000), (0x2000, 0x4000)];
    assert_eq!(with_areas(0x4000, &areas, &[table(0x1000, 0x10)]), expected);
    assert_eq!(with_areas(0x4000, &areas, &[]), [(0, 0x4000)], "joined");
}

#[test]
fn hostile_areas_are_cut() {
    let areas = [area(0, 0x3000), area(0x1000, u64::MAX), area(u64::MAX, 1)];
    assert_eq!(with_areas(0x4000, &areas, &[]), [(0, 0x4000)]);
}

#[test]
fn a_host_with_64_kib_pages() {
    let layout = BarLayout::new(
        0x40000,
        &[area(0, 0x40000)],
        &[table(0x2000, 0x10)],
        0x10000,
    );
    assert_eq!(layout.direct, [area(0x10000, 0x30000)]);
}

fn cut(emulated: &[(RegionArea, Emulated)], offset: u64, size: usize) -> Vec<(bool, u64, usize)> {
    pieces(emulated, offset, size)
        .map(|piece| (piece.emulated.is_some(), piece.offset, piece.size))
        .collect()
}

#[test]
fn accesses_are_cut_where_the_answerer_changes() {
    let table = [table(0x100, 0x20)];
    assert_eq!(cut(&table, 0x100, 8), [(true, 0, 8)]);
    assert_eq!(cut(&table, 0xfc, 8), [(false, 0xfc, 4), (true, 0, 4)]);
    assert_eq!(cut(&table, 0x11e, 4), [(true, 0x1e, 2), (false, 0x120, 2)]);
}

#[test]
fn device_accesses_are_naturally_aligned() {
    assert_eq!(cut(&[], 0, 8), [(false, 0, 8)]);
    assert_eq!(cut(&[], 4, 8), [(false, 4, 4), (false, 8, 4)]);
    assert_eq!(
        cut(&[], 1, 4),
        [(false, 1, 1), (false, 2, 2), (false, 4, 1)]
    );
    assert_eq!(cut(&[], u64::MAX - 1, 4), [(false, u64::MAX - 1, 1)]);
}

proptest! {
    #[test]
    fn what_is_direct_is_allowed_and_never_emulated(
        pages in 1_u64..64,
        mappable in proptest::collection::vec((0_u64..0x50000, 0_u64..0x50000), 0..5),
        table_at in 0_u64..0x50000,
        vectors in 1_u64..64,
        pba_at in 0_u64..0x50000,
    ) {
        let size = pages * PAGE;
        let mappable: Vec<_> = mappable.into_iter().map(|(at, size)| area(at, size)).collect();
        let emulated = [table(table_at, vectors * 16), pba(pba_at, 8)];
        let layout = BarLayout::new(size, &mappable, &emulated, PAGE);
        let mut last = 0;
        for direct in &layout.direct {
            prop_assert!(direct.offset >= last && direct.size > 0);
            last = direct.offset + direct.size;
            prop_assert!(last <= size);
            prop_assert_eq!((direct.offset % PAGE, direct.size % PAGE), (0, 0));
            for page in (direct.offset..last).step_by(PAGE as usize) {
                for at in [page, page + PAGE - 1] {
                    let covers = |a: &RegionArea| a.offset <= at && at < a.offset + a.size;
                    prop_assert!(mappable.iter().any(covers));
                }
                for (hole, _) in &emulated {
                    prop_assert!(hole.offset >= page + PAGE || hole.offset + hole.size <= page);
                }
            }
        }
    }

    /// Sizes and areas that no kernel would tell: nothing panics, and nothing
    /// outside of the BAR's own pages is direct.
    #[test]
    fn any_size_and_any_area(
        size: u64,
        shift in 0_u32..64,
        areas in proptest::collection::vec((any::<u64>(), 0_u32..64, any::<u64>(), 0_u32..64), 0..6),
        table_at in any::<(u64, u64)>(),
        page_bits in 12_u32..17,
    ) {
        let (size, page) = (size >> shift, 1 << page_bits);
        let areas: Vec<_> = areas.iter().map(|(a, b, c, d)| area(a >> b, c >> d)).collect();
        let emulated = [table(table_at.0 >> shift, table_at.1 >> shift)];
        let layout = BarLayout::new(size, &areas, &emulated, page);
        prop_assert!(layout.direct.len() <= MAX_DIRECT);
        for direct in &layout.direct {
            prop_assert_eq!((direct.offset % page, direct.size % page), (0, 0));
            let end = direct.offset.checked_add(direct.size);
            prop_assert!(end.is_some_and(|end| direct.size > 0 && end <= size.max(page)));
            prop_assert!(size > 0 && (size >= page || layout.direct.len() == 1));
        }
    }

    #[test]
    fn pieces_add_up(offset: u64, size in 0_usize..17, at in 0_u64..64, length in 1_u64..64) {
        let emulated = [table(at, length), pba(at + length + 3, 8)];
        for offset in [offset, offset % 128] {
            let mut next = offset;
            for piece in pieces(&emulated, offset, size) {
                prop_assert!(piece.size > 0);
                if piece.emulated.is_none() {
                    prop_assert_eq!(piece.offset, next);
                    prop_assert_eq!(piece.offset % piece.size as u64, 0);
                    let end = next.saturating_add(piece.size as u64);
                    let apart = |a: &RegionArea| end <= a.offset || next >= a.offset + a.size;
                    prop_assert!(emulated.iter().all(|(area, _)| apart(area)));
                }
                next = next.saturating_add(piece.size as u64);
            }
            prop_assert_eq!(next, offset.saturating_add(size as u64));
        }
    }
}
