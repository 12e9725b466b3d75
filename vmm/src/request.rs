//! What a VM asks of the host's devices, as the plan wants it: `airlock check`
//! and `airlock run` ask the same.

use passthrough::iommu::IovaRange;
use passthrough::plan::{GuestRange, Request};

use crate::config::{Consent, MemorySize};
use crate::memory::GuestLayout;

/// The widest address there is: what the CPU reaches is another question than
/// what devices reach, and is asked when the guest is laid out.
const EVERY_BIT: u8 = 64;

/// The request for `devices` of a guest with `memory`, if that is known.
pub fn request(devices: &[String], memory: Option<MemorySize>, consent: &Consent) -> Request {
    let layout = memory.and_then(layout);
    let range = |range: crate::memory::GuestRange| GuestRange {
        start: range.start,
        size: range.size,
    };
    Request {
        devices: devices.to_vec(),
        memory_bytes: memory.map(MemorySize::bytes),
        window_32: layout.as_ref().map(|layout| range(layout.mmio32)),
        ram: layout
            .map(|layout| layout.ram.into_iter().map(range).collect())
            .unwrap_or_default(),
        allow_unsafe_interrupts: consent.unsafe_interrupts,
        allow_noiommu: consent.noiommu,
        force: consent.force.clone(),
        ..Request::default()
    }
}

/// What devices must reach in a guest with `memory`.
pub fn addresses(memory: Option<MemorySize>) -> Vec<IovaRange> {
    let layout = memory.and_then(layout);
    let ram = layout.map(|layout| layout.ram).unwrap_or_default();
    let ranges = ram.iter().map(|range| IovaRange {
        start: range.start,
        last: range.end() - 1,
    });
    ranges.collect()
}

fn layout(memory: MemorySize) -> Option<GuestLayout> {
    GuestLayout::new(memory.bytes(), EVERY_BIT, None).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_leaves_out_the_hole_below_4_gib() {
        assert_eq!(addresses(None), []);
        let memory = Some("4G".parse().unwrap());
        let expected = [(0, 0xbfff_ffff), (0x1_0000_0000, 0x1_3fff_ffff)];
        assert_eq!(
            addresses(memory),
            expected.map(|(start, last)| IovaRange { start, last })
        );
        let request = request(&["x".to_owned()], memory, &Consent::default());
        assert_eq!(request.memory_bytes, Some(4 << 30));
        let ram: Vec<_> = request
            .ram
            .iter()
            .map(|range| (range.start, range.last()))
            .collect();
        assert_eq!(ram, expected);
        assert!(
            request
                .window_32
                .is_some_and(|window| window.start == 0xc000_0000)
        );
    }

    #[test]
    fn consent_reaches_the_plan() {
        let consent = Consent {
            unsafe_interrupts: true,
            noiommu: true,
            force: vec!["0000:01:00.0".to_owned()],
        };
        let request = request(&[], None, &consent);
        assert!(request.allow_unsafe_interrupts && request.allow_noiommu);
        assert_eq!(request.force, consent.force);
        assert!(request.ram.is_empty() && request.window_32.is_none());
    }
}
