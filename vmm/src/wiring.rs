//! Follows what the guest programs into its PCI functions: who answers which
//! addresses, and when a device may reach memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::bus::Bus;
use devices::pci::{
    BarAccess, BarDecode, Change, EffectSink, FunctionHandle, PciAddress, PciFunction, Reach,
    RootComplex,
};

use crate::dma::DmaMap;
use crate::outcome::{Chain, EndReport, Outcome};

/// Carries out the effects of config writes.
#[derive(Debug)]
pub struct Wiring {
    // Weak: the buses hold the root complex, which holds this.
    mmio: Weak<Bus>,
    pio: Weak<Bus>,
    dma: Option<Arc<DmaMap>>,
    report: Arc<EndReport>,
    // Lock order: before a function's lock, and not held while one settles.
    books: Mutex<Books>,
}

/// Which BARs should answer, and which do.
#[derive(Debug, Default)]
struct Books {
    wanted: BTreeMap<PciAddress, (FunctionHandle, Vec<BarDecode>)>,
    answering: BTreeMap<(bool, u64), (PciAddress, BarDecode)>,
}

impl Wiring {
    /// Keeps the books of `mmio` and `pio`. `dma` is there when devices are
    /// assigned.
    pub fn new(
        mmio: &Arc<Bus>,
        pio: &Arc<Bus>,
        dma: Option<Arc<DmaMap>>,
        report: Arc<EndReport>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mmio: Arc::downgrade(mmio),
            pio: Arc::downgrade(pio),
            dma,
            report,
            books: Mutex::default(),
        })
    }

    fn decode(&self, root: &RootComplex, address: PciAddress, function: &FunctionHandle) {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let now = root.decoded(address);
        books.wanted.insert(address, (Arc::clone(function), now));
        self.forget_moved(&mut books);
        self.answer_new(&mut books);
    }

    fn forget_moved(&self, books: &mut Books) {
        let Books { wanted, answering } = books;
        answering.retain(|(io, base), (address, decode)| {
            let stays = wanted
                .get(address)
                .is_some_and(|(_, decoded)| decoded.contains(decode));
            if !stays
                && let Some(bus) = self.bus(*io)
                && let Err(error) = bus.remove(*base)
            {
                log::error!("{address}: {error}");
            }
            stays
        });
    }

    fn answer_new(&self, books: &mut Books) {
        let Books { wanted, answering } = books;
        for (address, (function, decoded)) in wanted {
            for decode in decoded {
                let BarDecode { bar, address: base } = *decode;
                let key = (bar.kind.is_io(), base);
                if answering.get(&key).is_some_and(|(who, _)| who == address) {
                    continue;
                }
                let Some(bus) = self.bus(key.0) else {
                    continue;
                };
                let access = Arc::new(BarAccess::new(Arc::clone(function), bar));
                let name = format!("{address} {}", bar.index);
                match bus.insert(name, base, bar.size, access) {
                    Ok(()) => {
                        answering.insert(key, (*address, *decode));
                    }
                    // Two BARs at one place: the first answers, and the
                    // second once the first has moved away.
                    Err(error) => log::debug!("{error}"),
                }
            }
        }
    }

    fn bus(&self, io: bool) -> Option<Arc<Bus>> {
        if io { &self.pio } else { &self.mmio }.upgrade()
    }
}

impl EffectSink for Wiring {
    fn apply(&self, root: &RootComplex, changes: &[Change]) {
        for change in changes {
            let address = change.address;
            if change.effects.decoding {
                self.decode(root, address, &change.function);
            }
            let reach = Reach {
                answering: root.decoded(address),
                bus_master: root.is_bus_master(address),
            };
            if let Err(reason) = self.settle(&change.function, &reach) {
                let reason = format!("guest device {address}: {reason}");
                self.report.end(Outcome::HostRefused(reason));
            }
        }
    }
}

impl Wiring {
    /// Settles the function, but never with bus mastering on before all of RAM
    /// is mapped. The bit is looked at under the lock that settling takes: it
    /// may have been set by another vCPU, which waits here too.
    fn settle(&self, function: &FunctionHandle, reach: &Reach) -> Result<(), String> {
        loop {
            let mut function = lock(function);
            match &self.dma {
                Some(dma) if is_bus_master(&mut *function) && !dma.is_mapped() => {
                    drop(function);
                    dma.wait().map_err(|error| error.to_string())?;
                }
                _ => {
                    return function
                        .settle(reach)
                        .map_err(|error| Chain(&*error).to_string());
                }
            }
        }
    }
}

/// Whether the guest has set the bus-master bit of the command register
/// (PCI 3.0 §6.2.2).
fn is_bus_master(function: &mut dyn PciFunction) -> bool {
    let mut command = [0; 2];
    function.config_read(0x04, &mut command);
    u16::from_le_bytes(command) & 1 << 2 != 0
}

