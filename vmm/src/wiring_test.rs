use super::*;
use crate::memory::GuestRam;
use crate::timeline::Timeline;
use devices::pci::{
    BarIndex, BarInfo, BarKind, ConfigSpace, Effects, Link, Register, RootPort, SettleError,
};
use proptest::prelude::*;
use std::time::Duration;

const COMMAND: u16 = 4;
const IO: u8 = 1;
const MEMORY: u8 = 2;
const MASTER: u8 = 4;
const PAGE: u64 = 0x1000;

/// The guest's address space: what functions have mapped into it.
#[derive(Debug, Default)]
struct World {
    mapped: Mutex<Vec<(u8, BarDecode)>>,
    answering: Mutex<Vec<GuestRange>>,
    wrong: Mutex<Vec<String>>,
}

impl World {
    fn map(&self, tag: u8, decode: BarDecode) {
        let mut mapped = lock(&self.mapped);
        let meets = |(_, other): &(u8, BarDecode)| {
            decode.address < other.address + other.bar.size
                && other.address < decode.address + decode.bar.size
        };
        if let Some(other) = mapped.iter().find(|other| meets(other)) {
            lock(&self.wrong).push(format!("{tag}: {decode:x?} over {other:x?}"));
        }
        let range = GuestRange {
            start: decode.address,
            size: decode.bar.size,
        };
        if !lock(&self.answering).contains(&range) {
            lock(&self.wrong).push(format!("{tag}: {decode:x?} was not announced"));
        }
        mapped.push((tag, decode));
    }

    fn unmap(&self, tag: u8, decode: BarDecode) {
        lock(&self.mapped).retain(|other| *other != (tag, decode));
    }
}

impl AnsweringRanges for World {
    fn set_answering(&self, ranges: &[GuestRange]) {
        *lock(&self.answering) = ranges.to_vec();
    }
}

/// BARs of memory and a command register; reads give the tag and the BAR.
#[derive(Debug)]
struct Function {
    space: ConfigSpace,
    bars: Vec<BarInfo>,
    tag: u8,
    mapped: Vec<BarDecode>,
    settled: usize,
    resets: usize,
    world: Arc<World>,
}

impl Function {
    fn new(tag: u8, sizes: &[u64], world: &Arc<World>) -> Arc<Mutex<Self>> {
        let mut space = ConfigSpace::new();
        space.define(Register::writable(COMMAND, 2, 0, 7));
        let bar = |(index, size): (u8, &u64)| BarInfo {
            index: BarIndex::new(index).unwrap(),
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: *size,
        };
        let bars: Vec<_> = (0..).zip(sizes).map(bar).collect();
        for bar in &bars {
            bar.define(&mut space);
        }
        Arc::new(Mutex::new(Self {
            space,
            bars,
            tag,
            mapped: Vec::new(),
            settled: 0,
            resets: 0,
            world: Arc::clone(world),
        }))
    }
}

impl PciFunction for Function {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
    }
    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let before = (self.decoded(), self.space.u8(COMMAND));
        self.space.write(offset, data);
        let after = self.space.u8(COMMAND);
        Effects {
            decoding: before.0 != self.decoded(),
            bus_master: !before.1 & after & MASTER != 0,
        }
    }
    fn bars(&self) -> Vec<BarInfo> {
        self.bars.clone()
    }
    fn decoded(&self) -> Vec<BarDecode> {
        let command = self.space.u8(COMMAND);
        let decode = |bar: &BarInfo| {
            let enable = if bar.kind.is_io() { IO } else { MEMORY };
            let address = bar.address(&self.space)?;
            (command & enable != 0).then_some(BarDecode { bar: *bar, address })
        };
        self.bars.iter().filter_map(decode).collect()
    }
    fn bar_read(&mut self, bar: BarIndex, _: u64, data: &mut [u8]) {
        data.fill(self.tag << 4 | bar.get());
    }
    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
    fn reset(&mut self) -> Effects {
        self.resets += 1;
        self.space.set(COMMAND, &[0; 2]);
        self.space.set(0x10, &[0; 24]);
        Effects {
            decoding: true,
            bus_master: false,
        }
    }
    fn release(&mut self, answering: &[BarDecode]) {
        for gone in &self.mapped {
            if !answering.contains(gone) {
                self.world.unmap(self.tag, *gone);
            }
        }
        self.mapped.retain(|decode| answering.contains(decode));
    }
    fn settle(&mut self, reach: &Reach) -> Result<(), SettleError> {
        self.settled += 1;
        self.release(&reach.answering);
        for new in &reach.answering {
            if !new.bar.kind.is_io() && !self.mapped.contains(new) {
                self.world.map(self.tag, *new);
                self.mapped.push(*new);
            }
        }
        Ok(())
    }
}

