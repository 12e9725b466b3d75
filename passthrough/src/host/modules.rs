use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pci::{Function, Ids};
use super::sysfs::{Host, clean};

/// The modules that VFIO is made of, and KVM's.
const WANTED: [&str; 5] = ["vfio", "vfio_pci", "vfio_iommu_type1", "iommufd", "kvm"];

/// Whether the running kernel has a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleState {
    /// It is loaded, or part of the kernel.
    Present,
    /// It is on disk: modprobe can load it.
    Loadable,
    /// The kernel was built or installed without it.
    Absent,
    /// The kernel's list of modules can't be read, as in a container.
    Unknown,
}

/// The kernel's modules, as far as VFIO goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modules {
    /// `vfio`, `vfio_pci`, `vfio_iommu_type1`, `iommufd` and `kvm`.
    pub states: BTreeMap<String, ModuleState>,
    /// The VFIO drivers for certain devices: what modules.alias says.
    pub variants: Vec<VariantAlias>,
}

/// A line of modules.alias for a VFIO driver (linux/pci.h,
/// `PCI_DRIVER_OVERRIDE_DEVICE_VFIO`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantAlias {
    /// What it fits, with `*` for anything: `v000015B3d0000101Esv*sd*bc*sc*i*`.
    pub pattern: String,
    /// The module, such as `mlx5_vfio_pci`.
    pub module: String,
}

impl Modules {
    /// The state of `module`; `-` and `_` are the same.
    pub fn state(&self, module: &str) -> ModuleState {
        let state = self.states.get(&underscored(module));
        state.copied().unwrap_or(ModuleState::Unknown)
    }

    /// The module of the VFIO driver that fits `function` best: that whose
    /// pattern leaves the least open. None when only the generic one fits.
    pub fn variant_for(&self, function: &Function) -> Option<&str> {
        let name = alias(function.ids.as_ref()?);
        let fitting = self.variants.iter().filter(|v| fits(&v.pattern, &name));
        let best = fitting.min_by_key(|variant| variant.pattern.matches('*').count())?;
        (underscored(&best.module) != "vfio_pci").then_some(best.module.as_str())
    }

    pub(super) fn read(host: &Host, release: &str) -> Self {
        let mut modules = Self::default();
        for name in WANTED {
            if host.exists(&format!("/sys/module/{name}")).unwrap_or(false) {
                modules.states.insert(name.to_owned(), ModuleState::Present);
            }
        }
        if release.is_empty() || release.contains('/') {
            return modules;
        }
        let folder = format!("/lib/modules/{release}");
        if modules.states.len() < WANTED.len() {
            modules.look_up(host, &folder);
        }
        let variants = &mut modules.variants;
        // Without the file there are no variants to prefer.
        let _ = host.lines(&format!("{folder}/modules.alias"), |line| {
            if let Some(line) = line.strip_prefix(b"alias vfio_pci:") {
                let line = clean(line);
                if let Some((pattern, module)) = line.split_once(' ') {
                    variants.push(VariantAlias {
                        pattern: pattern.to_owned(),
                        module: module.trim().to_owned(),
                    });
                }
            }
        });
        modules
    }

    /// Finds the modules that are not loaded in the lists of the kernel.
    fn look_up(&mut self, host: &Host, folder: &str) {
        let mut known = false;
        for (file, found) in [
            ("modules.dep", ModuleState::Loadable),
            // A module without parameters has no folder in sysfs then.
            ("modules.builtin", ModuleState::Present),
        ] {
            let read = host.lines(&format!("{folder}/{file}"), |line| {
                let path = line.split(|byte| *byte == b':').next().unwrap_or_default();
                let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                let name = name.split(|byte| *byte == b'.').next().unwrap_or_default();
                let wanted = WANTED.iter().find(|wanted| same(wanted, name));
                if let Some(wanted) = wanted
                    && self.states.get(*wanted) != Some(&ModuleState::Present)
                {
                    self.states.insert((*wanted).to_owned(), found);
                }
            });
            known |= matches!(read, Ok(Some(())));
        }
        for name in WANTED {
            let state = self.states.entry(name.to_owned());
            state.or_insert(if known {
                ModuleState::Absent
            } else {
                ModuleState::Unknown
            });
        }
    }
}

fn same(module: &str, name: &[u8]) -> bool {
    let name = name
        .iter()
        .map(|byte| if *byte == b'-' { b'_' } else { *byte });
    name.eq(module.bytes())
}

fn underscored(module: &str) -> String {
    module.replace('-', "_")
}

/// The function's name in modules.alias, behind `vfio_pci:`.
fn alias(ids: &Ids) -> String {
    let (class, sub_class, interface) = (ids.class >> 16, ids.class >> 8 & 0xff, ids.class & 0xff);
    format!(
        "v{:08X}d{:08X}sv{:08X}sd{:08X}bc{class:02X}sc{sub_class:02X}i{interface:02X}",
        ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem_device
    )
}

/// Whether `pattern` describes the whole of `name`.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is as good as any: what follows has more room then.
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The name of the driver of `module`, as `driver_override` wants it: one that
/// is loaded, or else the module's, which all but the generic one share.
pub(super) fn driver_of(module: &str, loaded: &[String]) -> String {
    let same = |driver: &&String| underscored(driver) == underscored(module);
    match loaded.iter().find(same) {
        Some(driver) => driver.clone(),
        None if underscored(module) == "vfio_pci" => "vfio-pci".to_owned(),
        None => underscored(module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "v000015B3d0000101Esv000015B3sd00000001bc02sc00i00";

    #[test]
    fn patterns_fit_as_modprobe_has_it() {
        for (pattern, expected) in [
            ("v*d*sv*sd*bc*sc*i*", true),
            ("v000015B3d0000101Esv*sd*bc*sc*i*", true),
            ("v000015B3d*sv*sd*bc02sc00i*", true),
            (NAME, true),
            ("*", true),
            ("", false),
            ("v000015B3d0000101Fsv*sd*bc*sc*i*", false),
            ("v000015B3d0000101Esv*sd*bc01sc*i*", false),
            ("v*i01", false),
            ("v000015B3", false),
        ] {
            assert_eq!(fits(pattern, NAME), expected, "{pattern}");
        }
        assert!(fits("a*ab", "aab"), "the end may overlap nothing before it");
        assert!(!fits("ab*b", "ab"));
    }

    #[test]
    fn drivers_have_their_module_s_name_but_for_one() {
        assert_eq!(driver_of("vfio_pci", &[]), "vfio-pci");
        assert_eq!(driver_of("pds-vfio-pci", &[]), "pds_vfio_pci");
        let loaded = ["qat-vfio-pci".to_owned()];
        assert_eq!(driver_of("qat_vfio_pci", &loaded), "qat-vfio-pci");
    }
}
