use acpi_tables::aml::{Name, Package, Path};
use acpi_tables::{Aml, AmlSink};

use crate::pci::{InterruptPin, PinWiring};

/// The devices on the root bus that can have pins. Device 0 is the host bridge.
const DEVICES: std::ops::RangeInclusive<u8> = 1..=31;
/// The functions of a device share its pins (ACPI 6.5 §6.2.13).
const ALL_FUNCTIONS: u32 = 0xffff;

/// The host bridge's `_PRT`: which input of the I/O APIC each pin of each
/// device on the root bus drives (ACPI 6.5 §6.2.13).
///
/// Hard-wired: no link device stands in between, so nothing can be moved. The
/// inputs are level-triggered and active low, as PCI's are, which the guest
/// takes for granted. Buses behind ports need no table: the guest turns their
/// pins as [`InterruptPin::swizzled`] does and looks here.
pub(super) struct RoutingTable(pub(super) PinWiring);

impl Aml for RoutingTable {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let entries: Vec<_> = DEVICES
            .flat_map(|device| InterruptPin::ALL.map(|pin| self.entry(device, pin)))
            .collect();
        let all = Package::new(entries.iter().map(|entry| entry as &dyn Aml).collect());
        Name::new(Path::new("_PRT"), &all).to_aml_bytes(sink);
    }
}

/// A line of the table.
struct Entry {
    address: u32,
    pin: u8,
    input: u32,
}

impl RoutingTable {
    fn entry(&self, device: u8, pin: InterruptPin) -> Entry {
        Entry {
            address: u32::from(device) << 16 | ALL_FUNCTIONS,
            pin: pin.register() - 1,
            input: self.0.input(device, pin),
        }
    }
}

impl Aml for Entry {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // The third says that the fourth is the input's number.
        Package::new(vec![&self.address, &self.pin, &0_u8, &self.input]).to_aml_bytes(sink);
    }
}