fn lock(function: &FunctionHandle) -> std::sync::MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{GuestRam, GuestRange};
    use crate::timeline::Timeline;
    use devices::pci::{BarIndex, BarInfo, BarKind, Effects};
    use std::time::Duration;

    /// One BAR, wherever the test wants it; reads give its tag.
    #[derive(Debug)]
    struct Function {
        at: Option<u64>,
        tag: u8,
        command: u16,
        settled: usize,
    }

    impl PciFunction for Function {
        fn config_read(&mut self, offset: u16, data: &mut [u8]) {
            assert_eq!(offset, 4);
            data.copy_from_slice(&self.command.to_le_bytes());
        }
        fn config_write(&mut self, _: u16, _: &[u8]) -> Effects {
            Effects::NONE
        }
        fn bars(&self) -> Vec<BarInfo> {
            vec![BarInfo {
                index: BarIndex::new(0).unwrap(),
                kind: BarKind::Memory32 {
                    prefetchable: false,
                },
                size: 0x1000,
            }]
        }
        fn decoded(&self) -> Vec<BarDecode> {
            let bar = self.bars()[0];
            self.at
                .map(|address| BarDecode { bar, address })
                .into_iter()
                .collect()
        }
        fn bar_read(&mut self, _: BarIndex, _: u64, data: &mut [u8]) {
            data.fill(self.tag);
        }
        fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
        fn settle(&mut self, _: &Reach) -> Result<(), devices::pci::SettleError> {
            self.settled += 1;
            Ok(())
        }
    }

    struct Rig {
        mmio: Arc<Bus>,
        wiring: Arc<Wiring>,
        functions: Vec<Arc<Mutex<Function>>>,
        root: RootComplex,
    }

    impl Rig {
        fn new(dma: Option<Arc<DmaMap>>) -> Self {
            let mmio = Arc::new(Bus::new());
            let report = EndReport::new(Timeline::start()).unwrap();
            let wiring = Wiring::new(&mmio, &Arc::new(Bus::new()), dma, report);
            let function = |tag| {
                Arc::new(Mutex::new(Function {
                    at: None,
                    tag,
                    command: 0,
                    settled: 0,
                }))
            };
            let functions = vec![function(1), function(2)];
            let root = RootComplex::new(wiring.clone());
            for (device, function) in (0..).zip(&functions) {
                let address = PciAddress::new(0, 0, device, 0).unwrap();
                root.add(address, function.clone()).unwrap();
            }
            Self {
                mmio,
                wiring,
                functions,
                root,
            }
        }

        fn place(&self, index: usize, at: Option<u64>) {
            self.functions[index].lock().unwrap().at = at;
            let address = PciAddress::new(0, 0, index as u8, 0).unwrap();
            let handle: FunctionHandle = self.functions[index].clone();
            let effects = Effects {
                decoding: true,
                bus_master: false,
            };
            let change = Change {
                address,
                function: handle,
                effects,
            };
            self.wiring.apply(&self.root, &[change]);
        }

        fn read(&self, address: u64) -> u8 {
            let mut data = [0];
            self.mmio.read(address, &mut data);
            data[0]
        }
    }

    #[test]
    fn a_bar_answers_where_it_is_decoded() {
        let rig = Rig::new(None);
        rig.place(0, Some(0x1000));
        assert_eq!(rig.read(0x1fff), 1);
        rig.place(0, Some(0x8000));
        assert_eq!(rig.read(0x1000), 0xff);
        assert_eq!(rig.read(0x8000), 1);
        rig.place(0, None);
        assert_eq!(rig.read(0x8000), 0xff);
        assert_eq!(rig.functions[0].lock().unwrap().settled, 3);
    }

    #[test]
    fn two_bars_can_swap_places() {
        let rig = Rig::new(None);
        rig.place(0, Some(0x1000));
        rig.place(1, Some(0x2000));
        rig.place(0, Some(0x2000));
        assert_eq!(rig.read(0x2000), 2, "who came first answers");
        rig.place(1, Some(0x1000));
        assert_eq!(rig.read(0x1000), 2);
        assert_eq!(rig.read(0x2000), 1);
    }

    #[test]
    fn a_bus_master_settles_once_memory_is_mapped() {
        let range = GuestRange {
            start: 0,
            size: 2 << 20,
        };
        let ram = GuestRam::new(&[range]).unwrap();
        let dma = DmaMap::start(&ram, Timeline::start()).unwrap();
        dma.rest_until_needed();
        let dma = Arc::new(dma);
        let rig = Rig::new(Some(Arc::clone(&dma)));
        rig.place(0, Some(0x1000));
        assert_eq!(
            rig.functions[0].lock().unwrap().settled,
            1,
            "not a bus master"
        );

        let settled = || rig.functions[0].lock().unwrap().settled;
        rig.functions[0].lock().unwrap().command = 4;
        std::thread::scope(|scope| {
            // Another register's effect, by any vCPU, must not let it through.
            scope.spawn(|| rig.place(0, Some(0x8000)));
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(settled(), 1);
            dma.hand_over(crate::dma::tests::space(false));
        });
        assert_eq!(settled(), 2);
    }
}
