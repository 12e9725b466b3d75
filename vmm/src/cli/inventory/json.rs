use passthrough::host::{Function, Group, Iommu, Kernel, VfioPieces};
use serde::Serialize;

use super::Inventory;

/// The layout of the data. Grows when a field changes its meaning.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Listing<'a> {
    version: u32,
    devices: Vec<Device<'a>>,
    groups: Vec<&'a Group>,
    iommu: &'a Iommu,
    vfio: &'a VfioPieces,
    kernel: &'a Kernel,
}

#[derive(Serialize)]
struct Device<'a> {
    vendor_name: Option<&'a str>,
    device_name: Option<&'a str>,
    class_name: &'static str,
    #[serde(flatten)]
    function: &'a Function,
}

pub(super) fn write(inventory: &Inventory<'_>) -> serde_json::Result<String> {
    let survey = inventory.survey;
    let names = &inventory.names;
    let devices = survey.functions.values().map(|function| Device {
        vendor_name: function.ids.and_then(|ids| names.vendor(ids.vendor)),
        device_name: function
            .ids
            .and_then(|ids| names.device(ids.vendor, ids.device)),
        class_name: inventory.class(function),
        function,
    });
    serde_json::to_string_pretty(&Listing {
        version: VERSION,
        devices: devices.collect(),
        groups: survey.groups.values().collect(),
        iommu: &survey.iommu,
        vfio: &survey.vfio,
        kernel: &survey.kernel,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_device_has_its_names_beside_its_numbers() {
        let survey = sample::survey();
        let text = write(&sample::inventory(&survey)).unwrap();
        let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(listing["version"], 1);
        let nvme = &listing["devices"][2];
        assert_eq!(nvme["address"], "0000:01:00.0");
        assert_eq!(nvme["vendor_name"], "Red Hat, Inc.");
        assert_eq!(nvme["class_name"], "NVMe controller");
        assert_eq!(nvme["group"], 12);
        assert_eq!(nvme["driver"], "vfio-pci");
        assert_eq!(
            listing["devices"][5]["vendor_name"],
            serde_json::Value::Null
        );
        assert_eq!(listing["groups"].as_array().unwrap().len(), 3);
    }
}
