//! Whole machines as they are found, under both of the kernel's rules.

use super::*;
use crate::host::fake::{FakeHost, request};

const ROOT: &str = "0000:00:1c.0";

fn machine() -> FakeHost {
    let host = FakeHost::new();
    host.bridge(ROOT, Some(3), "pcieport");
    host
}

/// Whether the plan for `devices` is go on 5.10 and on 6.12, and the last plan.
fn on_both(host: &FakeHost, devices: &[&str]) -> ([bool; 2], Plan) {
    let old = host.kernel("5.10.0-28-amd64").plan(devices).is_go();
    let new = host.kernel("6.12.107").plan(devices);
    ([old, new.is_go()], new)
}

fn reason(plan: &Plan, check: Check) -> String {
    let mut items = plan.items.iter().filter(|item| item.check == check);
    items
        .next()
        .map_or(String::new(), |item| item.reason.clone())
}

#[test]
fn a_gpu_with_its_audio_function() {
    let host = machine();
    let (gpu, audio) = ("0000:00:1c.0/0000:01:00.0", "0000:00:1c.0/0000:01:00.1");
    host.endpoint(gpu, Some(12), "vfio-pci")
        .endpoint(audio, Some(12), "snd_hda_intel");
    let (go, plan) = on_both(&host, &["01:00.0"]);
    assert_eq!(go, [false; 2]);
    assert_eq!(plan.failures().count(), 1, "{plan}");
    assert!(
        reason(&plan, Check::Viability)
            .contains("0000:01:00.1 is on the host driver 'snd_hda_intel'")
    );
    assert!(
        reason(&plan, Check::Shared).contains("functions of one device"),
        "{plan}"
    );

    // Neither has to be given; both may.
    let host = machine();
    host.endpoint(gpu, Some(12), "vfio-pci")
        .endpoint(audio, Some(12), "");
    assert_eq!(on_both(&host, &["01:00.0"]).0, [true; 2]);
    let host = machine();
    host.endpoint(gpu, Some(12), "vfio-pci")
        .endpoint(audio, Some(12), "vfio-pci");
    let (go, plan) = on_both(&host, &["01:00.0", "01:00.1"]);
    assert_eq!(go, [true; 2]);
    assert_eq!(
        reason(&plan, Check::Together),
        "0000:01:00.0, 0000:01:00.1 are of one group and go to one guest, as they must"
    );
}

#[test]
fn two_functions_behind_a_bridge_to_conventional_pci() {
    for (second, go) in [
        ("", true),
        ("vfio-pci", true),
        ("pci-stub", true),
        ("e1000", false),
    ] {
        let host = machine();
        let bridge = "0000:00:1c.0/0000:01:00.0";
        host.bridge(bridge, Some(5), "")
            .conventional(&format!("{bridge}/0000:02:01.0"), Some(5), "vfio-pci")
            .conventional(&format!("{bridge}/0000:02:02.0"), Some(5), second);
        let (both, plan) = on_both(&host, &["02:01.0"]);
        assert_eq!(both, [go; 2], "{second}\n{plan}");
        assert!(
            reason(&plan, Check::Shared).contains("requester id 0000:02:00.0"),
            "{plan}"
        );
        // Conventional PCI has no reset of its own either.
        assert!(
            reason(&plan, Check::Reset)
                .contains("a reset of its bus at 0000:01:00.0 would hit 0000:02:02.0 too"),
            "{plan}"
        );
        let bound = second == "vfio-pci";
        let with_it = "which happens when the guest resets it, and after its use";
        assert_eq!(
            reason(&plan, Check::Reset).ends_with(with_it),
            bound,
            "{plan}"
        );
        let advice = "bind 0000:02:02.0 to vfio-pci as well";
        assert_eq!(plan.to_string().contains(advice), !bound, "{plan}");
    }
}

#[test]
fn a_switch_without_acs() {
    let host = machine();
    let (up, group) = ("0000:00:1c.0/0000:01:00.0", Some(5));
    for n in [0, 1] {
        let port = format!("{up}/0000:02:0{n}.0");
        host.bridge(&port, group, "pcieport")
            .config(&port, Some(6), None)
            .endpoint(
                &format!("{port}/0000:0{}:00.0", n + 3),
                group,
                ["vfio-pci", "nvme"][n],
            );
    }
    host.bridge(up, group, "pcieport").config(up, Some(5), None);
    let (go, plan) = on_both(&host, &["03:00.0"]);
    assert_eq!(go, [false; 2]);
    let text = reason(&plan, Check::Viability);
    assert!(
        text.contains("0000:04:00.0 is on the host driver 'nvme'"),
        "{text}"
    );
    assert!(
        !text.contains("pcieport"),
        "ports are in nobody's way: {text}"
    );
    assert!(
        reason(&plan, Check::Shared).contains("0000:02:00.0 has no ACS"),
        "{plan}"
    );
}

