use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, Path,
    ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::platform::{Platform, SerialPort};
use super::routing::RoutingTable;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::legacy::{PowerBlock, PvPanic, Rtc, SLEEP_TYPE_OFF, Serial};
use crate::pci::window::{Window, Windows};

/// Integers of 64 bits.
const REVISION: u8 = 2;
/// Bytes of the common header.
const HEADER: u32 = 36;

/// `_OSC` for a PCI host bridge (PCI Firmware 3.3 §4.5.1).
const PCI_OSC: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// What the guest may control natively: the PCI Express capability (bit 4) of
/// its functions, which it needs to set payload sizes. Hot-plug, PME and AER
/// (bits 0, 2, 3) are services of root ports that ours don't have.
const NATIVE_CONTROL: u8 = 1 << 4;
/// `_OSC`'s answers, in its first doubleword (ACPI 6.5 §6.2.11).
const UNKNOWN_UUID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const CONTROL_MASKED: u8 = 1 << 4;

/// The devices that can't be enumerated, and the power states.
pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut devices = Vec::new();
    for uid in 0..platform.apic_ids.len() {
        processor(uid, &mut devices);
    }
    host_bridge(platform, &mut devices);
    motherboard(platform, &mut devices);
    if let Some(port) = platform.serial {
        serial(port, &mut devices);
    }
    if platform.rtc {
        rtc(&mut devices);
    }
    if let Some(port) = platform.pvpanic {
        pvpanic(port, &mut devices);
    }
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    // The first value goes into the sleep control register, the second into a
    // register that does not exist here; two are reserved (ACPI 6.5 §7.4.2).
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &SLEEP_TYPE_OFF, &0_u8, &0_u8]);
    Name::new(Path::new("\\_S5_"), &off).to_aml_bytes(&mut body);
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&body);
    table
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

/// Belongs to the MADT's processor with the same UID.
fn processor(uid: usize, out: &mut Vec<u8>) {
    let path = Path::new(&format!("C{uid:03X}"));
    Device::new(path, vec![&name("_HID", &"ACPI0007"), &name("_UID", &uid)]).to_aml_bytes(out);
}

fn host_bridge(platform: &Platform, out: &mut Vec<u8>) {
    let buses = AddressSpace::<u16>::new_bus_number(0, platform.last_bus.into());
    // CONFIG_ADDRESS and CONFIG_DATA: consumed by the bridge itself.
    let ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let windows = windows(&platform.windows);
    let mut resources: Vec<&dyn Aml> = vec![&buses, &ports];
    resources.extend(windows.iter().map(|window| &**window));
    let routing = platform.pins.map(RoutingTable);
    let names = [
        name("_HID", &EISAName::new("PNP0A08")),
        name("_CID", &EISAName::new("PNP0A03")),
        name("_SEG", &0_u8),
        name("_BBN", &0_u8),
        name("_UID", &0_u8),
        name("_CRS", &ResourceTemplate::new(resources)),
    ];
    let mut children: Vec<&dyn Aml> = names.iter().map(|name| name as &dyn Aml).collect();
    children.extend(routing.iter().map(|routing| routing as &dyn Aml));
    let osc = osc();
    children.push(&osc);
    Device::new(Path::new("PCI0"), children).to_aml_bytes(out);
}

/// The windows as resources. Not marked prefetchable: then Linux puts both
/// kinds of BARs into them. Their bounds were checked by `Platform::check`.
fn windows(windows: &Windows) -> Vec<Box<dyn Aml>> {
    let mut resources: Vec<Box<dyn Aml>> = Vec::new();
    if let Some((first, last)) = bounds32(windows.io) {
        resources.push(Box::new(AddressSpace::new_io(first, last, None)));
    }
    let cache = AddressSpaceCacheable::NotCacheable;
    if let Some((first, last)) = bounds32(windows.memory32) {
        let memory = AddressSpace::new_memory(cache, true, first, last, None);
        resources.push(Box::new(memory));
    }
    if let Some(window) = windows.memory64
        && let Some(last) = window.last()
    {
        let memory = AddressSpace::new_memory(cache, true, window.base, last, None);
        resources.push(Box::new(memory));
    }
    resources
}

