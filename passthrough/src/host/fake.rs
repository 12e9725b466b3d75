//! A tree in a temporary folder that looks like a host, for tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{Host, Survey};
use crate::plan::{Plan, Request};

/// Grows by a call for each thing that a test needs.
#[derive(Debug)]
pub(crate) struct FakeHost {
    folder: TempDir,
}

impl FakeHost {
    /// A host on which nothing stands in the way: Linux 6.12, root, VT-d of 39
    /// bits with interrupt remapping, VFIO loaded. It has no devices.
    pub(crate) fn new() -> Self {
        let host = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in [
            "/sys/bus/pci/devices",
            "/sys/bus/pci/drivers/vfio-pci",
            "/sys/kernel/iommu_groups",
            "/sys/class/iommu/dmar0/devices",
            "/proc/self",
        ] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        host.kernel("6.12.107")
            .user(0, "000001ffffffffff")
            .file("/proc/self/uid_map", "0 0 4294967295")
            .file(
                "/proc/self/limits",
                "Max locked memory 8388608 8388608 bytes",
            )
            .file("/proc/interrupts", " CPU0\n 1: 9 IR-IO-APIC 1-edge i8042\n")
            .file("/proc/cmdline", "console=ttyS0 quiet")
            .file("/sys/firmware/acpi/tables/DMAR", "")
            .file("/sys/class/iommu/dmar0/intel-iommu/cap", "d2008c22260286\n")
            .file("/sys/class/iommu/dmar0/intel-iommu/ecap", "f00f4a\n")
            .file(
                "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
                "N\n",
            )
            .file("/dev/kvm", "")
            .file("/dev/vfio/vfio", "");
        host
    }

    /// The same host with the IOMMU off.
    pub(crate) fn without_iommu() -> Self {
        let host = Self::new();
        host.remove("/sys/class/iommu/dmar0");
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    pub(crate) fn file(&self, path: &str, text: impl AsRef<[u8]>) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
        self
    }