#[test]
fn pcieport_in_the_group() {
    let host = FakeHost::new();
    host.bridge(ROOT, Some(5), "pcieport").endpoint(
        "0000:00:1c.0/0000:01:00.0",
        Some(5),
        "vfio-pci",
    );
    assert_eq!(on_both(&host, &["01:00.0"]).0, [true; 2]);
    // Another driver on the bridge matters to the newer kernel alone.
    host.bridge(ROOT, Some(5), "shpchp");
    let (go, plan) = on_both(&host, &["01:00.0"]);
    assert_eq!(go, [true, false]);
    assert!(
        reason(&plan, Check::Viability).contains("'shpchp'"),
        "{plan}"
    );
}

#[test]
fn a_card_with_several_ports_half_bound() {
    let host = machine();
    for (n, driver) in ["vfio-pci", "vfio-pci", "i40e", "i40e"].iter().enumerate() {
        host.endpoint(&format!("0000:00:1c.0/0000:01:00.{n}"), Some(12), driver);
    }
    let (go, plan) = on_both(&host, &["01:00.0", "01:00.1"]);
    assert_eq!(go, [false; 2]);
    let failed: Vec<_> = plan.failures().collect();
    assert_eq!(failed.len(), 1, "{plan}");
    let fixes: Vec<_> = failed[0].remedies.iter().map(ToString::to_string).collect();
    assert_eq!(
        fixes.len(),
        2,
        "one for each port that is in the way\n{plan}"
    );
    assert!(fixes[0].contains("0000:01:00.2") && fixes[1].contains("0000:01:00.3"));
}

#[test]
fn a_physical_function_and_its_virtual_ones() {
    let host = machine();
    let physical = "0000:00:1c.0/0000:01:00.0";
    host.endpoint(physical, Some(12), "ixgbe")
        .attribute(physical, "sriov_totalvfs", "63\n");
    for n in 0..2 {
        host.virtual_function(
            &format!("0000:00:1c.0/0000:01:10.{n}"),
            Some(13 + n),
            "vfio-pci",
            "0000:01:00.0",
        );
    }
    assert_eq!(on_both(&host, &["01:10.0", "01:10.1"]).0, [true; 2]);
    assert_eq!(on_both(&host, &["01:00.0"]).0, [false; 2]);
    let survey = host.survey();
    let address = "0000:01:00.0".parse().unwrap();
    assert_eq!(survey.functions[&address].virtual_functions_max, Some(63));
    assert_eq!(survey.virtual_functions(address).len(), 2);
}

#[test]
fn a_device_without_a_group() {
    let host = machine();
    host.endpoint("0000:00:1c.0/0000:01:00.0", None, "vfio-pci");
    let (go, plan) = on_both(&host, &["01:00.0"]);
    assert_eq!(go, [false; 2]);
    assert!(
        reason(&plan, Check::Isolation).contains("is in no IOMMU group"),
        "{plan}"
    );
}

#[test]
fn a_variant_driver_that_fits() {
    let host = machine();
    let place = "0000:00:1c.0/0000:01:00.0";
    host.endpoint(place, Some(12), "vfio-pci").file(
        "/lib/modules/6.12.107/modules.alias",
        "# comment\nalias pci:v00008086d* e1000e\n\
         alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n\
         alias vfio_pci:v00008086d000010D3sv*sd*bc*sc*i* best-vfio-pci\n\
         alias vfio_pci:v00008086d*sv*sd*bc*sc*i* good_vfio_pci\n",
    );
    let plan = host.plan(&["01:00.0"]);
    assert!(plan.is_go(), "it works all the same\n{plan}");
    let item = plan
        .items
        .iter()
        .find(|item| item.check == Check::Driver)
        .unwrap();
    assert_eq!(item.outcome, Outcome::Warning);
    assert!(
        item.reason.contains("best_vfio_pci fits it better"),
        "{plan}"
    );
    assert_eq!(
        item.remedies[0].to_string(),
        "airlock bind 0000:01:00.0 --driver best_vfio_pci"
    );
    // On the variant by any spelling, nothing is left to say.
    host.file("/sys/bus/pci/drivers/best-vfio-pci/bind", "")
        .endpoint(place, Some(12), "best-vfio-pci");
    let plan = host.plan(&["01:00.0"]);
    assert_eq!(
        reason(&plan, Check::Driver),
        "0000:01:00.0 is on best-vfio-pci"
    );
}

