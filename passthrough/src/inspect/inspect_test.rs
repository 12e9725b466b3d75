use super::*;
use crate::assigned::Placement;
use crate::fake::{FakeDevice, Journal, Operation};
use crate::host::fake::FakeHost;
use crate::vfio::{Affected, DeviceBackend, Holder};
use devices::pci::{BarIndex, BarInfo, BarKind, ConfigSpace, Register as Bits};

const DEVICE: &str = "0000:01:00.0";
/// A BAR 0 of 16 KiB, ports, and a ROM, as sysfs lists them.
const RESOURCES: &str = "0x00000000febd0000 0x00000000febd3fff 0x0000000000140204\n\
                         0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                         0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
                         0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                         0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                         0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                         0x00000000fea00000 0x00000000fea0ffff 0x0000000000046200\n";

fn nvme(placement: Option<Placement>) -> Inspection {
    let device = FakeDevice::nvme(&Journal::default()).unwrap();
    Inspection::of_backend(DEVICE.parse().unwrap(), &device, placement).unwrap()
}

/// Config space of the fake NVMe controller, to be found in sysfs.
fn config() -> Vec<u8> {
    let device = FakeDevice::nvme(&Journal::default()).unwrap();
    let mut bytes = vec![0; 4096];
    device.region_read(7, 0, &mut bytes).unwrap();
    bytes
}

fn host(config: &[u8]) -> FakeHost {
    let host = FakeHost::new();
    host.endpoint(DEVICE, Some(1), "nvme")
        .bytes(DEVICE, "config", config)
        .attribute(DEVICE, "resource", RESOURCES);
    host
}

fn of_host(host: &FakeHost) -> Inspection {
    Inspection::of_host(&host.host(), DEVICE.parse().unwrap(), None).unwrap()
}

fn difference(inspection: &Inspection, offset: u16) -> Option<&Difference> {
    let end = |one: &Difference| one.offset + one.physical.0.len() as u16;
    let mut all = inspection.differences.iter();
    all.find(|one| (one.offset..end(one)).contains(&offset))
}

fn parts(region: &Region) -> Vec<(u64, Access)> {
    let parts = region.parts.iter();
    parts.map(|part| (part.area.offset, part.access)).collect()
}

/// What every inspection must keep.
pub(crate) fn check(inspection: &Inspection) {
    let Some(guest) = &inspection.guest else {
        assert!(
            inspection
                .refusal
                .as_ref()
                .is_some_and(|why| !why.is_empty())
        );
        return;
    };
    let mut end = 0;
    for one in &inspection.differences {
        assert!(one.offset >= end, "in order, apart: {one:?}");
        end = one.offset + one.physical.0.len() as u16;
        assert!(!one.reason.is_empty() && !one.name.is_empty(), "{one:?}");
        assert!(one.section.contains('§'), "{one:?}");
    }
    for (at, (host, shown)) in inspection.physical.0.iter().zip(&guest.0).enumerate() {
        let explained = difference(inspection, at as u16);
        assert!(host == shown || explained.is_some(), "{at:#x}");
    }
    for at in 0..4096_u16 {
        let covers = |one: &&Register| (one.offset..one.offset + one.size).contains(&at);
        assert!(
            inspection.registers.iter().any(|one| covers(&one)),
            "{at:#x}"
        );
    }
}

#[test]
fn an_open_device() {
    let inspection = nvme(None);
    check(&inspection);
    assert_eq!(inspection.source, Source::Vfio);
    assert_eq!(inspection.placement, Placement::BehindPort);
    assert_eq!(inspection.refusal, None);
    assert_eq!(inspection.identity.class, 0x01_0802);
    assert_eq!(inspection.physical.0.len(), 4096);
    let bar = &inspection.regions[0];
    assert_eq!((bar.index, bar.size), (0, 0x4000));
    let layout = [
        (0, Access::Direct),
        (0x2000, Access::MsixTable),
        (0x2410, Access::Trapped),
        (0x3000, Access::MsixPendingBits),
        (0x3010, Access::Trapped),
    ];
    assert_eq!(parts(bar), layout);
    let kinds: Vec<_> = inspection
        .interrupts
        .iter()
        .map(|one| (&*one.kind, one.guest))
        .collect();
    let expected = [("INTx", 1), ("MSI", 1), ("MSI-X", 65), ("request", 0)];
    assert_eq!(kinds, expected);
}

