use super::*;
use crate::iommu::IovaRange;
use crate::sys::Mapping;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Notes what it is asked, and answers the errno that it is told to.
#[derive(Debug, Default)]
struct Recorder {
    calls: Mutex<Vec<(&'static str, u64, u64)>>,
    errno: AtomicI32,
    detached: AtomicBool,
    /// As kernels before Linux 5.12, it can't unmap everything at once.
    one_by_one: AtomicBool,
}

impl Recorder {
    fn note(&self, what: &'static str, iova: u64, size: u64) -> io::Result<()> {
        self.calls.lock().unwrap().push((what, iova, size));
        match self.errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Dma for Arc<Recorder> {
    fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.note("map", iova, memory.size() as u64)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<u64> {
        self.note("unmap", iova, size).map(|()| size)
    }

    fn unmap_all(&self) -> io::Result<u64> {
        if self.one_by_one.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.note("unmap all", 0, 0).map(|()| 0)
    }

    fn explain(&self, errno: i32, _: &dyn HostMemory) -> Option<&'static str> {
        (errno == libc::EPROTO).then_some("a reason of its own")
    }

    fn is_attached(&self) -> bool {
        !self.detached.load(Ordering::SeqCst)
    }
}

fn space() -> (KernelSpace<Arc<Recorder>>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let limits = SpaceLimits {
        ranges: [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]
            .map(|(start, last)| IovaRange { start, last })
            .into(),
        page_sizes: sys::page_size(),
        max_maps: Some(7),
    };
    (KernelSpace::new(Arc::clone(&recorder), limits), recorder)
}

fn pages(count: u64) -> Arc<dyn HostMemory> {
    let size = count * sys::page_size();
    Arc::new(Mapping::anonymous(size as usize).unwrap())
}

fn calls(recorder: &Recorder) -> Vec<(&'static str, u64, u64)> {
    std::mem::take(&mut recorder.calls.lock().unwrap())
}

#[test]
fn memory_is_kept_until_it_is_unmapped() {
    let (space, recorder) = space();
    let memory = pages(2);
    let size = memory.size() as u64;
    space.map(0x10_0000, Arc::clone(&memory)).unwrap();
    assert_eq!(Arc::strong_count(&memory), 2);
    space.unmap(0x10_0000).unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    let expected = [("map", 0x10_0000, size), ("unmap", 0x10_0000, size)];
    assert_eq!(calls(&recorder), expected);
    let error = space.unmap(0x10_0000).unwrap_err().to_string();
    assert!(error.contains("nothing is mapped there"), "{error}");
}

#[test]
fn a_range_outside_is_refused_with_the_ranges() {
    let (space, recorder) = space();
    for iova in [
        0xfee0_0000,
        0xfedf_f000,
        0x7f_ffff_f000,
        1 << 40,
        0_u64.wrapping_sub(0x1_0000),
    ] {
        let error = space.map(iova, pages(2)).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EINVAL));
        let text = error.to_string();
        assert!(text.contains("0xfef00000-0x7fffffffff"), "{text}");
    }
    assert!(calls(&recorder).is_empty(), "the kernel was not asked");
}

#[test]
fn overlaps_and_odd_addresses_are_refused() {
    let (space, recorder) = space();
    let page = sys::page_size();
    space.map(8 * page, pages(2)).unwrap();
    for (iova, count) in [(7, 2), (8, 2), (9, 1), (0, 16)] {
        let error = space.map(iova * page, pages(count)).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EEXIST), "{iova}");
    }
    space.map(7 * page, pages(1)).unwrap();
    space.map(10 * page, pages(1)).unwrap();
    assert!(space.map(page / 2, pages(1)).is_err());
    assert_eq!(calls(&recorder).len(), 3);
}

