use proptest::prelude::*;

use super::*;
use crate::host::fake::FakeHost;
use crate::host::{GroupId, Survey};

const GROUP: GroupId = GroupId(5);

fn judge(host: &FakeHost) -> (Survey, Verdict) {
    let survey = host.survey();
    let verdict = Verdict::judge(&survey, GROUP).unwrap();
    (survey, verdict)
}

/// Two functions behind a PCIe-to-PCI bridge, the first on vfio-pci.
fn conventional(second: &str) -> FakeHost {
    let host = FakeHost::new();
    host.bridge("0000:01:00.0", Some(5), "")
        .endpoint("0000:01:00.0/0000:02:01.0", Some(5), "vfio-pci")
        .endpoint("0000:01:00.0/0000:02:02.0", Some(5), second);
    host
}

#[test]
fn members_that_do_no_dma_do_not_block() {
    for driver in ["", "vfio-pci", "pci-stub", "mlx5_vfio_pci"] {
        for release in ["5.10.0", "6.12.0"] {
            let host = conventional(driver);
            let (_, verdict) = judge(host.kernel(release));
            assert!(verdict.is_viable(), "'{driver}' on {release}");
            assert_eq!(verdict.changes, []);
        }
    }
}

#[test]
fn a_host_driver_blocks_under_both_rules() {
    for (release, regime) in [
        ("5.18.19", Regime::AllowList),
        ("5.19.0", Regime::DmaOwnership),
        ("garbage", Regime::DmaOwnership),
    ] {
        let host = conventional("e1000");
        let (survey, verdict) = judge(host.kernel(release));
        assert_eq!(verdict.regime, regime);
        assert!(!verdict.is_viable());
        let blocking: Vec<_> = verdict.blocking().map(|member| &member.name).collect();
        assert_eq!(blocking, ["0000:02:02.0"]);
        assert_eq!(verdict.changes.len(), 1, "no member is changed needlessly");
        let remedy = verdict.changes[0].remedy(&survey).to_string();
        assert_eq!(remedy, "airlock bind 0000:02:02.0");
    }
}

#[test]
fn bridges_pass_by_kind_or_by_driver() {
    let with = |driver: &str, release: &str| {
        let host = FakeHost::new();
        host.bridge("0000:01:00.0", Some(5), driver).endpoint(
            "0000:01:00.0/0000:02:01.0",
            Some(5),
            "vfio-pci",
        );
        let (survey, verdict) = judge(host.kernel(release));
        let remedies: Vec<_> = verdict
            .changes
            .iter()
            .map(|change| change.remedy(&survey).to_string())
            .collect();
        (verdict.is_viable(), remedies)
    };
    assert!(with("pcieport", "5.10.0").0);
    assert!(with("pcieport", "6.12.0").0);
    assert!(with("", "6.12.0").0);
    assert!(with("shpchp", "5.10.0").0, "every bridge passes up to 5.18");
    let (viable, remedies) = with("shpchp", "6.12.0");
    assert!(!viable, "only pcieport manages its own DMA");
    // VFIO takes no bridges, so its driver only goes.
    assert_eq!(
        remedies,
        ["echo 0000:01:00.0 > /sys/bus/pci/devices/0000:01:00.0/driver/unbind"]
    );
}

#[test]
fn a_vfio_driver_is_known_by_name_or_by_what_it_does() {
    assert!(is_vfio_driver("vfio-pci", None));
    assert!(is_vfio_driver("qat_vfio_pci", None));
    assert!(is_vfio_driver("xe-vfio-pci", None));
    assert!(is_vfio_driver("vendor", Some("vfio4")));
    assert!(!is_vfio_driver("nvidia", None));
    assert!(!is_vfio_driver("vfio-pci-helper", None));
}

#[test]
fn what_cannot_be_told_blocks() {
    // Listed in the group, but not on the bus.
    let host = conventional("");
    host.remove("/sys/bus/pci/devices/0000:02:02.0");
    let (survey, verdict) = judge(&host);
    assert!(!verdict.is_viable());
    let remedy = verdict.changes[0].remedy(&survey).to_string();
    assert!(remedy.contains("0000:02:02.0"), "{remedy}");

    // The driver can't be read: a folder where a link should be.
    let host = conventional("");
    host.file(
        "/sys/devices/pci0000:00/0000:01:00.0/0000:02:02.0/driver/x",
        "",
    );
    assert!(!judge(&host).1.is_viable());

    // No member can be seen.
    let host = FakeHost::new();
    host.file("/sys/kernel/iommu_groups/5/type", "DMA");
    assert!(!judge(&host).1.is_viable());
    assert!(Verdict::judge(&host.survey(), GroupId(6)).is_none());
}

#[test]
fn devices_of_other_buses_count() {
    let with = |driver: &str| {
        let host = FakeHost::new();
        let folder = "/sys/kernel/iommu_groups/5/devices";
        host.file(&format!("{folder}/fd880000.usb/uevent"), "");
        if !driver.is_empty() {
            host.link(
                &format!("{folder}/fd880000.usb/driver"),
                &format!("../{driver}"),
            );
        }
        judge(&host).1.is_viable()
    };
    assert!(with(""));
    assert!(with("vfio-platform"));
    assert!(!with("dwc3"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The kernel's rules, written down a second time and in another way.
    #[test]
    fn never_viable_while_a_member_blocks(
        members in proptest::collection::vec(
            (any::<bool>(), prop_oneof![
                Just(""), Just("vfio-pci"), Just("pci-stub"), Just("pcieport"),
                Just("shpchp"), Just("nvme"), Just("virtio_vfio_pci"),
            ]),
            1..6,
        ),
        old: bool,
    ) {
        let host = FakeHost::new();
        host.kernel(if old { "5.15.0" } else { "6.6.1" });
        for (n, (bridge, driver)) in members.iter().enumerate() {
            let place = format!("0000:03:{n:02x}.0");
            if *bridge {
                host.bridge(&place, Some(5), driver);
            } else {
                host.endpoint(&place, Some(5), driver);
            }
        }
        let blocking = members.iter().filter(|(bridge, driver)| match *driver {
            "" | "vfio-pci" | "virtio_vfio_pci" | "pci-stub" => false,
            "pcieport" => old && !bridge,
            _ => !(old && *bridge),
        }).count();
        let (_, verdict) = judge(&host);
        prop_assert_eq!(verdict.is_viable(), blocking == 0);
        prop_assert_eq!(verdict.changes.len(), blocking);
    }
}
