//! A small host for the tests of what is drawn: an NVMe below a root port, two
//! NICs behind a bridge to conventional PCI, and a function that nothing is
//! known of.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use passthrough::host::{Host, Link, LinkRate, Survey};

use super::Inventory;
use crate::cli::names::Names;

const FUNCTIONS: [(&str, u32, &str, &str); 5] = [
    (
        "0000:00:1c.0",
        3,
        "pcieport",
        "pci:v00001B36d0000000Csv00000000sd00000000bc06sc04i00",
    ),
    (
        "0000:00:1d.0",
        5,
        "",
        "pci:v00001B36d0000000Esv00000000sd00000000bc06sc04i00",
    ),
    (
        "0000:00:1c.0/0000:01:00.0",
        12,
        "vfio-pci",
        "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02",
    ),
    (
        "0000:00:1d.0/0000:02:01.0",
        5,
        "e1000",
        "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
    ),
    (
        "0000:00:1d.0/0000:02:02.0",
        5,
        "",
        "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
    ),
];

pub(super) fn survey() -> Survey {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let link = |path: &str, target: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    };
    for (place, group, driver, modalias) in FUNCTIONS {
        let name = place.rsplit('/').next().unwrap();
        let own = format!("sys/devices/pci0000:00/{place}");
        fs::create_dir_all(root.join(&own)).unwrap();
        fs::write(root.join(&own).join("modalias"), modalias).unwrap();
        if modalias.contains("bc06") {
            fs::write(root.join(&own).join("secondary_bus_number"), "1").unwrap();
        }
        link(
            &format!("sys/bus/pci/devices/{name}"),
            &format!("../../../devices/pci0000:00/{place}"),
        );
        link(
            &format!("{own}/iommu_group"),
            &format!("../../kernel/iommu_groups/{group}"),
        );
        link(
            &format!("sys/kernel/iommu_groups/{group}/devices/{name}"),
            "x",
        );
        if !driver.is_empty() {
            link(
                &format!("{own}/driver"),
                &format!("../../bus/pci/drivers/{driver}"),
            );
        }
    }
    let mut survey = Survey::read(&Host::at(Path::new(root))).unwrap();
    let nvme = survey.functions.get_mut(&"0000:01:00.0".parse().unwrap());
    nvme.unwrap().link = Some(Link {
        max: LinkRate {
            speed: 8000,
            width: 4,
        },
        current: None,
    });
    let mut unknown = survey.functions[&"0000:02:02.0".parse().unwrap()].clone();
    unknown.address = "0000:03:00.0".parse().unwrap();
    unknown.ids = None;
    unknown.group = None;
    unknown.parents = Vec::new();
    survey.functions.insert(unknown.address, unknown);
    survey
}

/// With the name of the NVMe only.
pub(super) fn inventory(survey: &Survey) -> Inventory<'_> {
    let list = "1b36  Red Hat, Inc.\n\t0010  QEMU NVM Express Controller\n";
    let names = Names::parse(list.as_bytes(), &[(0x1b36, 0x10)].into());
    Inventory { survey, names }
}