    pub(crate) fn remove(&self, path: &str) -> &Self {
        let path = self.path(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        self
    }

    pub(crate) fn kernel(&self, release: &str) -> &Self {
        self.file("/proc/sys/kernel/osrelease", format!("{release}\n"))
    }

    pub(crate) fn user(&self, uid: u32, capabilities: &str) -> &Self {
        let status =
            format!("Name:\tt\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t{capabilities}\n");
        self.file("/proc/self/status", status)
    }

    /// An endpoint at the end of `place`, a path of addresses below the root
    /// bus such as `0000:00:1c.0/0000:01:00.0`. No driver is `""`.
    pub(crate) fn endpoint(&self, place: &str, group: Option<u32>, driver: &str) -> &Self {
        self.function(
            place,
            group,
            driver,
            "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00",
        )
        .attribute(place, "max_link_speed", "8.0 GT/s PCIe\n")
        .attribute(place, "max_link_width", "4\n")
        .attribute(place, "reset_method", "flr bus\n")
    }

    /// One without PCIe: there is no link, and no reset of its own.
    pub(crate) fn conventional(&self, place: &str, group: Option<u32>, driver: &str) -> &Self {
        let modalias = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00";
        self.function(place, group, driver, modalias)
    }

    /// An attribute of the function at `place`.
    pub(crate) fn attribute(&self, place: &str, name: &str, text: &str) -> &Self {
        self.bytes(place, name, text.as_bytes())
    }

    pub(crate) fn bytes(&self, place: &str, name: &str, bytes: &[u8]) -> &Self {
        self.file(&format!("{}/{name}", folder(place)), bytes)
    }

    /// Leaves `size` bytes of an attribute.
    pub(crate) fn cut(&self, place: &str, name: &str, size: usize) -> &Self {
        let bytes = fs::read(self.path(&format!("{}/{name}", folder(place)))).unwrap();
        self.bytes(place, name, &bytes[..size])
    }

    /// Config space of the function at `place`: a PCIe capability of the kind
    /// that `port` says (PCIe 6.0 §7.5.3.2), none for conventional PCI; and
    /// ACS, if there is any, with what is possible and what is on.
    pub(crate) fn config(&self, place: &str, port: Option<u8>, acs: Option<(u16, u16)>) -> &Self {
        let mut config = vec![0; 4096];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        // Power management first, so that there is a list to go along.
        config[0x40..0x42].copy_from_slice(&[0x01, if port.is_some() { 0x60 } else { 0 }]);
        if let Some(port) = port {
            config[0x60..0x64].copy_from_slice(&[0x10, 0, port << 4 | 2, 0]);
            // AER, then perhaps ACS.
            let next: u32 = if acs.is_some() { 0x148 } else { 0 };
            config[0x100..0x104].copy_from_slice(&(next << 20 | 0x1_0001).to_le_bytes());
        }
        if let Some((capable, enabled)) = acs {
            config[0x148..0x14c].copy_from_slice(&0x1_000du32.to_le_bytes());
            config[0x14c..0x14e].copy_from_slice(&capable.to_le_bytes());
            config[0x14e..0x150].copy_from_slice(&enabled.to_le_bytes());
        }
        self.file(&format!("{}/config", folder(place)), config)
    }

    pub(crate) fn bridge(&self, place: &str, group: Option<u32>, driver: &str) -> &Self {
        let modalias = "pci:v00001B36d0000000Csv00000000sd00000000bc06sc04i00";
        self.function(place, group, driver, modalias)
            .attribute(place, "secondary_bus_number", "1\n")
            .attribute(place, "max_link_speed", "8.0 GT/s PCIe\n")
    }

    /// A VF of `physical`.
    pub(crate) fn virtual_function(
        &self,
        place: &str,
        group: Option<u32>,
        driver: &str,
        physical: &str,
    ) -> &Self {
        self.endpoint(place, group, driver).link(
            &format!("{}/physfn", folder(place)),
            &format!("../{physical}"),
        )
    }

    fn function(&self, place: &str, group: Option<u32>, driver: &str, modalias: &str) -> &Self {
        let name = place.rsplit('/').next().unwrap();
        let folder = folder(place);
        self.file(&format!("{folder}/modalias"), format!("{modalias}\n"))
            .file(&format!("{folder}/power_state"), "D0\n")
            .link(
                &format!("/sys/bus/pci/devices/{name}"),
                &format!("../../..{}", &folder[4..]),
            );
        if !driver.is_empty() {
            self.link(
                &format!("{folder}/driver"),
                &format!("../../../bus/pci/drivers/{driver}"),
            );
        }
        if let Some(group) = group {
            self.link(
                &format!("{folder}/iommu_group"),
                &format!("../../../kernel/iommu_groups/{group}"),
            )
            .link(
                &format!("/sys/kernel/iommu_groups/{group}/devices/{name}"),
                &format!("../../../..{}", &folder[4..]),
            )
            .link(
                &format!("/sys/class/iommu/dmar0/devices/{name}"),
                &format!("../../../..{}", &folder[4..]),
            );
            if driver == "vfio-pci" {
                self.file(&format!("/dev/vfio/{group}"), "");
            }
        }
        self
    }

    /// A process that has `file` open.
    pub(crate) fn holder(&self, pid: u32, name: &str, file: &str) -> &Self {
        self.file(&format!("/proc/{pid}/comm"), format!("{name}\n"))
            .link(&format!("/proc/{pid}/fd/0"), "/dev/null")
            .link(&format!("/proc/{pid}/fd/7"), file)
    }

    pub(crate) fn host(&self) -> Host {
        Host::at(self.folder.path())
    }

    pub(crate) fn survey(&self) -> Survey {
        Survey::read(&self.host()).unwrap()
    }

    pub(crate) fn plan(&self, devices: &[&str]) -> Plan {
        Plan::make(&self.survey(), &request(devices))
    }
}

/// Asks for `devices` and nothing else.
pub(crate) fn request(devices: &[&str]) -> Request {
    Request {
        devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        ..Request::default()
    }
}

fn folder(place: &str) -> String {
    format!("/sys/devices/pci0000:00/{place}")
}
