//! Follows what the guest programs into its PCI functions: who answers which
//! addresses, and when a device may reach memory.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::bus::{Bus, Insertion};
use devices::pci::window::Window;
use devices::pci::{
    BarAccess, BarDecode, Change, EffectSink, Fixed, FunctionHandle, PciAddress, PciFunction,
    Reach, RootComplex, contest,
};

use crate::dma::DmaMap;
use crate::memory::{GuestRange, KvmSlots};
use crate::outcome::{Chain, EndReport, Outcome};

/// Is told where memory BARs answer, before the bus is.
pub trait AnsweringRanges: Send + Sync + Debug {
    /// All of them, from now on.
    fn set_answering(&self, ranges: &[GuestRange]);
}

impl AnsweringRanges for KvmSlots {
    fn set_answering(&self, ranges: &[GuestRange]) {
        Self::set_answering(self, ranges);
    }
}

/// The BARs of functions, by the address at which the function was added.
type Bars = BTreeMap<PciAddress, Vec<BarDecode>>;

/// Carries out the effects of config writes.
///
/// Who answers where follows from the registers of all functions alone (see
/// [`contest`]), in whatever order they came about. Each write is one step from
/// the old state to the new one, done before the vCPU that wrote goes on:
///
/// ```text
///  1. released   what answers no longer leaves the guest's address space: it is trapped
///  2. the bus    old places go and new ones come at one moment
///  3. settled    what answers anew comes into the guest's address space
/// ```
///
/// So an access of another vCPU meantime is answered from the old place or from
/// the new one, at worst slowly, and no two BARs are ever mapped over each other.
#[derive(Debug)]
pub struct Wiring {
    // Weak: the buses hold the root complex, which holds this.
    mmio: Weak<Bus>,
    pio: Weak<Bus>,
    ranges: Arc<dyn AnsweringRanges>,
    dma: Option<Arc<DmaMap>>,
    report: Arc<EndReport>,
    // Lock order: `decoded`, then a function's lock, then `answering`.
    /// What each function decodes, as far as the port above lets it. Held while
    /// a change is carried out up to step 2: one at a time.
    decoded: Mutex<BTreeMap<PciAddress, (FunctionHandle, Vec<BarDecode>)>>,
    /// What of it may be mapped: what answers, without what comes with step 2.
    answering: Mutex<Bars>,
}