fn bounds32(window: Option<Window>) -> Option<(u32, u32)> {
    let window = window?;
    let first = u32::try_from(window.base).ok()?;
    let last = u32::try_from(window.last()?).ok()?;
    Some((first, last))
}

/// The host bridge's `_OSC`: the guest asks for control of PCI Express services
/// in the third doubleword of a buffer, and gets [`NATIVE_CONTROL`] of it.
fn osc() -> Encoded {
    let [status, control] = ["CDW1", "CDW3"].map(Path::new);
    let unknown_revision = Or::new(&status, &status, &UNKNOWN_REVISION);
    let masked = Or::new(&status, &status, &CONTROL_MASKED);
    let unknown_uuid = Or::new(&status, &status, &UNKNOWN_UUID);
    let uuid = Uuid::new(PCI_OSC);
    let is_pci = Equal::new(&Arg(0), &uuid);
    let is_other_revision = NotEqual::new(&Arg(1), &1_u8);
    let is_too_much = NotEqual::new(&control, &Local(0));
    let grant = encode(&If::new(
        &is_pci,
        vec![
            &CreateDWordField::new(&control, &Arg(3), &8_u8),
            &And::new(&Local(0), &control, &NATIVE_CONTROL),
            &If::new(&is_other_revision, vec![&unknown_revision]),
            &If::new(&is_too_much, vec![&masked]),
            &Store::new(&control, &Local(0)),
        ],
    ));
    encode(&Method::new(
        Path::new("_OSC"),
        4,
        // It creates names, so only one may run at a time.
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &0_u8),
            &grant,
            &Else::new(vec![&unknown_uuid]),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// What the guest must not hand out otherwise: config space, which Linux takes
/// into use only if a device of this kind has it (arch/x86/pci/mmconfig-shared.c),
/// and the ports of the power block.
fn motherboard(platform: &Platform, out: &mut Vec<u8>) {
    let ports = IO::new(platform.power, platform.power, 1, PowerBlock::SIZE as u8);
    let mut resources: Vec<&dyn Aml> = vec![&ports];
    // Below 4 GiB, as `Platform::check` has seen.
    let ecam = u32::try_from(platform.ecam).ok();
    let size = u32::try_from(platform.ecam_size()).ok();
    let memory = ecam
        .zip(size)
        .map(|(ecam, size)| Memory32Fixed::new(true, ecam, size));
    resources.extend(memory.iter().map(|memory| memory as &dyn Aml));
    let id = EISAName::new("PNP0C02");
    device("MBRD", &id, ResourceTemplate::new(resources), out);
}

fn serial(serial: SerialPort, out: &mut Vec<u8>) {
    let ports = IO::new(serial.port, serial.port, 1, Serial::SIZE as u8);
    let interrupt = Interrupt::new(true, true, false, false, serial.gsi);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device("COM1", &EISAName::new("PNP0501"), resources, out);
}

/// No interrupt, so Linux offers no alarms.
fn rtc(out: &mut Vec<u8>) {
    let ports = IO::new(Rtc::BASE as u16, Rtc::BASE as u16, 1, Rtc::SIZE as u8);
    let resources = ResourceTemplate::new(vec![&ports]);
    device("RTC_", &EISAName::new("PNP0B00"), resources, out);
}

fn pvpanic(port: u16, out: &mut Vec<u8>) {
    let ports = IO::new(port, port, 1, PvPanic::SIZE as u8);
    let resources = ResourceTemplate::new(vec![&ports]);
    device("PEVT", &"QEMU0001", resources, out);
}

fn device(path: &str, id: &dyn Aml, resources: ResourceTemplate<'_>, out: &mut Vec<u8>) {
    Device::new(
        Path::new(path),
        vec![
            &name("_HID", id),
            &name("_UID", &0_u8),
            &name("_CRS", &resources),
        ],
    )
    .to_aml_bytes(out);
}

/// AML that is complete: what it was made of need not live on.
struct Encoded(Vec<u8>);

fn encode(value: &dyn Aml) -> Encoded {
    let mut bytes = Vec::new();
    value.to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}
