use super::*;
use crate::fake::{FakeSpace, Journal};
use crate::ports::{HostMemory, MemoryMapping, PortError};
use crate::sys::Mapping;
use crate::vfio::{DeviceError, HotReset, IrqIndex, IrqInfo, RegionInfo};
use devices::pci::BarKind;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

const PAGE: u64 = 0x1000;

/// A device of nothing but regions.
#[derive(Debug, Default)]
struct Regions {
    regions: BTreeMap<u32, RegionInfo>,
    /// The kernel refuses to map what begins here.
    refuse_at: Option<u64>,
}

impl DeviceBackend for Regions {
    fn region(&self, index: u32) -> Option<&RegionInfo> {
        self.regions.get(&index)
    }

    fn region_read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn region_map(&self, index: u32, area: RegionArea) -> Result<Arc<dyn HostMemory>, DeviceError> {
        let RegionArea { offset, size } = area;
        let region = &self.regions[&index];
        assert!(region.readable && region.writable);
        assert!(offset + size <= region.size.next_multiple_of(PAGE));
        if self.refuse_at == Some(offset) {
            return Err(DeviceError::Region {
                action: "map",
                region: index,
                offset,
                size,
                source: io::ErrorKind::OutOfMemory.into(),
            });
        }
        Ok(Arc::new(Mapping::anonymous(size as usize).unwrap()))
    }

    fn irq(&self, _: IrqIndex) -> Option<IrqInfo> {
        None
    }

    fn set_irqs(
        &self,
        _: IrqIndex,
        _: u32,
        _: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        Ok(())
    }

    fn disable_irqs(&self, _: IrqIndex) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_intx_unmask_event(&self, _: Option<BorrowedFd<'_>>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn unmask_intx(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn can_reset(&self) -> bool {
        false
    }

    fn reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn hot_reset_info(&self) -> Result<Option<HotReset>, DeviceError> {
        Ok(None)
    }

    fn hot_reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn has_low_power(&self) -> bool {
        false
    }

    fn enter_low_power(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn leave_low_power(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

type Maps = BTreeMap<u64, u64>;

/// A guest's address space that says what is mapped, and has places that it
/// does not want to map.
#[derive(Clone, Debug, Default)]
struct Guest {
    maps: Arc<Mutex<Maps>>,
    refused: Arc<Mutex<Vec<u64>>>,
}

#[derive(Debug)]
struct Mapped {
    guest: Guest,
    address: u64,
    _memory: Arc<dyn HostMemory>,
}

impl MemoryMapper for Guest {
    fn map(
        &self,
        address: u64,
        memory: Arc<dyn HostMemory>,
    ) -> Result<Box<dyn MemoryMapping>, PortError> {
        if self.refused.lock().unwrap().contains(&address) {
            return Err("refused".into());
        }
        let before = self
            .maps
            .lock()
            .unwrap()
            .insert(address, memory.size() as u64);
        assert_eq!(before, None);
        Ok(Box::new(Mapped {
            guest: self.clone(),
            address,
            _memory: memory,
        }))
    }
}

impl MemoryMapping for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        assert!(
            self.guest
                .maps
                .lock()
                .unwrap()
                .remove(&self.address)
                .is_some()
        );
    }
}

impl Guest {
    fn maps(&self) -> Vec<(u64, u64)> {
        let maps = self.maps.lock().unwrap();
        maps.iter()
            .map(|(address, size)| (*address, *size))
            .collect()
    }
}

fn area(offset: u64, size: u64) -> RegionArea {
    RegionArea { offset, size }
}

fn bar(index: u8, size: u64) -> BarInfo {
    BarInfo {
        index: BarIndex::new(index).unwrap(),
        kind: BarKind::Memory64 {
            prefetchable: false,
        },
        size,
    }
}

struct Setup {
    backend: Regions,
    guest: Guest,
    space: Arc<FakeSpace>,
    bars: Bars,
}

fn setup() -> Setup {
    let guest = Guest::default();
    let space = Arc::new(FakeSpace::new(&Journal::default()));
    let host = PciAddress::new(0, 1, 0, 0).unwrap();
    let bars = Bars::new(host, Arc::new(guest.clone()), space.clone());
    Setup {
        backend: Regions::default(),
        guest,
        space,
        bars,
    }
}

impl Setup {
    fn add(&mut self, info: BarInfo, mappable: &[RegionArea]) {
        let region = RegionInfo {
            size: info.size,
            readable: true,
            writable: true,
            mappable: mappable.to_vec(),
        };
        self.add_region(info, region);
    }