/// Functions 1 and 2 on the root bus, and 3 below a port.
struct Rig {
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    root: RootComplex,
    functions: Vec<Arc<Mutex<Function>>>,
    world: Arc<World>,
    report: Arc<EndReport>,
}

const ADDRESSES: [&str; 3] = ["00:01.0", "00:02.0", "01:00.0"];
const PORT: &str = "00:04.0";

impl Rig {
    fn new(dma: Option<Arc<DmaMap>>) -> Self {
        let mmio = Arc::new(Bus::new());
        let pio = Arc::new(Bus::new());
        let report = EndReport::new(Timeline::start()).unwrap();
        let world = Arc::new(World::default());
        let ranges = Arc::clone(&world) as Arc<dyn AnsweringRanges>;
        let wiring = Wiring::new(&mmio, &pio, ranges, dma, Arc::clone(&report));
        let root = RootComplex::new(wiring);
        let port = Arc::new(Mutex::new(RootPort::new(1, Link::default())));
        root.add_port(PORT.parse().unwrap(), 1, port).unwrap();
        let functions: Vec<_> = [(1, &[PAGE, 2 * PAGE][..]), (2, &[PAGE]), (3, &[PAGE])]
            .into_iter()
            .zip(ADDRESSES)
            .map(|((tag, sizes), address)| {
                let function = Function::new(tag, sizes, &world);
                root.add(address.parse().unwrap(), function.clone())
                    .unwrap();
                function
            })
            .collect();
        let rig = Self {
            mmio,
            pio,
            root,
            functions,
            report,
            world,
        };
        rig.write(PORT, 0x18, &0x0001_0100_u32.to_le_bytes());
        rig.write(PORT, 0x20, &[0, 0, 0, 0]);
        rig.write(PORT, COMMAND, &[MEMORY | MASTER]);
        rig
    }

    fn write(&self, address: &str, offset: u16, data: &[u8]) {
        self.root
            .config_write(address.parse().unwrap(), offset, data);
    }

    /// Moves a BAR, with decoding on.
    fn place(&self, function: usize, bar: u16, at: u64) {
        let address = ADDRESSES[function];
        self.write(address, 0x10 + bar * 4, &(at as u32).to_le_bytes());
        let command = lock(&self.functions[function]).space.u8(COMMAND);
        self.write(address, COMMAND, &[command | MEMORY]);
    }

    fn read(&self, address: u64) -> u8 {
        let mut data = [0];
        self.mmio.read(address, &mut data);
        data[0]
    }

    /// What every register together says: who answers each of the pages.
    fn expected(&self) -> Vec<u8> {
        let mut pages = vec![0xff; 24];
        for (function, address) in self.functions.iter().zip(ADDRESSES) {
            let decoded = self.root.decoded(address.parse().unwrap());
            let tag = lock(function).tag;
            for decode in decoded {
                let first = (decode.address / PAGE) as usize;
                let count = (decode.bar.size / PAGE) as usize;
                let Some(place) = pages.get_mut(first..first + count) else {
                    continue;
                };
                if place.iter().all(|page| *page == 0xff) {
                    place.fill(tag << 4 | decode.bar.index.get());
                }
            }
        }
        pages
    }

