//! A function for this room's tests: config space as plain memory, BAR and
//! command registers as hardware has them, and a record of every access.

use std::sync::{Arc, Mutex};

use super::bar::{BarDecode, BarIndex, BarInfo};
use super::config::ConfigSpace;
use super::function::{Effects, PciFunction};

#[derive(Debug)]
pub(super) struct FakeFunction {
    pub(super) space: Vec<u8>,
    pub(super) bars: Vec<BarInfo>,
    /// Offset and length of each config access.
    pub(super) accesses: Vec<(u16, usize)>,
    /// How often a port above carried a reset down.
    pub(super) resets: usize,
    /// BAR, offset and length of each BAR access.
    pub(super) bar_accesses: Vec<(BarIndex, u64, usize)>,
}

impl FakeFunction {
    /// Each byte of config space holds the low byte of its offset.
    pub(super) fn counting() -> Arc<Mutex<Self>> {
        Self::with_space((0..4096).map(|offset| offset as u8).collect(), Vec::new())
    }

    /// An empty config space, and BARs.
    pub(super) fn with_bars(bars: Vec<BarInfo>) -> Arc<Mutex<Self>> {
        Self::with_space(vec![0; 4096], bars)
    }

    fn with_space(space: Vec<u8>, bars: Vec<BarInfo>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            space,
            bars,
            accesses: Vec::new(),
            resets: 0,
            bar_accesses: Vec::new(),
        }))
    }

    /// Every access must be one that the trait promises.
    fn check(&mut self, offset: u16, length: usize) {
        assert!([1, 2, 4, 8].contains(&length), "length {length}");
        assert!(usize::from(offset) + length <= 4096, "offset {offset:#x}");
        self.accesses.push((offset, length));
    }

    /// The bits of a BAR register that can be set.
    fn mask(&self, byte: usize) -> u8 {
        for bar in &self.bars {
            let start = usize::from(bar.index.register());
            let width = if bar.kind.is_64_bit() { 8 } else { 4 };
            if (start..start + width).contains(&byte) {
                return (!(bar.size - 1)).to_le_bytes()[byte - start];
            }
        }
        if (0x10..0x28).contains(&byte) {
            0
        } else {
            0xff
        }
    }
}

impl PciFunction for FakeFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.check(offset, data.len());
        let start = usize::from(offset);
        data.copy_from_slice(&self.space[start..start + data.len()]);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> Effects {
        self.check(offset, data.len());
        let before = (self.space[4], self.decoded());
        for (index, byte) in data.iter().enumerate() {
            let at = usize::from(offset) + index;
            self.space[at] = byte & self.mask(at);
        }
        Effects {
            decoding: before.1 != self.decoded() || (before.0 ^ self.space[4]) & 3 != 0,
            bus_master: !before.0 & self.space[4] & 4 != 0,
        }
    }

    fn bars(&self) -> Vec<BarInfo> {
        self.bars.clone()
    }

    fn decoded(&self) -> Vec<BarDecode> {
        let mut config = ConfigSpace::new();
        config.set(0, &self.space[..0x40]);
        let enabled = |bar: &BarInfo| self.space[4] & if bar.kind.is_io() { 1 } else { 2 } != 0;
        let decode = |bar: BarInfo| {
            let address = bar.address(&config)?;
            Some(BarDecode { bar, address })
        };
        let bars = self.bars.iter().copied().filter(enabled);
        bars.filter_map(decode).collect()
    }

    fn reset(&mut self) -> Effects {
        self.resets += 1;
        self.space[4..6].fill(0);
        for bar in &self.bars {
            let at = usize::from(bar.index.register());
            self.space[at..at + 4].fill(0);
        }
        Effects {
            decoding: true,
            bus_master: false,
        }
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.bar_accesses.push((bar, offset, data.len()));
        data.fill(0x42);
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.bar_accesses.push((bar, offset, data.len()));
    }
}