impl Wiring {
    /// Keeps the books of `mmio` and `pio`, and tells `ranges`. `dma` is there
    /// when devices are assigned.
    pub fn new(
        mmio: &Arc<Bus>,
        pio: &Arc<Bus>,
        ranges: Arc<dyn AnsweringRanges>,
        dma: Option<Arc<DmaMap>>,
        report: Arc<EndReport>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mmio: Arc::downgrade(mmio),
            pio: Arc::downgrade(pio),
            ranges,
            dma,
            report,
            decoded: Mutex::default(),
            answering: Mutex::default(),
        })
    }

    /// Steps 1 and 2. Answers who has something to gain in step 3.
    fn decode(&self, root: &RootComplex, changes: &[Change]) -> Vec<(PciAddress, FunctionHandle)> {
        let mut decoded = lock(&self.decoded);
        for change in changes.iter().filter(|change| change.effects.decoding) {
            // Not what it was when the guest wrote: another vCPU may have come
            // between, and whoever comes last must leave the last state here.
            let now = root.decoded(change.address);
            decoded.insert(change.address, (Arc::clone(&change.function), now));
        }
        let before = lock(&self.answering).clone();
        let wanted = decoded.iter().map(|(at, (_, bars))| (*at, bars.clone()));
        let after = contest(&self.fixed(&before), &wanted.collect());
        let staying = only(&before, |address, decode| has(&after, address, decode));
        lock(&self.answering).clone_from(&staying);
        for (address, stays) in &staying {
            if before.get(address) != Some(stays)
                && let Some((function, _)) = decoded.get(address)
            {
                lock(function).release(stays);
            }
        }
        self.ranges.set_answering(&memory_ranges(&after));
        for io in [false, true] {
            self.update_bus(io, &before, &after, &decoded);
        }
        let gained = after
            .iter()
            .filter(|(address, bars)| bars.iter().any(|bar| !has(&staying, **address, bar)));
        let gained = gained
            .filter_map(|(address, _)| Some((*address, Arc::clone(&decoded.get(address)?.0))))
            .collect();
        *lock(&self.answering) = after;
        gained
    }

    /// What is on the buses and no BAR.
    fn fixed(&self, answering: &Bars) -> Fixed {
        let claims = |io: bool| {
            let bars = all(answering).filter(|(_, decode)| decode.bar.kind.is_io() == io);
            let bars: Vec<u64> = bars.map(|(_, decode)| decode.address).collect();
            let claims = self.bus(io).map(|bus| bus.claims()).unwrap_or_default();
            let others = claims.into_iter().filter(|c| !bars.contains(&c.first));
            let window = |claim: devices::bus::Claim| Window {
                base: claim.first,
                size: (claim.last - claim.first).saturating_add(1),
            };
            others.map(window).collect()
        };
        Fixed {
            memory: claims(false),
            io: claims(true),
        }
    }

    /// Step 2, for ports or for memory.
    fn update_bus(
        &self,
        io: bool,
        before: &Bars,
        after: &Bars,
        functions: &BTreeMap<PciAddress, (FunctionHandle, Vec<BarDecode>)>,
    ) {
        let Some(bus) = self.bus(io) else { return };
        let here = |(_, decode): &(PciAddress, BarDecode)| decode.bar.kind.is_io() == io;
        let gone = all(before)
            .filter(here)
            .filter(|(at, bar)| !has(after, *at, bar));
        let removals: Vec<u64> = gone.map(|(_, decode)| decode.address).collect();
        let new = all(after)
            .filter(here)
            .filter(|(at, bar)| !has(before, *at, bar));
        let insertion = |(address, decode): (PciAddress, BarDecode)| {
            let BarDecode { bar, address: base } = decode;
            let (function, _) = functions.get(&address)?;
            Some(Insertion {
                name: format!("{address} {}", bar.index),
                base,
                size: bar.size,
                device: Arc::new(BarAccess::new(Arc::clone(function), bar)),
            })
        };
        let insertions: Vec<_> = new.filter_map(insertion).collect();
        if removals.is_empty() && insertions.is_empty() {
            return;
        }
        // Everything on the bus was looked at: only a device that was put there
        // at this very moment can be in the way.
        if let Err(error) = bus.update(&removals, insertions) {
            log::error!("{error}");
        }
    }

    fn bus(&self, io: bool) -> Option<Arc<Bus>> {
        if io { &self.pio } else { &self.mmio }.upgrade()
    }

    /// Settles the function, but never with bus mastering on before all of RAM
    /// is mapped. The bit is looked at under the lock that settling takes: it
    /// may have been set by another vCPU, which waits here too.
    fn settle(
        &self,
        root: &RootComplex,
        address: PciAddress,
        function: &FunctionHandle,
    ) -> Result<(), String> {
        loop {
            let mut guard = lock(function);
            // Under the function's lock: a late call maps nothing that has been
            // released since.
            let answering = lock(&self.answering).get(&address).cloned();
            let reach = Reach {
                answering: answering.unwrap_or_default(),
                bus_master: root.is_bus_master(address),
            };
            let masters = reach.bus_master && is_bus_master(&mut *guard);
            match &self.dma {
                Some(dma) if masters && !dma.is_mapped() => {
                    drop(guard);
                    // One that was taken away meanwhile has nothing to wait for.
                    if let Err(error) = dma.wait()
                        && is_bus_master(&mut *lock(function))
                    {
                        return Err(error.to_string());
                    }
                }
                _ => {
                    return guard
                        .settle(&reach)
                        .map_err(|error| Chain(&*error).to_string());
                }
            }
        }
    }
}

impl EffectSink for Wiring {
    fn apply(&self, root: &RootComplex, changes: &[Change]) {
        let mut unsettled: BTreeMap<PciAddress, FunctionHandle> = changes
            .iter()
            .map(|change| (change.address, Arc::clone(&change.function)))
            .collect();
        if changes.iter().any(|change| change.effects.decoding) {
            unsettled.extend(self.decode(root, changes));
        }
        for (address, function) in &unsettled {
            if let Err(reason) = self.settle(root, *address, function) {
                let reason = format!("guest device {address}: {reason}");
                self.report.end(Outcome::HostRefused(reason));
            }
        }
    }
}

fn all(bars: &Bars) -> impl Iterator<Item = (PciAddress, BarDecode)> {
    bars.iter()
        .flat_map(|(address, bars)| bars.iter().map(|bar| (*address, *bar)))
}

fn has(bars: &Bars, address: PciAddress, decode: &BarDecode) -> bool {
    bars.get(&address).is_some_and(|bars| bars.contains(decode))
}

/// The BARs that `stays` says.
fn only(bars: &Bars, stays: impl Fn(PciAddress, &BarDecode) -> bool) -> Bars {
    let of_one = |(address, bars): (&PciAddress, &Vec<BarDecode>)| {
        let bars = bars.iter().filter(|bar| stays(*address, bar));
        (*address, bars.copied().collect())
    };
    bars.iter().map(of_one).collect()
}

fn memory_ranges(bars: &Bars) -> Vec<GuestRange> {
    let memory = all(bars).filter(|(_, decode)| !decode.bar.kind.is_io());
    let range = |(_, decode): (PciAddress, BarDecode)| GuestRange {
        start: decode.address,
        size: decode.bar.size,
    };
    memory.map(range).collect()
}

/// Whether the guest has set the bus-master bit of the command register
/// (PCI 3.0 §6.2.2). A function that was taken away reads as all ones, and
/// masters nothing.
fn is_bus_master(function: &mut dyn PciFunction) -> bool {
    let mut command = [0; 2];
    function.config_read(0x04, &mut command);
    let command = u16::from_le_bytes(command);
    command != u16::MAX && command & 1 << 2 != 0
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "wiring_test.rs"]
mod tests;
