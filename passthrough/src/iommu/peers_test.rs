use super::*;
use crate::fake::{FakeSpace, Journal};
use crate::sys::{self, Mapping};
use proptest::prelude::*;

fn device(number: u8) -> PciAddress {
    PciAddress::new(0, 0, number, 0).unwrap()
}

fn pages(count: u64) -> Arc<dyn HostMemory> {
    let size = count * sys::page_size();
    Arc::new(Mapping::anonymous(size as usize).unwrap())
}

fn empty() -> (Arc<FakeSpace>, Journal) {
    let journal = Journal::default();
    (Arc::new(FakeSpace::empty(&journal)), journal)
}

#[test]
fn a_device_alone_has_nobody_to_offer_to() {
    let (space, journal) = empty();
    let first = Peer::join(device(1), space.clone());
    let offer = first.offer(0xc000_0000, pages(1));
    assert!(journal.take().is_empty());
    let second = Peer::join(device(2), space.clone());
    assert_eq!(journal.take(), ["dma map 0xc0000000 0x1000"]);
    drop(second);
    assert_eq!(journal.take(), ["dma unmap 0xc0000000"]);
    drop(offer);
    assert!(journal.take().is_empty());
}

#[test]
fn two_that_swap_places_end_up_mapped() {
    let (space, journal) = empty();
    let peers = [1, 2].map(|number| Peer::join(device(number), space.clone()));
    let first = peers[0].offer(0xc000_0000, pages(1));
    let second = peers[1].offer(0xd000_0000, pages(2));
    journal.take();
    drop(first);
    let _first = peers[0].offer(0xd000_0000, pages(1));
    assert_eq!(
        journal.take(),
        ["dma unmap 0xc0000000", "dma unmap 0xd0000000"],
        "of two at one place none is mapped"
    );
    drop(second);
    assert_eq!(journal.take(), ["dma map 0xd0000000 0x1000"]);
    let _second = peers[1].offer(0xc000_0000, pages(2));
    assert_eq!(journal.take(), ["dma map 0xc0000000 0x2000"]);
}

#[test]
fn what_the_iommu_cannot_reach_is_not_tried() {
    let (space, journal) = empty();
    let peers = [1, 2].map(|number| Peer::join(device(number), space.clone()));
    for iova in [0xfee0_0000, 1 << 39, u64::MAX - 0xfff] {
        drop(peers[0].offer(iova, pages(1)));
    }
    assert!(journal.take().is_empty());
}

#[test]
fn a_refusal_holds_until_the_offer_is_taken_back() {
    let (space, journal) = empty();
    let peers = [1, 2].map(|number| Peer::join(device(number), space.clone()));
    space.refuse(Some(libc::EFAULT));
    let refused = peers[0].offer(0xc000_0000, pages(1));
    space.refuse(None);
    let other = peers[1].offer(0xd000_0000, pages(1));
    let maps = [
        "dma map 0xc0000000 0x1000",
        "dma map 0xd0000000 0x1000",
        "dma unmap 0xd0000000",
    ];
    drop((refused, other));
    assert_eq!(journal.take(), maps);
    let _again = peers[0].offer(0xc000_0000, pages(1));
    assert_eq!(journal.take(), maps[..1]);
}

#[test]
fn what_was_withdrawn_stays_away_until_it_is_offered_anew() {
    let (space, journal) = empty();
    let peers = [1, 2].map(|number| Peer::join(device(number), space.clone()));
    let offer = peers[0].offer(0xc000_0000, pages(1));
    journal.take();
    space.unmap_all().unwrap();
    let other = peers[1].offer(0xd000_0000, pages(1));
    assert_eq!(
        journal.take(),
        ["dma unmap all", "dma map 0xd0000000 0x1000"]
    );
    drop((offer, other));
    assert_eq!(journal.take(), ["dma unmap 0xd0000000"]);
    let _again = peers[0].offer(0xc000_0000, pages(1));
    assert_eq!(journal.take(), ["dma map 0xc0000000 0x1000"]);
}

proptest! {
    /// Whatever was offered and taken back in whatever order: what is mapped
    /// is a function of what is offered now.
    #[test]
    fn maps_follow_from_the_offers(
        steps in proptest::collection::vec((0_usize..6, 0_u64..12, 1_u64..5, any::<bool>()), 1..40),
    ) {
        let (space, _) = empty();
        let first = Peer::join(device(1), space.clone());
        let mut second = None;
        let page = sys::page_size();
        let mut offers: [Option<(u64, u64, Offer)>; 6] = Default::default();
        for (which, at, count, stay) in steps {
            match (which, stay) {
                (0, true) => second = Some(Peer::join(device(2), space.clone())),
                (0, false) => second = None,
                (_, true) => {
                    // As a BAR moves: first away, then there.
                    offers[which] = None;
                    let offer = first.offer((at + 16) * page, pages(count));
                    offers[which] = Some((at, count, offer));
                }
                (_, false) => offers[which] = None,
            }
            let now: Vec<_> = offers.iter().flatten().map(|(at, count, _)| (*at, at + count)).collect();
            let mut expected: Vec<_> = now
                .iter()
                .filter(|a| now.iter().filter(|b| a.0 < b.1 && b.0 < a.1).count() == 1)
                .map(|(at, end)| ((at + 16) * page, (end - at) * page))
                .collect();
            expected.sort_unstable();
            if second.is_none() {
                expected.clear();
            }
            prop_assert_eq!(space.mapped(), expected);
        }
    }
}
