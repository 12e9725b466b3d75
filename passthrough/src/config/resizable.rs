use devices::pci::{BarIndex, BarInfo, ConfigSpace};

use super::rule::{Access, Rule};
use super::standard::Decision;
use super::subject::Subject;

/// Bytes of the header, and of the two registers of each BAR.
const HEADER: u16 = 4;
const ENTRY: u16 = 8;
/// The capability register of a BAR: sizes from 1 MiB, a bit each from bit 4.
const SIZES: u16 = 0;
const FIRST_SIZE: u32 = 4;
const MIB: u32 = 20;
/// 128 TiB; larger sizes have their bits in the control register.
const LARGEST: u32 = 27;
/// The control register: the BAR, how many there are, and its size.
const CONTROL: u16 = 4;
const INDEX: u32 = 0x7;
const COUNT: u32 = 0xe0;
const SIZE: u32 = 0x3f00;

/// Bytes of the capability at `at`: as many BARs as the first control register
/// says (PCIe 6.0 §7.8.6.3).
pub(super) fn size(config: &ConfigSpace, at: u16) -> u16 {
    let count = (config.u32(at + HEADER + CONTROL) & COUNT) >> 5;
    HEADER + ENTRY * count as u16
}

/// The rules of the capability at `at`: each BAR has the size that it has, and
/// no other. What resizes a BAR moves the host's.
pub(super) fn rules(subject: &Subject<'_>, at: u16, size: u16) -> Decision {
    let mut rules = Vec::new();
    let entries = (HEADER..size).step_by(usize::from(ENTRY));
    for entry in entries.filter(|entry| entry + ENTRY <= size) {
        let control = subject.snapshot.u32(at + entry + CONTROL);
        let code = (control & SIZE) >> 8;
        let size = only_size(control, code, subject.bars)?;
        let title = ("sizes that a BAR can have", "PCIe 6.0 §7.8.6.2");
        let why = "only the size that the BAR has: resizing would move the BARs of the host";
        let sizes = Access::Value(size);
        rules.push(Rule::new(entry + SIZES, 4, sizes, title, why));
        let title = ("size of a BAR", "PCIe 6.0 §7.8.6.3");
        let constant = Access::Constant(INDEX | COUNT | SIZE);
        rules.push(Rule::new(entry + CONTROL, 4, constant, title, why));
    }
    Ok(rules)
}

/// The bit of a BAR's one size.
fn only_size(control: u32, code: u32, bars: &[BarInfo]) -> Result<u32, &'static str> {
    if code > LARGEST {
        return Err("the size of its BAR can't be expressed alone");
    }
    let index = BarIndex::new((control & INDEX) as u8);
    let bar = bars.iter().find(|bar| Some(bar.index) == index);
    match bar {
        Some(bar) if bar.size == 1 << (code + MIB) => Ok(1 << (code + FIRST_SIZE)),
        _ => Err("it does not tell the size that its BAR has"),
    }
}