    fn add_region(&mut self, info: BarInfo, region: RegionInfo) {
        self.backend.regions.insert(info.index.get().into(), region);
        self.bars.add(info, &self.backend, None);
    }

    /// As `settle` does it.
    fn place_anywhere(&mut self, decoded: &[(BarInfo, u64)]) {
        let decode = |&(bar, address)| BarDecode { bar, address };
        let decoded: Vec<_> = decoded.iter().map(decode).collect();
        self.bars.unmap_stale(&decoded);
        self.bars.map_decoded(&decoded);
    }

    /// Also checks that peers, as far as they reach, see what the guest sees.
    fn place(&mut self, decoded: &[(BarInfo, u64)]) {
        self.place_anywhere(decoded);
        assert_eq!(self.space.mapped(), self.guest.maps());
    }
}

#[test]
fn two_bars_swap_places() {
    let mut setup = setup();
    let (a, b) = (bar(0, PAGE), bar(2, 2 * PAGE));
    setup.add(a, &[area(0, PAGE)]);
    setup.add(b, &[area(0, 2 * PAGE)]);
    setup.place(&[(a, 0x10_0000), (b, 0x20_0000)]);
    setup.place(&[(a, 0x20_0000), (b, 0x10_0000)]);
    let swapped = [(0x10_0000, 2 * PAGE), (0x20_0000, PAGE)];
    assert_eq!(setup.guest.maps(), swapped);
    setup.place(&[(b, 0x10_0000)]);
    assert_eq!(setup.guest.maps(), swapped[..1]);
    setup.place(&[]);
    assert_eq!(setup.guest.maps(), []);
}

#[test]
fn a_small_bar_is_mapped_where_it_begins_a_page() {
    let mut setup = setup();
    let small = bar(0, 0x100);
    setup.add(small, &[area(0, 0x100)]);
    assert_eq!(setup.bars.infos().next(), Some(small), "its size stays");
    setup.place(&[(small, 0x10_0000)]);
    assert_eq!(setup.guest.maps(), [(0x10_0000, PAGE)]);
    setup.place(&[(small, 0x10_0100)]);
    assert_eq!(setup.guest.maps(), []);
    setup.place(&[(small, 0x10_1000)]);
    assert_eq!(setup.guest.maps(), [(0x10_1000, PAGE)]);
}

#[test]
fn a_small_bar_that_shares_its_page_on_the_host_is_trapped() {
    let mut setup = setup();
    let small = bar(0, 0x100);
    setup.add(small, &[]);
    setup.place(&[(small, 0x10_0000)]);
    assert_eq!(setup.guest.maps(), []);
}

#[test]
fn what_cannot_be_both_read_and_written_is_trapped() {
    for (readable, writable) in [(true, false), (false, true), (false, false)] {
        let mut setup = setup();
        let info = bar(0, PAGE);
        let region = RegionInfo {
            size: PAGE,
            readable,
            writable,
            mappable: vec![area(0, PAGE)],
        };
        setup.add_region(info, region);
        setup.place(&[(info, 0x10_0000)]);
        assert_eq!(setup.guest.maps(), []);
    }
}

#[test]
fn ports_are_trapped_whatever_the_host_says() {
    let mut setup = setup();
    let info = BarInfo {
        kind: BarKind::Io,
        ..bar(0, PAGE)
    };
    setup.add(info, &[area(0, PAGE)]);
    setup.place(&[(info, 0x1000)]);
    assert_eq!(setup.guest.maps(), []);
}

#[test]
fn a_piece_that_the_host_does_not_map_is_trapped_alone() {
    let mut setup = setup();
    let info = bar(0, 8 * PAGE);
    setup.backend.refuse_at = Some(4 * PAGE);
    setup.add(
        info,
        &[area(0, PAGE), area(4 * PAGE, PAGE), area(6 * PAGE, PAGE)],
    );
    setup.place(&[(info, 0x10_0000)]);
    assert_eq!(setup.guest.maps(), [(0x10_0000, PAGE), (0x10_6000, PAGE)]);
}

#[test]
fn a_bar_is_mapped_whole_or_not_at_all() {
    let mut setup = setup();
    let (sparse, other) = (bar(0, 4 * PAGE), bar(2, PAGE));
    setup.add(sparse, &[area(0, PAGE), area(2 * PAGE, PAGE)]);
    setup.add(other, &[area(0, PAGE)]);
    *setup.guest.refused.lock().unwrap() = vec![0x10_2000];
    let places = [(sparse, 0x10_0000), (other, 0x20_0000)];
    setup.place(&places);
    assert_eq!(setup.guest.maps(), [(0x20_0000, PAGE)]);
    setup.guest.refused.lock().unwrap().clear();
    setup.place(&places);
    assert_eq!(setup.guest.maps().len(), 1, "not tried again in place");
    setup.place(&places[1..]);
    setup.place(&places);
    assert_eq!(setup.guest.maps().len(), 3);
}

#[test]
fn the_only_device_offers_its_bars_to_nobody() {
    let journal = Journal::default();
    let space = Arc::new(FakeSpace::empty(&journal));
    let host = PciAddress::new(0, 1, 0, 0).unwrap();
    let mut setup = setup();
    setup.bars = Bars::new(host, Arc::new(setup.guest.clone()), space.clone());
    let large = bar(0, 1 << 20);
    setup.add(large, &[area(0, 1 << 20)]);
    let decoded = [BarDecode {
        bar: large,
        address: 1 << 34,
    }];
    setup.bars.map_decoded(&decoded);
    assert_eq!(setup.guest.maps(), [(1 << 34, 1 << 20)]);
    assert_eq!(space.mapped(), []);
    let second = Bars::new(host, Arc::new(setup.guest.clone()), space.clone());
    assert_eq!(space.mapped(), [(1 << 34, 1 << 20)]);
    drop(second);
    assert_eq!(space.mapped(), []);
}

proptest! {
    /// Whatever the kernel says of a region, the maps lie inside of its pages
    /// (`Regions::region_map` checks), and nothing panics.
    #[test]
    fn hostile_regions(
        bits in 4_u32..24,
        readable: bool,
        writable: bool,
        areas in proptest::collection::vec((any::<u64>(), any::<u64>(), 0_u32..64, 0_u32..64), 0..8),
        at: u64,
    ) {
        let mut setup = setup();
        let info = bar(0, 1 << bits);
        let mappable = areas.iter().map(|(a, b, c, d)| area(a >> c, b >> d)).collect();
        let region = RegionInfo { size: info.size, readable, writable, mappable };
        setup.add_region(info, region);
        let address = at & !(info.size - 1) & (u64::MAX >> 8);
        setup.place_anywhere(&[(info, address)]);
        for (start, size) in setup.guest.maps() {
            prop_assert!(start >= address);
            prop_assert!(start + size <= address + info.size.max(PAGE));
        }
        setup.place_anywhere(&[]);
        prop_assert_eq!(setup.guest.maps(), []);
    }

    /// After any number of moves, what is mapped follows from where the BARs
    /// are now.
    #[test]
    fn maps_follow_from_the_registers(
        steps in proptest::collection::vec(proptest::collection::vec((0_u64..9, any::<bool>()), 4), 1..20),
    ) {
        let mut setup = setup();
        let bars = [bar(0, PAGE), bar(1, 2 * PAGE), bar(2, 0x80), bar(4, 4 * PAGE)];
        setup.add(bars[0], &[area(0, PAGE)]);
        setup.add(bars[1], &[area(PAGE, PAGE)]);
        setup.add(bars[2], &[area(0, 0x80)]);
        setup.add(bars[3], &[]);
        for step in steps {
            // Apart from each other: meeting is the mapper's concern.
            let places: Vec<_> = bars
                .iter()
                .zip(&step)
                .zip(1_u64..)
                .filter(|((_, (_, on)), _)| *on)
                .map(|((bar, (at, _)), lane)| (*bar, (lane << 24) + at * bar.size))
                .collect();
            setup.place(&places);
            let mut expected = Vec::new();
            for (bar, address) in places {
                match bar.index.get() {
                    0 => expected.push((address, PAGE)),
                    1 => expected.push((address + PAGE, PAGE)),
                    2 if address % PAGE == 0 => expected.push((address, PAGE)),
                    _ => {}
                }
            }
            prop_assert_eq!(setup.guest.maps(), expected);
        }
    }
}