#[test]
fn each_capability_is_decoded_or_its_absence_explained() {
    let inspection = nvme(None);
    let list: Vec<_> = (inspection.capabilities.iter())
        .map(|one| (one.id, one.offset, one.hidden.is_some()))
        .collect();
    let expected = [
        (0x11, 0x40, false),
        (0x05, 0x50, false),
        (0x01, 0x60, false),
        (0x10, 0x80, false),
        (0x10, 0x100, true),
        (0x01, 0x140, false),
        (0x03, 0x180, false),
    ];
    assert_eq!(list, expected);
    let said = |at: u16, name: &str| {
        let one = inspection.capabilities.iter().find(|one| one.offset == at);
        let detail = one
            .unwrap()
            .details
            .iter()
            .find(|detail| detail.name == name);
        detail.unwrap().value.clone()
    };
    assert_eq!(said(0x40, "table"), "BAR 0 at 0x2000");
    assert_eq!(said(0x60, "states"), "D0 D3hot");
    assert_eq!(said(0x80, "link"), "2.5 GT/s x1");
    assert_eq!(said(0x180, "serial number"), "00-00-00-00-55-66-77-88");
    assert_eq!(
        (&*said(0x50, "vectors"), &*said(0x50, "masks")),
        ("1", "no")
    );
    // The guest gets the pin and MSI as the device has them.
    assert_eq!(difference(&inspection, 0x3d), None);
    assert_eq!(difference(&inspection, 0x52), None);
}

#[test]
fn on_the_root_bus_the_link_is_a_difference() {
    let inspection = nvme(Some(Placement::RootBus));
    check(&inspection);
    let link = difference(&inspection, 0x8c).unwrap();
    assert_eq!(link.reason, "on the root bus there is no link");
    assert_eq!(link.physical.0, [0x11, 4]);
    let kind = difference(&inspection, 0x82).unwrap();
    assert_eq!(kind.guest.0, [0x92]);
}

