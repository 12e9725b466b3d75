use super::*;
use crate::memory::GuestRange;
use passthrough::iommu::{IovaRange, MapError, Peers, SpaceLimits};
use passthrough::ports::HostMemory;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const HUGE_PAGE: u64 = 2 << 20;

#[derive(Debug)]
pub(crate) struct FakeSpace {
    limits: SpaceLimits,
    peers: Peers,
    maps: Mutex<BTreeMap<u64, Arc<dyn HostMemory>>>,
    /// How many maps it makes before it refuses.
    takes: usize,
}

impl FakeSpace {
    fn mapped(&self) -> Vec<(u64, usize)> {
        let maps = self.maps.lock().unwrap();
        let sizes = maps.iter().map(|(iova, memory)| (*iova, memory.size()));
        sizes.collect()
    }
}

impl AddressSpace for FakeSpace {
    fn limits(&self) -> &SpaceLimits {
        &self.limits
    }

    fn map(&self, iova: u64, memory: Arc<dyn HostMemory>) -> Result<(), MapError> {
        let mut maps = self.maps.lock().unwrap();
        if maps.len() == self.takes {
            return Err(MapError {
                action: "map",
                iova,
                size: memory.size() as u64,
                reason: "no".into(),
                source: std::io::ErrorKind::OutOfMemory.into(),
            });
        }
        assert!(maps.insert(iova, memory).is_none());
        Ok(())
    }

    fn unmap(&self, iova: u64) -> Result<(), MapError> {
        assert!(self.maps.lock().unwrap().remove(&iova).is_some());
        Ok(())
    }

    fn unmap_all(&self) -> Result<(), MapError> {
        self.maps.lock().unwrap().clear();
        Ok(())
    }

    fn peers(&self) -> &Peers {
        &self.peers
    }
}

pub(crate) fn space(refuse: bool) -> Arc<FakeSpace> {
    taking(if refuse { 0 } else { usize::MAX })
}

fn taking(takes: usize) -> Arc<FakeSpace> {
    let limits = SpaceLimits {
        ranges: vec![IovaRange {
            start: 0,
            last: u64::MAX,
        }],
        page_sizes: 0x1000,
        max_maps: None,
    };
    Arc::new(FakeSpace {
        limits,
        peers: Peers::default(),
        maps: Mutex::default(),
        takes,
    })
}

/// Three pieces of 3, 1 and 2 huge pages.
fn ram() -> GuestRam {
    let range = |start, pages| GuestRange {
        start,
        size: pages * HUGE_PAGE,
    };
    GuestRam::new(&[range(0, 3), range(16 * HUGE_PAGE, 1), range(4 << 30, 2)]).unwrap()
}

const STEPS: usize = 6;

fn start(ram: &GuestRam, threads: usize) -> DmaMap {
    DmaMap::start(ram, threads, Timeline::start()).unwrap()
}

fn discard(ram: &GuestRam) -> Result<(), RamError> {
    ram.discard(GuestRange {
        start: 0,
        size: HUGE_PAGE,
    })
}

/// Whether every page is there, as the kernel sees it.
fn is_populated(ram: &GuestRam) -> bool {
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let page = crate::sys::page_size();
    ram.blocks().iter().all(|block| {
        let first = block.address().as_ptr() as u64 / page;
        let mut entries = vec![0; (block.size() as u64 / page * 8) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, first * 8).unwrap();
        // Bit 63 of each 8 bytes: present.
        entries.chunks(8).all(|entry| entry[7] & 0x80 != 0)
    })
}

#[test]
fn every_block_is_populated_and_mapped_one_to_one() {
    for threads in [0, 1, 2, 5, 20] {
        let ram = ram();
        let map = start(&ram, threads);
        let space = space(false);
        map.hand_over(space.clone());
        map.wait().unwrap();
        assert_eq!(map.ended().read().unwrap(), 1);
        assert!(is_populated(&ram), "by {threads} threads");
        let expected: Vec<_> = ram
            .blocks()
            .iter()
            .map(|block| (block.start(), block.size()))
            .collect();
        assert_eq!(space.mapped(), expected);
    }
}

