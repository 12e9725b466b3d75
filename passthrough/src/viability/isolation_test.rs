use crate::host::GroupId;
use crate::host::fake::FakeHost;
use crate::viability::Verdict;

const GROUP: GroupId = GroupId(5);
const ROOT: &str = "0000:00:1c.0";
const ROOT_PORT: Option<u8> = Some(4);
const UPSTREAM: Option<u8> = Some(5);
const DOWNSTREAM: Option<u8> = Some(6);
const TO_PCI: Option<u8> = Some(7);
/// All that Linux wants, possible and on; and possible but off.
const ON: Option<(u16, u16)> = Some((0x5f, 0x1d));
const OFF: Option<(u16, u16)> = Some((0x5f, 0));

fn causes(host: &FakeHost) -> String {
    let verdict = Verdict::judge(&host.survey(), GROUP).unwrap();
    verdict.isolation.to_string()
}

#[test]
fn one_device_is_isolated() {
    let host = FakeHost::new();
    host.bridge(ROOT, Some(3), "pcieport")
        .config(ROOT, ROOT_PORT, ON)
        .endpoint("0000:00:1c.0/0000:01:00.0", Some(5), "vfio-pci");
    assert_eq!(causes(&host), "isolated");
}

#[test]
fn conventional_pci_has_its_bridge_s_requester_id() {
    let host = FakeHost::new();
    let bridge = "0000:00:1c.0/0000:01:00.0";
    host.bridge(ROOT, Some(3), "pcieport")
        .config(ROOT, ROOT_PORT, ON)
        .bridge(bridge, Some(5), "")
        .conventional(&format!("{bridge}/0000:02:01.0"), Some(5), "vfio-pci")
        .conventional(&format!("{bridge}/0000:02:02.0"), Some(5), "e1000");
    let text = "0000:02:01.0 and 0000:02:02.0 are conventional PCI behind 0000:01:00.0, which sends their DMA under the requester id 0000:02:00.0, so the IOMMU can't tell them apart";
    // The same with and without the config space of the bridge.
    assert_eq!(causes(&host), text);
    host.config(bridge, TO_PCI, None);
    assert_eq!(causes(&host), text);
}

#[test]
fn a_conventional_bridge_speaks_as_itself() {
    let host = FakeHost::new();
    let bridge = "0000:00:1e.0";
    host.bridge(bridge, Some(5), "")
        .remove(&format!("/sys/devices/pci0000:00/{bridge}/max_link_speed"))
        .conventional(&format!("{bridge}/0000:05:01.0"), Some(5), "vfio-pci");
    assert_eq!(
        causes(&host),
        "0000:05:01.0 is conventional PCI behind 0000:00:1e.0, which sends its DMA under the bridge's address, so the IOMMU can't tell it from what else is there"
    );
}

#[test]
fn a_conventional_device_in_a_slot_of_its_own_keeps_its_id() {
    let host = FakeHost::new();
    host.bridge(ROOT, Some(5), "pcieport")
        .config(ROOT, ROOT_PORT, None)
        .conventional("0000:00:1c.0/0000:01:00.0", Some(5), "vfio-pci");
    assert_eq!(
        causes(&host),
        "the root port 0000:00:1c.0 has no ACS, so what 0000:01:00.0 sends to other devices may pass it without the IOMMU"
    );
}

/// A switch with two ports and a device behind each.
fn switch(acs: Option<(u16, u16)>) -> FakeHost {
    let host = FakeHost::new();
    let up = "0000:00:1c.0/0000:01:00.0";
    let (first, second) = (format!("{up}/0000:02:00.0"), format!("{up}/0000:02:01.0"));
    let group = |own: u32| Some(if acs == ON { own } else { 5 });
    host.bridge(ROOT, Some(3), "pcieport")
        .config(ROOT, ROOT_PORT, ON)
        .bridge(up, Some(4), "pcieport")
        .config(up, UPSTREAM, None)
        .bridge(&first, group(6), "pcieport")
        .config(&first, DOWNSTREAM, acs)
        .bridge(&second, group(7), "pcieport")
        .config(&second, DOWNSTREAM, acs)
        .endpoint(&format!("{first}/0000:03:00.0"), Some(5), "vfio-pci")
        .endpoint(&format!("{second}/0000:04:00.0"), group(8), "vfio-pci");
    host
}

#[test]
fn a_switch_with_acs_keeps_devices_apart() {
    assert_eq!(causes(&switch(ON)), "isolated");
}

#[test]
fn the_ports_without_acs_are_named() {
    assert_eq!(
        causes(&switch(None)),
        "the switch's downstream port 0000:02:00.0 has no ACS, so what 0000:03:00.0 sends to other devices may pass it without the IOMMU; \
         the switch's downstream port 0000:02:01.0 has no ACS, so what 0000:04:00.0 sends to other devices may pass it without the IOMMU"
    );
    let text = causes(&switch(OFF));
    assert!(
        text.contains("0000:02:00.0 has ACS, but not on: source validation, request redirect, completion redirect, upstream forwarding, so"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_read_is_said() {
    let host = switch(None);
    let port = "/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/0000:02";
    host.remove(&format!("{port}:00.0/config"))
        .remove(&format!("{port}:01.0/config"));
    let text = causes(&host);
    assert!(
        text.starts_with("which port keeps them together can't be seen"),
        "{text}"
    );

    // Ports that sleep are left asleep.
    let host = switch(None);
    host.file(&format!("{port}:00.0/power_state"), "D3hot\n")
        .file(&format!("{port}:01.0/power_state"), "D3cold\n");
    let text = causes(&host);
    assert!(
        text.starts_with("which port keeps them together can't be seen"),
        "{text}"
    );
}

#[test]
fn functions_of_one_device() {
    let host = FakeHost::new();
    host.bridge(ROOT, Some(3), "pcieport")
        .config(ROOT, ROOT_PORT, ON);
    let places = ["0000:00:1c.0/0000:01:00.0", "0000:00:1c.0/0000:01:00.1"];
    for place in places {
        host.endpoint(place, Some(5), "vfio-pci");
    }
    let with = |how: &str| {
        format!(
            "0000:01:00.0 and 0000:01:00.1 are functions of one device and {how} between them, so they may reach each other inside of it"
        )
    };
    assert_eq!(causes(&host), with("don't show ACS"));
    for place in places {
        host.config(place, Some(0), None);
    }
    assert_eq!(causes(&host), with("have no ACS"));
    for place in places {
        host.config(place, Some(0), ON);
    }
    assert_eq!(
        causes(&host),
        "no port was seen to lack ACS: the IOMMU's driver or the firmware put them together"
    );
}