#[test]
fn a_device_in_sysfs() {
    let inspection = of_host(&host(&config()));
    check(&inspection);
    assert_eq!(inspection.source, Source::Sysfs);
    let kinds: Vec<_> = inspection
        .regions
        .iter()
        .map(|one| (one.index, one.kind))
        .collect();
    let prefetchable = false;
    let expected = [
        (0, RegionKind::Memory64 { prefetchable }),
        (2, RegionKind::Io),
        (6, RegionKind::Rom),
        (7, RegionKind::Config),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(inspection.regions[0].address, Some(0xfebd_0000));
    assert_eq!(inspection.regions[0].mappable, None, "VFIO was not asked");
    assert_eq!(parts(&inspection.regions[2]), [(0, Access::Trapped)]);
    let guest = inspection.guest.as_ref().unwrap();
    assert_eq!(guest.0[..4], [0x36, 0x1b, 0x10, 0x00]);
    let vfio: Vec<_> = nvme(None).capabilities;
    assert_eq!(inspection.capabilities, vfio, "as VFIO has them");
}

#[test]
fn without_privilege_there_is_no_guest_view() {
    let inspection = of_host(&host(&config()[..64]));
    check(&inspection);
    assert_eq!(inspection.guest, None);
    assert!(inspection.refusal.unwrap().contains("only 64 bytes"));
    assert!(inspection.capabilities.is_empty() && inspection.differences.is_empty());
    assert_eq!(inspection.identity.device, 0x0010);
    assert_eq!(inspection.regions[0].size, 0x4000);
}

#[test]
fn a_guests_first_look_can_be_foretold() {
    let foretold = |host: &FakeHost| {
        let survey = crate::host::Survey::read(&host.host()).unwrap();
        let function = &survey.functions[&DEVICE.parse().unwrap()];
        Foretold::of(&host.host(), function).unwrap()
    };
    let told = foretold(&host(&config())).unwrap();
    let seen = of_host(&host(&config()));
    assert_eq!(told.identity, seen.identity);
    assert_eq!(told.placement, Placement::BehindPort);
    assert_eq!(told.placement, seen.placement);
    // As behind any port, but for its BAR: large, 64 bits wide, not prefetchable.
    let large = RESOURCES.replace("febd3fff", "10febcffff");
    let host_with = |resources: &str| {
        let host = host(&config());
        host.attribute(DEVICE, "resource", resources);
        host
    };
    let told = foretold(&host_with(&large)).unwrap();
    assert_eq!(told.placement, Placement::RootBus);
    assert_eq!(of_host(&host_with(&large)).placement, Placement::RootBus);
    assert_eq!(foretold(&host(&config()[..64])), None, "without privilege");
}

#[test]
fn a_virtual_function_gets_its_ids_from_the_kernel() {
    let mut config = config();
    config[..4].fill(0xff);
    let host = host(&config);
    host.virtual_function(DEVICE, Some(1), "", "0000:01:00.1");
    let inspection = of_host(&host);
    check(&inspection);
    assert_eq!(
        inspection.guest.as_ref().unwrap().0[..4],
        [0x86, 0x80, 0xd3, 0x10]
    );
    let ids = difference(&inspection, 0).unwrap();
    assert!(ids.reason.contains("virtual function"), "{ids:?}");
}

#[test]
fn what_no_guest_can_have_is_shown_all_the_same() {
    let mut config = config();
    config[0x82] = 0x42;
    let inspection = of_host(&host(&config));
    check(&inspection);
    assert!(
        inspection
            .refusal
            .as_ref()
            .unwrap()
            .contains("port of type 0x4")
    );
    assert_eq!(inspection.capabilities.len(), 7);
    assert_eq!(inspection.capabilities[0].hidden, inspection.refusal);
    assert!(
        inspection
            .regions
            .iter()
            .all(|region| region.parts.is_empty())
    );
    config[..4].fill(0xff);
    let gone = of_host(&host(&config));
    assert!(gone.refusal.unwrap().contains("all ones"));
}

#[test]
fn conventional_pci_belongs_on_the_root_bus() {
    let values = ConfigSpace::from_registers(&[
        Bits::constant(0x00, 4, 0x100e_8086),
        Bits::constant(0x06, 2, 0x0010),
        Bits::constant(0x34, 1, 0xdc),
        Bits::constant(0xdc, 4, 0x0002_0001),
    ]);
    let bar = BarInfo {
        index: BarIndex::new(1).unwrap(),
        kind: BarKind::Io,
        size: 0x40,
    };
    let device = FakeDevice::new(&values, 256, &[bar], &Journal::default()).unwrap();
    let address = DEVICE.parse().unwrap();
    let inspection = Inspection::of_backend(address, &device, None).unwrap();
    check(&inspection);
    assert_eq!(inspection.placement, Placement::RootBus);
    assert_eq!(
        (inspection.physical.0.len(), inspection.regions.len()),
        (256, 2)
    );
    let port = Inspection::of_backend(address, &device, Some(Placement::BehindPort)).unwrap();
    assert!(port.refusal.unwrap().contains("no PCI Express link"));
}

#[test]
fn what_is_not_there_is_named() {
    let host = host(&config());
    let none = "0000:7f:00.0".parse().unwrap();
    let error = Inspection::of_host(&host.host(), none, None).unwrap_err();
    assert!(error.to_string().contains("0000:7f:00.0 does not exist"));
}

#[test]
fn an_inspection_is_plain_data() {
    let inspection = nvme(None);
    let text = serde_json::to_string(&inspection).unwrap();
    assert!(text.contains("\"physical\":\"361b1000"), "{}", &text[..200]);
    assert_eq!(
        serde_json::from_str::<Inspection>(&text).unwrap(),
        inspection
    );
}

#[test]
fn how_it_can_be_reset() {
    let neighbour = "0000:01:00.1";
    let device = FakeDevice::nvme(&Journal::default()).unwrap();
    let hit = |device: &str| Affected {
        device: device.parse().unwrap(),
        holder: Holder::Other,
    };
    let device = device.without_reset();
    let of = |device: &FakeDevice| {
        let inspection = Inspection::of_backend(DEVICE.parse().unwrap(), device, None);
        inspection.unwrap().resets
    };
    assert_eq!(of(&device), Resets::default());
    let device = device.with_hot_reset(&[hit(DEVICE), hit(neighbour)]);
    let shared = Resets {
        bus: Some(vec![neighbour.parse().unwrap()]),
        ..Resets::default()
    };
    assert_eq!(of(&device), shared);
    device.refuse(Operation::HotReset, libc::EPERM);
    assert_eq!(of(&device), Resets::default(), "the kernel does not tell");

    // On the root bus, and behind a port with a neighbour.
    let host = host(&config());
    let methods = vec!["flr".to_owned(), "bus".to_owned()];
    let alone = Resets {
        function: true,
        methods,
        bus: None,
    };
    assert_eq!(of_host(&host).resets, alone);
    let host = FakeHost::new();
    let port = "0000:00:1c.0";
    let place = format!("{port}/{DEVICE}");
    host.bridge(port, Some(1), "pcieport")
        .conventional(&place, Some(2), "vfio-pci")
        .bytes(&place, "config", &config())
        .attribute(&place, "resource", RESOURCES)
        .endpoint(&format!("{port}/{neighbour}"), Some(2), "");
    assert_eq!(of_host(&host).resets, shared);
}
