use std::collections::BTreeMap;
use std::io;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::group::{GROUPS, Group, GroupId};
use super::holder::Holders;
use super::iommu::Iommu;
use super::kernel::Kernel;
use super::node::Node;
use super::pci::{DEVICES, Function};
use super::process::Process;
use super::sysfs::Host;
use super::vfio::VfioPieces;

/// Everything that the checks need to know about the host, as it was at one
/// moment. Plain data: it can be stored, sent, and made up in a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// The running kernel.
    pub kernel: Kernel,
    /// This process.
    pub process: Process,
    /// `/dev/kvm`.
    pub kvm: Node,
    /// The pieces of VFIO.
    pub vfio: VfioPieces,
    /// The IOMMU.
    pub iommu: Iommu,
    /// Every PCI function. Those in segments above ffff, which only Intel's
    /// VMD makes and which are never assigned by themselves, are left out.
    pub functions: BTreeMap<PciAddress, Function>,
    /// Every IOMMU group.
    pub groups: BTreeMap<GroupId, Group>,
    /// Who holds VFIO's files. Looked for only when there is one to hold.
    pub holders: Holders,
}

/// Why the host could not be surveyed at all. What is missing or unreadable
/// in part stands in the survey instead.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// No PCI in sysfs.
    #[error(
        "there is no /sys/bus/pci/devices: either sysfs is not mounted (mount -t sysfs sysfs /sys) or this kernel has no PCI"
    )]
    NoPci,
    /// A folder that everything hangs on could not be listed.
    #[error("cannot list {path}: run where sysfs can be read")]
    List {
        /// The folder.
        path: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

impl Survey {
    /// Reads the host. Takes no lock and changes nothing: what comes and goes
    /// meanwhile is seen or not.
    ///
    /// # Errors
    /// [`SurveyError`] when sysfs does not list PCI functions or groups.
    pub fn read(host: &Host) -> Result<Self, SurveyError> {
        let list = |path: &str| {
            host.list(path).map_err(|source| SurveyError::List {
                path: path.to_owned(),
                source,
            })
        };
        let functions = list(DEVICES)?
            .ok_or(SurveyError::NoPci)?
            .iter()
            .filter_map(|name| Some((name.parse().ok()?, name)))
            .filter_map(|(address, name)| Some((address, Function::read(host, address, name)?)))
            .collect();
        let nodes = host.list("/dev/vfio").ok().flatten().unwrap_or_default();
        let groups = list(GROUPS)?
            .unwrap_or_default()
            .iter()
            .filter_map(|name| name.parse().ok().map(GroupId))
            .map(|id| (id, Group::read(host, id, &nodes)))
            .collect();
        let holders = if nodes.iter().any(|node| node != "vfio") {
            Holders::read(host)
        } else {
            Holders::default()
        };
        Ok(Self {
            kernel: Kernel::read(host),
            process: Process::read(host),
            kvm: Node::read(host, "/dev/kvm"),
            vfio: VfioPieces::read(host),
            iommu: Iommu::read(host),
            functions,
            groups,
            holders,
        })
    }

    /// The VFs that `physical` has made.
    pub fn virtual_functions(&self, physical: PciAddress) -> Vec<PciAddress> {
        self.addresses(|function| function.physical_function == Some(physical))
    }

    /// The endpoints somewhere behind `bridge`.
    pub fn endpoints_behind(&self, bridge: PciAddress) -> Vec<PciAddress> {
        self.addresses(|function| !function.is_bridge() && function.parents.contains(&bridge))
    }

    fn addresses(&self, wanted: impl Fn(&Function) -> bool) -> Vec<PciAddress> {
        let functions = self.functions.values();
        functions
            .filter(|function| wanted(function))
            .map(|function| function.address)
            .collect()
    }
}