#[test]
fn refusals_are_explained() {
    let (space, recorder) = space();
    for (errno, words) in [
        (libc::ENOSPC, "allows 7 maps"),
        (libc::EEXIST, "mapped already"),
        (libc::EFAULT, "can't be pinned"),
        (libc::EINVAL, "not aligned"),
        (libc::EPROTO, "a reason of its own"),
    ] {
        recorder.errno.store(errno, Ordering::SeqCst);
        let memory = pages(1);
        let error = space.map(0, Arc::clone(&memory)).unwrap_err();
        assert_eq!(Arc::strong_count(&memory), 1);
        assert_eq!(error.source.raw_os_error(), Some(errno));
        assert!(error.to_string().contains(words), "{error}");
    }
    let text = explain_map(Some(libc::ENOMEM), 0x2000, space.limits());
    match sys::memlock_limit() {
        Some(limit) => assert!(text.contains(&format!("{limit:#x}")), "{text}"),
        None => assert!(text.contains("no memory left"), "{text}"),
    }
}

#[test]
fn a_failed_unmap_keeps_the_memory() {
    let (space, recorder) = space();
    let memory = pages(1);
    space.map(0, Arc::clone(&memory)).unwrap();
    recorder.errno.store(libc::EIO, Ordering::SeqCst);
    space.unmap(0).unwrap_err();
    assert_eq!(Arc::strong_count(&memory), 2);
    drop(space);
    assert_eq!(Arc::strong_count(&memory), 2, "kept for good");
}

#[test]
fn dropping_unmaps_everything_that_is_left() {
    let page = sys::page_size();
    let expected = [
        vec![("unmap all", 0, 0)],
        vec![("unmap", 0, page), ("unmap", 4 * page, 2 * page)],
    ];
    for (one_by_one, expected) in [false, true].into_iter().zip(expected) {
        let (space, recorder) = space();
        recorder.one_by_one.store(one_by_one, Ordering::SeqCst);
        let memory = pages(2);
        space.map(0, pages(1)).unwrap();
        space.map(4 * page, Arc::clone(&memory)).unwrap();
        calls(&recorder);
        drop(space);
        assert_eq!(calls(&recorder), expected);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}

#[test]
fn everything_can_be_unmapped_and_mapped_again() {
    let (space, recorder) = space();
    let memory = pages(1);
    space.map(0, Arc::clone(&memory)).unwrap();
    recorder.errno.store(libc::EIO, Ordering::SeqCst);
    space.unmap_all().unwrap_err();
    assert_eq!(Arc::strong_count(&memory), 2, "it is mapped still");
    recorder.errno.store(0, Ordering::SeqCst);
    space.unmap_all().unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    space.map(0, memory).unwrap();
    space.unmap_all().unwrap();
    calls(&recorder);
    space.unmap_all().unwrap();
    assert!(calls(&recorder).is_empty(), "nothing is left to unmap");
}

#[test]
fn the_limit_of_maps_is_kept_without_asking() {
    let (space, recorder) = space();
    let page = sys::page_size();
    for at in 0..7 {
        space.map(2 * at * page, pages(1)).unwrap();
    }
    let error = space.map(100 * page, pages(1)).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(libc::ENOSPC));
    assert!(error.to_string().contains("allows 7 maps"), "{error}");
    assert_eq!(calls(&recorder).len(), 7);
    space.unmap(0).unwrap();
    space.map(100 * page, pages(1)).unwrap();
}

#[test]
fn without_a_device_nothing_is_mapped_any_more() {
    let (space, recorder) = space();
    let memory = pages(1);
    space.map(0, Arc::clone(&memory)).unwrap();
    space.map(0x10_0000, Arc::clone(&memory)).unwrap();
    calls(&recorder);
    recorder.detached.store(true, Ordering::SeqCst);
    space.unmap(0).unwrap();
    let error = space.map(0, Arc::clone(&memory)).unwrap_err().to_string();
    assert!(error.contains("is closed"), "{error}");
    drop(space);
    assert!(calls(&recorder).is_empty());
    assert_eq!(Arc::strong_count(&memory), 1);
}
