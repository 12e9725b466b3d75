use super::*;
use std::ptr::NonNull;

const PAGE: u64 = 0x1000;

/// Memory that nobody looks at.
#[derive(Debug)]
struct Memory {
    tag: usize,
    size: usize,
}

// SAFETY: not one for KVM or an IOMMU: only these tests see the address.
unsafe impl HostMemory for Memory {
    fn address(&self) -> NonNull<u8> {
        NonNull::without_provenance(self.tag.try_into().unwrap())
    }

    fn size(&self) -> usize {
        self.size
    }
}

fn memory(tag: usize, pages: u64) -> Arc<dyn HostMemory> {
    let size = (pages * PAGE) as usize;
    Arc::new(Memory { tag, size })
}

/// KVM as the API documentation has it: slots never overlap.
#[derive(Clone, Debug, Default)]
struct Kvm(Arc<Mutex<Vec<Taken>>>, Arc<Mutex<Option<i32>>>);

/// Slot number, first and one past the last address, and whose.
type Taken = (u32, u64, u64, usize);

impl Regions for Kvm {
    unsafe fn set(
        &self,
        number: u32,
        address: u64,
        memory: &dyn HostMemory,
        size: usize,
    ) -> Result<(), kvm_ioctls::Error> {
        let mut taken = self.0.lock().unwrap();
        if size == 0 {
            let before = taken.len();
            taken.retain(|slot| slot.0 != number);
            assert_eq!(taken.len() + 1, before, "a slot that is there");
            return Ok(());
        }
        if let Some(errno) = *self.1.lock().unwrap() {
            return Err(kvm_ioctls::Error::new(errno));
        }
        let end = address + size as u64;
        assert!(taken.iter().all(|slot| slot.0 != number));
        if taken.iter().any(|slot| slot.1 < end && address < slot.2) {
            return Err(kvm_ioctls::Error::new(libc::EEXIST));
        }
        taken.push((number, address, end, memory.address().addr().get()));
        Ok(())
    }
}

impl Kvm {
    /// What is mapped: first address in pages, and whose it is.
    fn mapped(&self) -> Vec<(u64, usize)> {
        let taken = self.0.lock().unwrap();
        let mut mapped: Vec<_> = taken.iter().map(|slot| (slot.1 / PAGE, slot.3)).collect();
        mapped.sort_unstable();
        mapped
    }

    fn refuse(&self, errno: Option<i32>) {
        *self.1.lock().unwrap() = errno;
    }
}

fn slots() -> (KvmSlots, Kvm) {
    let kvm = Kvm::default();
    (KvmSlots::with(Box::new(kvm.clone()), 8), kvm)
}

fn put(slots: &KvmSlots, page: u64, pages: u64, tag: usize) -> Box<dyn MemoryMapping> {
    MemoryMapper::map(slots, page * PAGE, memory(tag, pages)).unwrap()
}

fn range(start: u64, size: u64) -> GuestRange {
    GuestRange { start, size }
}

#[test]
fn two_bars_swap_places() {
    let (slots, kvm) = slots();
    let a = put(&slots, 0x10, 1, 1);
    let b = put(&slots, 0x20, 1, 2);
    drop(a);
    let a = put(&slots, 0x20, 1, 1);
    assert_eq!(kvm.mapped(), [], "two at one place: every access exits");
    drop(b);
    assert_eq!(kvm.mapped(), [(0x20, 1)]);
    let b = put(&slots, 0x10, 1, 2);
    assert_eq!(kvm.mapped(), [(0x10, 2), (0x20, 1)]);
    drop((a, b));
    assert_eq!(kvm.mapped(), []);
}

#[test]
fn a_small_bar_in_a_large_ones_pages() {
    let (slots, kvm) = slots();
    let _large = put(&slots, 0x10, 8, 1);
    let small = put(&slots, 0x12, 1, 2);
    assert_eq!(kvm.mapped(), []);
    drop(small);
    assert_eq!(kvm.mapped(), [(0x10, 1)]);
}

#[test]
fn ram_stays() {
    let (slots, kvm) = slots();
    let early = put(&slots, 4, 1, 2);
    assert_eq!(kvm.mapped(), [(4, 2)]);
    let ram = slots.map(0, memory(9, 16)).unwrap();
    let bar = put(&slots, 8, 1, 1);
    assert_eq!(kvm.mapped(), [(0, 9)]);
    drop(bar);
    assert_eq!(kvm.mapped(), [(0, 9)]);
    assert!(matches!(
        slots.map(15 * PAGE, memory(8, 2)),
        Err(SlotError::Set {
            address: 0xf000,
            size: 0x2000,
            ..
        })
    ));
    drop(ram);
    assert_eq!(kvm.mapped(), [(4, 2)]);
    drop(early);
    assert_eq!(kvm.mapped(), []);
}

#[test]
fn nothing_goes_over_what_is_reserved() {
    let (slots, kvm) = slots();
    let _bar = put(&slots, 0x10, 2, 1);
    slots.reserve(range(0x11800, 0x10));
    assert_eq!(kvm.mapped(), []);
    let _other = put(&slots, 0x12, 1, 2);
    assert_eq!(kvm.mapped(), [(0x12, 2)]);
}

