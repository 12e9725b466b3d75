use super::super::block::HUGE_PAGE;
use super::super::{HostMeminfo, NumaNode};
use super::*;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

fn ranges() -> [GuestRange; 2] {
    let range = |start, size| GuestRange { start, size };
    [range(0, 4 * MIB), range(4 << 30, 2 * MIB)]
}

fn kinds() -> [Backing; 2] {
    [BackingKind::Anonymous, BackingKind::Shared].map(|kind| Backing { kind, node: None })
}

#[test]
fn memory_is_aligned_written_and_populated() {
    for backing in kinds() {
        let ram = GuestRam::backed(&ranges(), &backing).unwrap();
        for block in ram.blocks() {
            assert_eq!(block.address().as_ptr() as usize % HUGE_PAGE, 0);
        }
        let at = GuestAddress(4 << 30);
        ram.view().write_obj(0x1234_5678u32, at).unwrap();
        ram.blocks()[1].populate(0, HUGE_PAGE).unwrap();
        let value: u32 = ram.view().read_obj(at).unwrap();
        assert_eq!(value, 0x1234_5678, "populating keeps what is there");
        assert!(ram.view().read_obj::<u32>(GuestAddress(4 * MIB)).is_err());
    }
}

#[test]
fn populating_outside_is_refused() {
    let ram = GuestRam::new(&ranges()).unwrap();
    let populate = |at, size| ram.blocks()[1].advise(libc::MADV_POPULATE_WRITE, at, size);
    assert!(populate(1 << 20, 2 << 20).is_err());
    assert!(populate(usize::MAX, 2).is_err());
}

#[test]
fn an_impossible_size_is_an_error() {
    let range = GuestRange {
        start: 0,
        size: 1 << 60,
    };
    for backing in kinds() {
        let error = GuestRam::backed(&[range], &backing).unwrap_err();
        assert!(
            matches!(error, RamError::Map(..) | RamError::File(..)),
            "{error}"
        );
    }
}

/// What devices get by file is what the guest has at that place.
#[test]
fn a_shared_block_is_a_map_of_its_part_of_the_file() {
    let [anonymous, shared] = kinds();
    let private = GuestRam::backed(&ranges(), &anonymous).unwrap();
    assert!(private.blocks().iter().all(|block| block.file().is_none()));
    let ram = GuestRam::backed(&ranges(), &shared).unwrap();
    for (block, tag) in ram.blocks().iter().zip([1u8, 2]) {
        let address = GuestAddress(block.start() + 5);
        ram.view().write_obj(tag, address).unwrap();
        let memory = DeviceRam::new(Arc::clone(block), ram.keep_pages());
        assert_eq!(
            (memory.address(), memory.size()),
            (block.address(), block.size())
        );
        let (file, offset) = memory.file().unwrap();
        let file = File::from(file.try_clone_to_owned().unwrap());
        assert_eq!(file.metadata().unwrap().len(), 6 * MIB);
        let mut read = [0];
        file.read_exact_at(&mut read, offset + 5).unwrap();
        assert_eq!(read, [tag]);
    }
}

#[test]
fn discarded_pages_read_as_zeros_and_are_gone() {
    for backing in kinds() {
        let ram = GuestRam::backed(&ranges(), &backing).unwrap();
        let at = |start, size| GuestRange { start, size };
        let first = GuestAddress(4 << 30);
        let second = GuestAddress((4 << 30) + 0x1000);
        for address in [first, second] {
            ram.view().write_obj(7u8, address).unwrap();
        }
        let blocks = || {
            let (file, _) = ram.blocks()[0].file()?;
            let file = File::from(file.try_clone_to_owned().unwrap());
            Some(file.metadata().unwrap().blocks())
        };
        let before = blocks();
        ram.discard(at(4 << 30, 0x1000)).unwrap();
        assert_eq!(ram.view().read_obj::<u8>(first).unwrap(), 0);
        assert_eq!(ram.view().read_obj::<u8>(second).unwrap(), 7);
        ram.discard(at(4 << 30, 2 * MIB)).unwrap();
        // Before the next look, which has the kernel make a page of zeros.
        if let (Some(before), Some(after)) = (before, blocks()) {
            assert!(before > 0 && after == 0, "{before} to {after}");
        }
        assert_eq!(ram.view().read_obj::<u8>(second).unwrap(), 0);
        // No RAM, more than a piece, no whole pages, nothing.
        for (start, size) in [
            (4 * MIB, 0x1000),
            (2 * MIB, 4 * MIB),
            (0x800, 0x1000),
            (0, 0x800),
            (0, 0),
            (u64::MAX, 0x1000),
            (0x1000, u64::MAX),
        ] {
            // The end of such a range does not exist: only its parts are shown.
            let error = ram.discard(at(start, size)).unwrap_err();
            assert!(matches!(error, RamError::Discard { .. }), "{start:#x}");
        }
    }
}

#[test]
fn pages_stay_while_anybody_keeps_them() {
    let ram = GuestRam::new(&ranges()).unwrap();
    let range = GuestRange {
        start: 0x1000,
        size: 0x1000,
    };
    let other_handle = ram.clone();
    let first = ram.keep_pages();
    let second = first.clone();
    drop(first);
    let device = DeviceRam::new(Arc::clone(&ram.blocks()[0]), other_handle.keep_pages());
    for holder in [
        Box::new(second) as Box<dyn std::fmt::Debug>,
        Box::new(device),
    ] {
        let error = other_handle.discard(range).unwrap_err();
        assert!(matches!(error, RamError::Kept(..)), "{error}");
        assert!(error.to_string().contains("0x1000-0x1fff"), "{error}");
        drop(holder);
    }
    other_handle.discard(range).unwrap();
}

/// Where the host has a pool, pages come from it; otherwise the refusal says
/// how many were wanted.
#[test]
fn huge_pages_are_set_aside_or_refused() {
    let page = HugePageSize::TwoMib;
    let backing = Backing {
        kind: BackingKind::HugePages(page),
        node: None,
    };
    let free = || {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0u64)
    };
    let before = free();
    let range = |pages| GuestRange {
        start: 0,
        size: pages * page.bytes(),
    };
    let error = GuestRam::backed(&[range(before + 1000)], &backing).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("{} huge pages of 2M", before + 1000)),
        "{text}"
    );
    if before < 2 {
        return;
    }
    let ram = GuestRam::backed(&[range(2)], &backing).unwrap();
    ram.blocks()[0]
        .populate(0, ram.blocks()[0].populate_step())
        .unwrap();
    assert!(free() < before);
    assert!(ram.blocks()[0].file().is_some());
}

#[test]
fn memory_of_one_node() {
    let Ok(node) = NumaNode::find(0) else {
        return;
    };
    assert!(node.meminfo().unwrap().total <= HostMeminfo::read().unwrap().total);
    for backing in kinds() {
        let backing = Backing {
            node: Some(node),
            ..backing
        };
        let ram = GuestRam::backed(&ranges(), &backing).unwrap();
        ram.blocks()[1].populate(0, HUGE_PAGE).unwrap();
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        let address = format!("{:x} bind:0", ram.blocks()[1].address().as_ptr() as usize);
        assert!(maps.contains(&address), "{address} in {maps}");
    }
}
