use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::sysfs::Host;

const UNITS: &str = "/sys/class/iommu";
const TABLES: &str = "/sys/firmware/acpi/tables";

/// How many lines of `/proc/interrupts` are looked through. The first line of
/// an interrupt controller comes within the first few.
const INTERRUPT_LINES: usize = 64;

/// The host's IOMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iommu {
    /// The units that the kernel runs. None when the IOMMU is off.
    pub units: Vec<IommuUnit>,
    /// Whether interrupts go through the IOMMU too.
    pub interrupt_remapping: InterruptRemapping,
    /// The ACPI table with which the firmware announces an IOMMU: `DMAR`
    /// (Intel), `IVRS` (AMD) or `VIOT` (virtio).
    pub firmware_table: Option<String>,
    /// What the kernel's command line says about it.
    pub arguments: Vec<String>,
}

/// One IOMMU unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuUnit {
    /// The kernel's name for it, such as `dmar0`.
    pub name: String,
    /// What it is.
    pub kind: IommuKind,
    /// The bits of an I/O virtual address, where sysfs tells. The kernel may
    /// choose a narrower layout: what it opens with is the last word.
    pub address_width: Option<u8>,
    /// Whether the unit can remap interrupts, where sysfs tells.
    pub can_remap_interrupts: Option<bool>,
    /// The capability register (VT-d 4.1 §11.4.2; AMD IOMMU 3.08 §3.2.1).
    pub capability: Option<u64>,
    /// VT-d's extended capability register (VT-d 4.1 §11.4.3).
    pub extended_capability: Option<u64>,
    /// The PCI functions behind it.
    pub devices: Vec<PciAddress>,
}

/// The make of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IommuKind {
    /// Intel VT-d.
    IntelVtd,
    /// AMD-Vi.
    AmdVi,
    /// A hypervisor's virtio-iommu.
    Virtio,
    /// Another one.
    Other,
}

/// Whether a device's interrupts are checked on their way. Without it a guest
/// can raise any interrupt of the host by a DMA write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterruptRemapping {
    /// The answer.
    pub state: Remapping,
    /// What it was concluded from.
    pub evidence: String,
}

/// An answer that sysfs may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remapping {
    /// Interrupts are remapped.
    On,
    /// They are not.
    Off,
    /// Only opening the group tells.
    Unknown,
}

impl IommuKind {
    /// The name that its maker uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::IntelVtd => "Intel VT-d",
            Self::AmdVi => "AMD-Vi",
            Self::Virtio => "virtio-iommu",
            Self::Other => "IOMMU",
        }
    }
}

impl Iommu {
    /// The unit that `device` is behind.
    pub fn unit_of(&self, device: PciAddress) -> Option<&IommuUnit> {
        self.units
            .iter()
            .find(|unit| unit.devices.contains(&device))
    }

    /// What on the kernel's command line turns the IOMMU off.
    pub fn turned_off_by(&self) -> Option<&str> {
        let mut arguments = self.arguments.iter().map(String::as_str);
        arguments
            .find(|argument| matches!(*argument, "iommu=off" | "intel_iommu=off" | "amd_iommu=off"))
    }

    pub(super) fn read(host: &Host) -> Self {
        let names = host.list(UNITS).ok().flatten().unwrap_or_default();
        let units: Vec<_> = names
            .into_iter()
            .map(|name| IommuUnit::read(host, name))
            .collect();
        let table = ["DMAR", "IVRS", "VIOT"]
            .into_iter()
            .find(|table| host.exists(&format!("{TABLES}/{table}")).unwrap_or(false));
        let command_line = host.text("/proc/cmdline").ok().flatten();
        Self {
            interrupt_remapping: InterruptRemapping::read(host, &units),
            units,
            firmware_table: table.map(str::to_owned),
            arguments: command_line
                .unwrap_or_default()
                .split_whitespace()
                .filter(|argument| is_about_iommu(argument))
                .map(str::to_owned)
                .collect(),
        }
    }
}

fn is_about_iommu(argument: &str) -> bool {
    let key = argument.split('=').next().unwrap_or_default();
    matches!(
        key,
        "iommu" | "intel_iommu" | "amd_iommu" | "intremap" | "nointremap" | "amd_iommu_intr"
    ) || key.starts_with("iommu.")
}