#[test]
fn every_step_is_done_once_by_several_threads_at_once() {
    let ram = ram();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let meeting = Arc::new(std::sync::Barrier::new(3));
    let populate = {
        let (steps, meeting) = (Arc::clone(&steps), Arc::clone(&meeting));
        move |block: &RamBlock, offset, size| {
            steps.lock().unwrap().push((block.start(), offset, size));
            // Goes on only when three are here: six steps by three threads.
            meeting.wait();
            Ok(())
        }
    };
    let map = DmaMap::start_by(&ram, 3, Timeline::start(), Arc::new(populate)).unwrap();
    map.hand_over(space(false));
    map.wait().unwrap();
    let mut steps = steps.lock().unwrap().clone();
    steps.sort_unstable();
    let page = HUGE_PAGE as usize;
    let of = |start, offset| (start, offset * page, page);
    let (second, third) = (16 * HUGE_PAGE, 4 << 30);
    assert_eq!(
        steps,
        [
            of(0, 0),
            of(0, 1),
            of(0, 2),
            of(second, 0),
            of(third, 0),
            of(third, 1)
        ]
    );
}

/// Whichever step fails, with one thread and with several: nothing is mapped,
/// everybody who waits is told the same, and RAM can be given back afterwards.
#[test]
fn a_failure_to_populate_at_each_step() {
    for threads in [1, 3] {
        for failing in 0..STEPS {
            let ram = ram();
            let taken = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&taken);
            let populate = move |block: &RamBlock, offset: usize, _| {
                if count.fetch_add(1, Ordering::SeqCst) == failing {
                    let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
                    return Err(RamError::Populate(block.start() + offset as u64, source));
                }
                Ok(())
            };
            let timeline = Timeline::start();
            let map = DmaMap::start_by(&ram, threads, timeline, Arc::new(populate)).unwrap();
            let space = space(false);
            map.hand_over(space.clone());
            let error = map.wait().unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("cannot give the device access"), "{text}");
            assert!(text.contains("cannot populate guest RAM at 0x"), "{text}");
            assert!(text.contains("Cannot allocate memory"), "{text}");
            assert_eq!(map.wait(), Err(error));
            assert!(!map.is_mapped());
            assert_eq!(map.ended().read().unwrap(), 1);
            assert_eq!(space.mapped(), []);
            // Nobody goes on after the failure, but for those that were at it.
            let taken = taken.load(Ordering::SeqCst);
            assert!(taken <= failing + threads, "{taken} steps");
            discard(&ram).unwrap();
        }
    }
}

/// Whichever map fails, those made before it are taken away again.
#[test]
fn a_failure_to_map_at_each_block() {
    for takes in 0..3 {
        let ram = ram();
        let map = start(&ram, 1);
        let space = taking(takes);
        map.hand_over(space.clone());
        let text = map.wait().unwrap_err().to_string();
        let at = ram.blocks()[takes].start();
        assert!(
            text.contains(&format!("bytes of IOVA at {at:#x}")),
            "{text}"
        );
        assert!(map.wait().is_err());
        assert_eq!(space.mapped(), []);
        discard(&ram).unwrap();
    }
}

#[test]
fn pages_stay_from_the_start_until_the_maps_are_gone() {
    let ram = ram();
    discard(&ram).unwrap();
    let map = start(&ram, 1);
    assert!(matches!(discard(&ram), Err(RamError::Kept(_))), "at work");
    let space = space(false);
    map.hand_over(space.clone());
    map.wait().unwrap();
    assert!(matches!(discard(&ram), Err(RamError::Kept(_))), "mapped");
    drop(map);
    assert!(matches!(discard(&ram), Err(RamError::Kept(_))), "still");
    drop(space);
    discard(&ram).unwrap();
}

#[test]
fn a_panic_reaches_every_waiter() {
    let ram = ram();
    let populate = |_: &RamBlock, _, _| panic!("on purpose");
    let map = DmaMap::start_by(&ram, 2, Timeline::start(), Arc::new(populate)).unwrap();
    map.hand_over(space(false));
    assert!(map.wait().unwrap_err().to_string().contains("panicked"));
}

#[test]
fn resting_ends_when_somebody_waits() {
    let map = start(&ram(), 2);
    map.rest_until_needed();
    map.hand_over(space(false));
    map.wait().unwrap();
}

#[test]
fn resting_ends_when_the_vm_does() {
    let map = start(&ram(), 2);
    map.rest_until_needed();
    drop(map);
}

#[test]
fn it_can_be_dropped_before_there_is_a_space() {
    drop(start(&ram(), 1));
}
