use std::collections::BTreeMap;

use super::address::PciAddress;
use super::bar::BarDecode;
use super::window::Window;

/// What answers already, and is no BAR: it stays where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Of the memory address space.
    pub memory: Vec<Window>,
    /// Of the ports.
    pub io: Vec<Window>,
}

/// Decides who answers where BARs lie over each other: each function's BARs
/// that answer, of those that it decodes.
///
/// On a real bus two devices at one address both drive it, and nobody knows
/// what comes out. Here what is fixed comes first, then the function with the
/// lowest address, then its BAR with the lowest number. A BAR of which another
/// one has a part does not answer at all, and hides nothing itself.
///
/// The answer follows from `decoded` alone, and not from who came first: when
/// one BAR goes, the next one answers, in whatever order a guest moves them.
pub fn contest(
    fixed: &Fixed,
    decoded: &BTreeMap<PciAddress, Vec<BarDecode>>,
) -> BTreeMap<PciAddress, Vec<BarDecode>> {
    let mut memory = Taken::new(&fixed.memory);
    let mut io = Taken::new(&fixed.io);
    let mut answering = BTreeMap::new();
    for (address, bars) in decoded {
        let mut bars = bars.clone();
        bars.sort_unstable_by_key(|decode| decode.bar.index);
        bars.retain(|decode| {
            let taken = match decode.bar.kind.is_io() {
                true => &mut io,
                false => &mut memory,
            };
            let range = Window {
                base: decode.address,
                size: decode.bar.size,
            };
            range
                .last()
                .is_some_and(|last| taken.take(range.base, last))
        });
        answering.insert(*address, bars);
    }
    answering
}

/// Ranges without overlap, by their first address: last addresses.
struct Taken(BTreeMap<u64, u64>);

impl Taken {
    fn new(fixed: &[Window]) -> Self {
        let mut taken = Self(BTreeMap::new());
        for window in fixed {
            if let Some(last) = window.last() {
                // Fixed ranges come from a bus, where none overlap.
                taken.0.insert(window.base, last);
            }
        }
        taken
    }

    /// Takes a range unless somebody has a part of it.
    fn take(&mut self, first: u64, last: u64) -> bool {
        let nearest = self.0.range(..=last).next_back();
        if nearest.is_some_and(|(_, end)| *end >= first) {
            return false;
        }
        self.0.insert(first, last);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::bar::{BarIndex, BarInfo, BarKind};
    use super::*;
    use proptest::prelude::*;

    fn decode(index: u8, address: u64, size: u64) -> BarDecode {
        let kind = BarKind::Memory32 {
            prefetchable: false,
        };
        let index = BarIndex::new(index).unwrap();
        let bar = BarInfo { index, kind, size };
        BarDecode { bar, address }
    }

    fn io(index: u8, address: u64, size: u64) -> BarDecode {
        let mut decode = decode(index, address, size);
        decode.bar.kind = BarKind::Io;
        decode
    }

    fn decoded(functions: &[(&str, &[BarDecode])]) -> BTreeMap<PciAddress, Vec<BarDecode>> {
        let function = |(address, bars): &(&str, &[BarDecode])| {
            let address = address.parse().unwrap();
            (address, bars.to_vec())
        };
        functions.iter().map(function).collect()
    }

    #[test]
    fn the_lowest_address_and_number_answers() {
        let wanted = [
            (
                "00:02.0",
                &[decode(1, 0x1000, 0x1000), decode(0, 0x1000, 0x1000)][..],
            ),
            ("00:01.0", &[decode(0, 0x2000, 0x1000)]),
            ("01:00.0", &[decode(0, 0x2000, 0x1000), io(1, 0x2000, 0x20)]),
        ];
        let expected = [
            ("00:02.0", &[decode(0, 0x1000, 0x1000)][..]),
            ("00:01.0", &[decode(0, 0x2000, 0x1000)]),
            ("01:00.0", &[io(1, 0x2000, 0x20)]),
        ];
        let answering = contest(&Fixed::default(), &decoded(&wanted));
        assert_eq!(answering, decoded(&expected));
    }

    #[test]
    fn who_does_not_answer_hides_nobody() {
        let wanted = [
            ("00:01.0", &[decode(0, 0x1000, 0x1000)][..]),
            ("00:02.0", &[decode(0, 0x1000, 0x2000)]),
            ("00:03.0", &[decode(0, 0x2000, 0x1000)]),
        ];
        let answering = contest(&Fixed::default(), &decoded(&wanted));
        let expected = [wanted[0], ("00:02.0", &[]), wanted[2]];
        assert_eq!(answering, decoded(&expected));
    }

    #[test]
    fn what_is_fixed_comes_first() {
        let window = |base, size| Window { base, size };
        let fixed = Fixed {
            memory: vec![window(0x3000, 0x1000)],
            io: vec![window(0x60, 5)],
        };
        let wanted = [(
            "00:01.0",
            &[
                decode(0, 0x2000, 0x1000),
                decode(1, 0x2000, 0x2000),
                decode(2, 0x3800, 0x10),
                io(3, 0x64, 4),
                io(4, 0x68, 4),
                decode(5, u64::MAX - 7, 0x10),
            ][..],
        )];
        let answering = contest(&fixed, &decoded(&wanted));
        let expected = [("00:01.0", &[decode(0, 0x2000, 0x1000), io(4, 0x68, 4)][..])];
        assert_eq!(answering, decoded(&expected));
    }

    proptest! {
        /// No two overlap, and who does not answer has lost to one before it.
        #[test]
        fn every_loser_has_a_winner(
            bars in proptest::collection::vec((0u8..4, 0u64..16, 0u32..3), 0..24),
        ) {
            let mut wanted: BTreeMap<PciAddress, Vec<BarDecode>> = BTreeMap::new();
            for (device, place, bits) in bars {
                let of_device = wanted
                    .entry(PciAddress::new(0, 0, device, 0).unwrap())
                    .or_default();
                if let Ok(index) = u8::try_from(of_device.len()) && index < 6 {
                    of_device.push(decode(index, 0x1000 + place * 0x100, 0x100 << bits));
                }
            }
            let answering = contest(&Fixed::default(), &wanted);
            let rank = |all: &BTreeMap<PciAddress, Vec<BarDecode>>| -> Vec<_> {
                let of_one = |(at, bars): (&PciAddress, &Vec<BarDecode>)| {
                    bars.iter().map(|bar| (*at, *bar)).collect::<Vec<_>>()
                };
                all.iter().flat_map(of_one).collect()
            };
            let winners = rank(&answering);
            let meet = |a: &BarDecode, b: &BarDecode| {
                a.address < b.address + b.bar.size && b.address < a.address + a.bar.size
            };
            let mut before: Vec<BarDecode> = Vec::new();
            for one in rank(&wanted) {
                let hidden = before.iter().any(|other| meet(&one.1, other));
                prop_assert_eq!(winners.contains(&one), !hidden);
                if !hidden {
                    before.push(one.1);
                }
            }
        }
    }
}