#[test]
fn resets_and_what_they_hit() {
    let host = machine();
    let place = "0000:00:1c.0/0000:01:00.0";
    let check = |host: &FakeHost| {
        let plan = host.plan(&["01:00.0"]);
        assert!(plan.is_go(), "{plan}");
        reason(&plan, Check::Reset)
    };
    host.endpoint(place, Some(12), "vfio-pci");
    assert_eq!(
        check(&host),
        "0000:01:00.0 can be reset by itself (flr, bus)"
    );
    // A neighbour keeps it from a reset of the bus, which its list knows not.
    let neighbour = "0000:00:1c.0/0000:01:00.1";
    host.endpoint(neighbour, Some(13), "vfio-pci");
    assert_eq!(check(&host), "0000:01:00.0 can be reset by itself (flr)");
    host.attribute(place, "reset_method", "bus\n");
    assert!(check(&host).contains("can't be reset by itself"));
    host.remove(&format!("/sys/devices/pci0000:00/{neighbour}"));
    assert_eq!(check(&host), "0000:01:00.0 can be reset by itself (bus)");
    // Its owner forbids all.
    host.attribute(place, "reset_method", "\n")
        .attribute(place, "reset", "");
    assert!(check(&host).contains("can't be reset by itself"));
    // Before 5.15.
    host.remove(&format!("/sys/devices/pci0000:00/{place}/reset_method"))
        .attribute(place, "reset", "");
    assert_eq!(
        check(&host),
        "0000:01:00.0 can be reset by itself (the kernel does not say how)"
    );
    host.remove(&format!("/sys/devices/pci0000:00/{place}/reset"));
    let cannot =
        "0000:01:00.0 can't be reset by itself: a guest may find what the one before left in it";
    assert_eq!(
        check(&host),
        format!("{cannot}; a reset of its bus at 0000:00:1c.0 would hit nothing else")
    );
    host.endpoint("0000:00:1c.0/0000:01:00.1", Some(13), "vfio-pci");
    assert_eq!(
        check(&host),
        format!(
            "{cannot}; a reset of its bus at 0000:00:1c.0 would hit 0000:01:00.1 too, which \
             happens when none of them is in use"
        ),
        "its neighbour is in a group of its own"
    );
    host.conventional("0000:00:05.0", Some(14), "vfio-pci");
    let plan = host.plan(&["00:05.0"]);
    assert!(reason(&plan, Check::Reset).ends_with("on a root bus, which can't be reset either"));
}

#[test]
fn devices_that_the_host_needs() {
    let host = machine();
    let place = "0000:00:1c.0/0000:01:00.0";
    host.endpoint(place, Some(12), "nvme")
        .link(
            "/sys/dev/block/259:2",
            &format!("../../devices/pci0000:00/{place}/nvme/nvme0/nvme0n1/nvme0n1p2"),
        )
        .file(
            "/proc/self/mountinfo",
            "30 1 259:2 / /home rw - ext4 /dev/nvme0n1p2 rw\n",
        )
        .attribute(place, "boot_vga", "1\n");
    let needs = |plan: &Plan| -> Vec<_> {
        let items = plan.items.iter();
        items
            .filter(|item| item.check == Check::HostNeeds)
            .map(|item| (item.outcome, item.reason.clone()))
            .collect()
    };
    let plan = host.plan(&["01:00.0"]);
    let disk = "0000:01:00.0 has the disk of /home behind it (nvme0n1p2 is mounted there)";
    let display = "0000:01:00.0 is the display that the host booted with (boot VGA)";
    assert_eq!(
        needs(&plan),
        [
            (Outcome::Failed, format!("{disk}: the host still needs it")),
            (
                Outcome::Failed,
                format!("{display}: the host still needs it")
            ),
        ]
    );
    let text = plan.to_string();
    assert!(text.contains("fix: umount /home\n"), "{text}");
    assert!(text.contains("force 0000:01:00.0 by name"), "{text}");

    let mut forced = request(&["01:00.0"]);
    forced.force = vec!["1:0.0".to_owned()];
    let plan = Plan::make(&host.survey(), &forced);
    assert!(
        needs(&plan)
            .iter()
            .all(|(outcome, _)| *outcome == Outcome::Warning),
        "{plan}"
    );
    forced.force = vec!["02:00.0".to_owned(), "all".to_owned()];
    let plan = Plan::make(&host.survey(), &forced);
    assert!(
        needs(&plan)
            .iter()
            .all(|(outcome, _)| *outcome == Outcome::Failed),
        "{plan}"
    );
    assert!(
        plan.to_string()
            .contains("what is to be forced is no device"),
        "{plan}"
    );

    // A neighbour in the way may be needed as well.
    host.endpoint("0000:00:1c.0/0000:01:00.1", Some(12), "vfio-pci");
    let plan = host.plan(&["01:00.1"]);
    assert_eq!(needs(&plan).len(), 2, "{plan}");

    // On a VFIO driver the host has let go already.
    host.endpoint(place, Some(12), "vfio-pci");
    assert!(host.plan(&["01:00.0"]).is_go());
}

#[test]
fn plans_of_another_version_are_refused() {
    let text = serde_json::to_string(&machine().plan(&[])).unwrap();
    let other = text.replace("\"version\":2", "\"version\":1");
    let error = serde_json::from_str::<Plan>(&other)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("of version 1, and this program understands version 2"),
        "{error}"
    );
}