    /// The bus, and what is mapped, are what the registers say.
    fn check(&self) {
        let expected = self.expected();
        let trapped: Vec<u8> = (0..24).map(|page| self.read(page * PAGE)).collect();
        assert_eq!(trapped, expected);
        let mut mapped = vec![0xff; 24];
        for (tag, decode) in lock(&self.world.mapped).iter() {
            for page in 0..decode.bar.size / PAGE {
                let page = (decode.address / PAGE + page) as usize;
                mapped[page] = tag << 4 | decode.bar.index.get();
            }
        }
        assert_eq!(mapped, expected);
        let wrong = lock(&self.world.wrong);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn a_bar_answers_where_it_is_decoded() {
    let rig = Rig::new(None);
    rig.place(0, 0, 0x1000);
    assert_eq!(rig.read(0x1fff), 0x10);
    rig.place(0, 0, 0x8000);
    assert_eq!([rig.read(0x1000), rig.read(0x8000)], [0xff, 0x10]);
    rig.write(ADDRESSES[0], COMMAND, &[0]);
    assert_eq!(rig.read(0x8000), 0xff);
    rig.check();
}

#[test]
fn two_bars_can_swap_places() {
    let rig = Rig::new(None);
    rig.place(0, 0, 0x1000);
    rig.place(1, 0, 0x2000);
    rig.place(1, 0, 0x1000);
    assert_eq!(rig.read(0x1000), 0x10, "the lower address answers");
    rig.check();
    rig.place(0, 0, 0x2000);
    assert_eq!([rig.read(0x1000), rig.read(0x2000)], [0x20, 0x10]);
    rig.check();
    // The winner comes over the other, and goes again.
    rig.place(0, 0, 0x1000);
    assert_eq!([rig.read(0x1000), rig.read(0x2000)], [0x10, 0xff]);
    rig.place(0, 0, 0x5000);
    assert_eq!(rig.read(0x1000), 0x20);
    rig.check();
}

#[test]
fn what_is_no_bar_is_not_hidden() {
    let rig = Rig::new(None);
    #[derive(Debug)]
    struct Other;
    impl devices::bus::BusDevice for Other {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(0xee);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }
    rig.mmio
        .insert("other", 0x3000, 0x1000, Arc::new(Other))
        .unwrap();
    rig.place(0, 1, 0x2000);
    assert_eq!([rig.read(0x2000), rig.read(0x3000)], [0xff, 0xee]);
    rig.place(0, 0, 0x2000);
    assert_eq!([rig.read(0x2000), rig.read(0x3000)], [0x10, 0xee]);
}

#[test]
fn ports_are_another_address_space() {
    let rig = Rig::new(None);
    let mut function = lock(&rig.functions[1]);
    let ports = BarInfo {
        index: BarIndex::new(1).unwrap(),
        kind: BarKind::Io,
        size: 0x20,
    };
    ports.define(&mut function.space);
    function.bars.push(ports);
    drop(function);
    rig.place(0, 0, 0x1000);
    rig.write(ADDRESSES[1], 0x14, &0x1000_u32.to_le_bytes());
    rig.write(ADDRESSES[1], COMMAND, &[IO]);
    let read = |port| {
        let mut data = [0];
        rig.pio.read(port, &mut data);
        data[0]
    };
    assert_eq!(
        [read(0x1000), read(0x101f), read(0x1020)],
        [0x21, 0x21, 0xff]
    );
    assert_eq!(rig.read(0x1000), 0x10);
    rig.write(ADDRESSES[1], 0x14, &0x1020_u32.to_le_bytes());
    assert_eq!([read(0x1000), read(0x1020)], [0xff, 0x21]);
    rig.write(ADDRESSES[1], COMMAND, &[MEMORY]);
    assert_eq!(read(0x1020), 0xff);
    assert!(rig.pio.claims().is_empty());
}

#[test]
fn a_port_takes_away_and_gives_back() {
    let rig = Rig::new(None);
    rig.place(2, 0, 0x4000);
    assert_eq!(rig.read(0x4000), 0x30);
    rig.write(PORT, COMMAND, &[0]);
    assert_eq!(rig.read(0x4000), 0xff);
    rig.check();
    rig.write(PORT, COMMAND, &[MEMORY]);
    assert_eq!(rig.read(0x4000), 0x30);
    rig.write(PORT, 0x3e, &[0x40]);
    assert_eq!(lock(&rig.functions[2]).resets, 1);
    rig.write(PORT, 0x3e, &[0]);
    assert_eq!(rig.read(0x4000), 0xff, "its BARs are zero now");
    rig.place(2, 0, 0x4000);
    assert_eq!(rig.read(0x4000), 0x30);
    rig.check();
}

/// Every sequence of moves of two functions among three places.
#[test]
fn all_short_histories_end_in_what_the_registers_say() {
    let places = [0, 0x1000, 0x2000];
    let moves: Vec<(usize, u16, u64)> = [(0, 0), (0, 1), (1, 0)]
        .into_iter()
        .flat_map(|(function, bar)| places.map(|at| (function, bar, at)))
        .collect();
    for first in &moves {
        for second in &moves {
            for third in &moves {
                let rig = Rig::new(None);
                for (function, bar, at) in [first, second, third] {
                    rig.place(*function, *bar, *at);
                    rig.check();
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Write {
    Bar(usize, u16, u64),
    Command(usize, u8),
    PortCommand(u8),
    PortWindow(bool),
    Reset(bool),
}

fn any_write() -> impl Strategy<Value = Write> {
    prop_oneof![
        6 => (0usize..3, 0u16..2, 0u64..20).prop_map(|(f, bar, page)| Write::Bar(f, bar, page * PAGE)),
        // While it is sized.
        1 => (0usize..3, 0u16..2).prop_map(|(f, bar)| Write::Bar(f, bar, u32::MAX.into())),
        3 => (0usize..3, 0u8..8).prop_map(|(f, bits)| Write::Command(f, bits)),
        1 => (0u8..8).prop_map(Write::PortCommand),
        1 => any::<bool>().prop_map(Write::PortWindow),
        1 => any::<bool>().prop_map(Write::Reset),
    ]
}

impl Rig {
    fn apply(&self, write: &Write) {
        match *write {
            Write::Bar(function, bar, at) => {
                let bytes = (at as u32).to_le_bytes();
                self.write(ADDRESSES[function], 0x10 + bar * 4, &bytes);
            }
            Write::Command(function, bits) => {
                self.write(ADDRESSES[function], COMMAND, &[bits]);
            }
            Write::PortCommand(bits) => self.write(PORT, COMMAND, &[bits]),
            Write::PortWindow(open) => self.write(PORT, 0x20, &[u8::from(!open) << 4, 0, 0, 0]),
            Write::Reset(held) => self.write(PORT, 0x3e, &[u8::from(held) << 6]),
        }
    }
}

proptest! {
    #[test]
    fn any_history_ends_in_what_the_registers_say(
        writes in proptest::collection::vec(any_write(), 1..60),
    ) {
        let rig = Rig::new(None);
        for write in &writes {
            rig.apply(write);
            rig.check();
        }
    }

    /// The same from several vCPUs at once: in the end it is what the registers
    /// say, and at no time was anything mapped over anything else.
    #[test]
    fn several_vcpus_write_at_once(
        writes in proptest::collection::vec(proptest::collection::vec(any_write(), 1..40), 2..4),
    ) {
        let rig = Rig::new(None);
        std::thread::scope(|scope| {
            for of_one in &writes {
                scope.spawn(|| of_one.iter().for_each(|write| rig.apply(write)));
            }
        });
        rig.check();
    }
}

#[test]
fn a_bar_on_its_way_is_at_one_place() {
    for _ in 0..300 {
        let rig = Rig::new(None);
        rig.place(1, 0, 0x1000);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                loop {
                    let old = rig.read(0x1000);
                    let new = rig.read(0x2000);
                    let old_again = rig.read(0x1000);
                    assert!(old == 0x20 || new == 0x20, "it was at neither");
                    assert!(new == 0xff || old_again == 0xff, "it was at both");
                    if old == 0xff {
                        return;
                    }
                }
            });
            rig.place(1, 0, 0x2000);
            reader.join().unwrap();
        });
    }
}

#[test]
fn a_bus_master_settles_once_memory_is_mapped() {
    let range = GuestRange {
        start: 0,
        size: 2 << 20,
    };
    let ram = GuestRam::new(&[range]).unwrap();
    let dma = DmaMap::start(&ram, 1, Timeline::start()).unwrap();
    dma.rest_until_needed();
    let dma = Arc::new(dma);
    let rig = Rig::new(Some(Arc::clone(&dma)));
    // Below a port that lets no request pass there is nothing to wait for.
    rig.write(PORT, COMMAND, &[MEMORY]);
    rig.write(ADDRESSES[2], COMMAND, &[MEMORY | MASTER]);
    let settled = |function: usize| lock(&rig.functions[function]).settled;
    let before = [settled(0), settled(2)];
    lock(&rig.functions[0])
        .space
        .set(COMMAND, &[MEMORY | MASTER, 0]);
    std::thread::scope(|scope| {
        // Another register's effect, by any vCPU, must not let it through.
        scope.spawn(|| rig.place(0, 0, 0x8000));
        // And the port's own bit opens the way for the function below.
        scope.spawn(|| rig.write(PORT, COMMAND, &[MEMORY | MASTER]));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!([settled(0), settled(2)], before);
        dma.hand_over(crate::dma::tests::space(false));
    });
    assert_eq!([settled(0), settled(2)], before.map(|count| count + 1));
}

/// One that is pulled out while its bus-master bit waits for memory.
#[test]
fn a_function_that_is_taken_away_waits_for_nothing() {
    let range = GuestRange {
        start: 0,
        size: 2 << 20,
    };
    let ram = GuestRam::new(&[range]).unwrap();
    let dma = Arc::new(DmaMap::start(&ram, 1, Timeline::start()).unwrap());
    dma.rest_until_needed();
    let rig = Rig::new(Some(Arc::clone(&dma)));
    let before = lock(&rig.functions[0]).settled;
    std::thread::scope(|scope| {
        scope.spawn(|| rig.write(ADDRESSES[0], COMMAND, &[MEMORY | MASTER]));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(lock(&rig.functions[0]).settled, before);
        lock(&rig.functions[0]).space.set(COMMAND, &[0xff; 2]);
        // The space has lost its last device.
        dma.hand_over(crate::dma::tests::space(true));
    });
    assert_eq!(lock(&rig.functions[0]).settled, before + 1);
    assert!(rig.report.take().is_none(), "the guest goes on");
}