#[test]
fn a_page_with_two_bars_in_it_is_no_ones() {
    let (slots, kvm) = slots();
    let small = put(&slots, 0x10, 1, 1);
    let own = range(0x10000, 0x100);
    slots.set_answering(&[own, range(0x11000, 0x100)]);
    assert_eq!(kvm.mapped(), [(0x10, 1)]);
    // The neighbour has no memory of its own to map: it is trapped.
    slots.set_answering(&[own, range(0x10100, 0x100)]);
    assert_eq!(kvm.mapped(), []);
    slots.set_answering(&[own, range(0x0f00, 0x100)]);
    assert_eq!(kvm.mapped(), [(0x10, 1)]);
    drop(small);
    assert_eq!(kvm.mapped(), []);
}

#[test]
fn a_bar_in_pieces_is_one_bar() {
    let (slots, kvm) = slots();
    slots.set_answering(&[range(0x10000, 0x4000)]);
    let _pieces = [put(&slots, 0x10, 2, 1), put(&slots, 0x13, 1, 2)];
    assert_eq!(kvm.mapped(), [(0x10, 1), (0x13, 2)]);
    slots.set_answering(&[range(0x10000, 0x4000), range(0x11000, 0x10)]);
    assert_eq!(kvm.mapped(), [(0x13, 2)], "the rest stays");
}

#[test]
fn a_refusal_is_told_and_not_tried_again() {
    let (slots, kvm) = slots();
    kvm.refuse(Some(libc::ENOMEM));
    let refused = MemoryMapper::map(&slots, 0x1_0000, memory(1, 1));
    assert!(refused.unwrap_err().to_string().contains("0x10000"));
    kvm.refuse(None);
    let _other = put(&slots, 0x10, 1, 2);
    assert_eq!(kvm.mapped(), [(0x10, 2)], "the refused one left nothing");
    let meets = put(&slots, 0x10, 1, 3);
    kvm.refuse(Some(libc::ENOMEM));
    drop(meets);
    assert_eq!(kvm.mapped(), [], "trapped, and the VM goes on");
    kvm.refuse(None);
    slots.reserve(range(0, PAGE));
    assert_eq!(kvm.mapped(), []);
}

#[test]
fn slots_run_out() {
    let (slots, kvm) = slots();
    let all: Vec<_> = (0..8).map(|at| put(&slots, at, 1, 1)).collect();
    let error = MemoryMapper::map(&slots, 0x1_0000, memory(1, 1)).unwrap_err();
    assert!(error.to_string().contains('8'), "{error}");
    drop(all);
    assert_eq!(kvm.mapped(), []);
    let _one = put(&slots, 0x10, 1, 1);
}

#[test]
fn the_topmost_page() {
    let (slots, kvm) = slots();
    slots.set_answering(&[range(u64::MAX - 0xfff, 0x100)]);
    kvm.refuse(Some(libc::EINVAL));
    let map = |tag| MemoryMapper::map(&slots, u64::MAX - 0xfff, memory(tag, 1));
    assert!(map(1).is_err());
    assert_eq!(kvm.mapped(), []);
}

/// Three BARs, and a fourth that is always trapped and lies in the middle of a
/// page; each at one of four places or nowhere.
struct Model {
    slots: KvmSlots,
    kvm: Kvm,
    held: [Option<Box<dyn MemoryMapping>>; 3],
    at: [Option<u64>; 4],
}

impl Model {
    const SIZES: [u64; 4] = [0x2000, 0x1000, 0x100, 0x80];
    const PLACES: u64 = 4;

    fn new() -> Self {
        let (slots, kvm) = slots();
        Self {
            slots,
            kvm,
            held: Default::default(),
            at: [None; 4],
        }
    }

    /// Moves a BAR as the wiring does: what answers, then away, then there.
    fn place(&mut self, bar: usize, place: u64) {
        let within = if bar == 3 { 0x200 } else { 0 };
        self.at[bar] = (place < Self::PLACES).then_some(0x1_0000 + place * PAGE + within);
        let answering = (0..4).filter_map(|bar| Some(range(self.at[bar]?, Self::SIZES[bar])));
        self.slots.set_answering(&answering.collect::<Vec<_>>());
        if let Some(held) = self.held.get_mut(bar) {
            *held = None;
            let pages = Self::SIZES[bar].div_ceil(PAGE);
            *held = self.at[bar].map(|at| put(&self.slots, at / PAGE, pages, bar + 1));
        }
    }

    fn pages(&self, bar: usize) -> Option<(u64, u64)> {
        let first = self.at[bar]? / PAGE;
        Some((first, first + Self::SIZES[bar].div_ceil(PAGE)))
    }

    fn check(&self) {
        let alone = |bar: usize| {
            let (first, end) = self.pages(bar)?;
            let mut others = (0..4).filter(|other| *other != bar);
            let meets = |other| {
                let pages = self.pages(other);
                pages.is_some_and(|(start, last)| start < end && first < last)
            };
            (!others.any(meets)).then_some((first, bar + 1))
        };
        let mut expected: Vec<_> = (0..3).filter_map(alone).collect();
        expected.sort_unstable();
        assert_eq!(self.kvm.mapped(), expected, "{:x?}", self.at);
    }
}

/// From every state by every move and back: slots are what a function of the
/// places says.
#[test]
fn slots_follow_from_where_bars_are() {
    let mut model = Model::new();
    let places = Model::PLACES + 1;
    for state in 0..places.pow(4) {
        let place = |bar: usize| state / places.pow(bar as u32) % places;
        for bar in 0..4 {
            model.place(bar, place(bar));
        }
        model.check();
        for bar in 0..4 {
            for there in 0..places {
                model.place(bar, there);
                model.check();
            }
            model.place(bar, place(bar));
            model.check();
        }
    }
}