impl IommuUnit {
    fn read(host: &Host, name: String) -> Self {
        let register = |kind: &str, register: &str| {
            let text = host.text(&format!("{UNITS}/{name}/{kind}/{register}"));
            u64::from_str_radix(&text.ok()??, 16).ok()
        };
        let capability = register("intel-iommu", "cap");
        let extended = register("intel-iommu", "ecap");
        let amd = register("amd-iommu", "cap");
        let kind = if capability.is_some() || name.starts_with("dmar") {
            IommuKind::IntelVtd
        } else if amd.is_some() || name.starts_with("ivhd") {
            IommuKind::AmdVi
        } else if name.parse::<PciAddress>().is_ok() {
            // Named after the bus of its virtio device.
            IommuKind::Virtio
        } else {
            IommuKind::Other
        };
        let devices = host.list(&format!("{UNITS}/{name}/devices"));
        Self {
            kind,
            address_width: capability.and_then(vtd_address_width),
            // Bit 3 of ECAP: IR.
            can_remap_interrupts: extended.map(|ecap| ecap >> 3 & 1 == 1),
            capability: capability.or(amd),
            extended_capability: extended,
            devices: devices
                .ok()
                .flatten()
                .unwrap_or_default()
                .iter()
                .filter_map(|device| device.parse().ok())
                .collect(),
            name,
        }
    }
}

/// The widest page-table layout that the unit offers (SAGAW, bits 12:8: 39, 48
/// and 57 bits from bit 1 on), cut to what it decodes (MGAW, bits 21:16), as
/// Linux chooses it.
fn vtd_address_width(capability: u64) -> Option<u8> {
    let layouts = capability >> 8 & 0x1f;
    let decoded = (capability >> 16 & 0x3f) as u8 + 1;
    let widest = (0..=3u8).rev().find(|level| layouts >> level & 1 == 1)?;
    Some(decoded.min(30 + widest * 9))
}

impl InterruptRemapping {
    /// The kernel names the controllers of remapped interrupts `IR-…`.
    fn read(host: &Host, units: &[IommuUnit]) -> Self {
        let controller = host.find_line("/proc/interrupts", INTERRUPT_LINES, |line| {
            line.split_whitespace()
                .find(|word| word.contains("IO-APIC") || word.contains("PCI-MSI"))
                .map(str::to_owned)
        });
        let (state, evidence) = match controller {
            Ok(Some(name)) if name.starts_with("IR-") => (
                Remapping::On,
                format!("/proc/interrupts names the controller {name}"),
            ),
            Ok(Some(name)) => (
                Remapping::Off,
                format!("/proc/interrupts names the controller {name}, without IR-"),
            ),
            _ => match units
                .iter()
                .find(|unit| unit.can_remap_interrupts == Some(false))
            {
                Some(unit) => (
                    Remapping::Off,
                    format!("{} has no interrupt remapping (ECAP bit 3 is 0)", unit.name),
                ),
                None => (
                    Remapping::Unknown,
                    "neither /proc/interrupts nor sysfs tells".to_owned(),
                ),
            },
        };
        Self { state, evidence }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_width_is_what_linux_chooses() {
        // QEMU's intel-iommu, default and with aw-bits=48.
        assert_eq!(vtd_address_width(0x00d2_008c_2226_0286), Some(39));
        assert_eq!(vtd_address_width(0x00d2_008c_222f_0686), Some(48));
        // Layouts for 57 bits, 46 decoded.
        assert_eq!(vtd_address_width(45 << 16 | 0b1110 << 8), Some(46));
        assert_eq!(vtd_address_width(0), None);
        assert_eq!(vtd_address_width(u64::MAX), Some(57));
    }

    #[test]
    fn arguments_about_the_iommu_are_picked() {
        for argument in [
            "intel_iommu=off",
            "iommu=pt",
            "iommu.passthrough=1",
            "nointremap",
        ] {
            assert!(is_about_iommu(argument), "{argument}");
        }
        assert!(!is_about_iommu("iommufd.allow_unsafe_interrupts=1"));
        assert!(!is_about_iommu("quiet"));
    }
}
