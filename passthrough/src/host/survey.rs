use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::acs::Routing;
use super::group::{GROUPS, Group, GroupId};
use super::holder::Holders;
use super::huge_pages::HugePagePool;
use super::iommu::Iommu;
use super::kernel::Kernel;
use super::node::Node;
use super::pci::{DEVICES, Function, Reset, TakenGroups};
use super::process::Process;
use super::sysfs::Host;
use super::uses::{self, HostUse};
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
    /// What the host itself needs functions for. A boot display is known by the
    /// function.
    pub uses: BTreeMap<PciAddress, BTreeSet<HostUse>>,
    /// The huge pages, those of the smallest size first.
    pub huge_pages: Vec<HugePagePool>,
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
        let taken = TakenGroups::read(host);
        let names = list(DEVICES)?.ok_or(SurveyError::NoPci)?;
        let mut functions: BTreeMap<_, _> = on_all_cpus(&names, |name| {
            let address = name.parse().ok()?;
            Some((address, Function::read(host, address, name, &taken)?))
        });
        let nodes = host.list("/dev/vfio").ok().flatten().unwrap_or_default();
        let names = list(GROUPS)?.unwrap_or_default();
        let groups: BTreeMap<_, _> = on_all_cpus(&names, |name| {
            let id = GroupId(name.parse().ok()?);
            Some((id, Group::read(host, id, &nodes)))
        });
        read_routing(host, &mut functions, groups.values());
        let holders = if nodes.iter().any(|node| node != "vfio") {
            Holders::read(host)
        } else {
            Holders::default()
        };
        let kernel = Kernel::read(host);
        Ok(Self {
            process: Process::read(host),
            kvm: Node::read(host, "/dev/kvm"),
            vfio: VfioPieces::read(host, &kernel.release),
            kernel,
            uses: uses::read(host),
            huge_pages: HugePagePool::read(host),
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

    /// How `function` can be reset without its neighbours. The kernel makes its
    /// list of ways when it finds the function, and leaves a reset of the bus
    /// on it when it finds a neighbour afterwards, though it refuses that from
    /// then on (drivers/pci/pci.c, `pci_parent_bus_reset`).
    pub fn reset_of(&self, function: &Function) -> Reset {
        let mut reset = function.reset.clone();
        let mut others = self.functions.values();
        let bus = |function: &Function| (function.address.segment(), function.address.bus());
        if others.any(|other| other.address != function.address && bus(other) == bus(function)) {
            let ways = reset.methods.len();
            reset.methods.retain(|way| !way.ends_with("bus"));
            reset.possible &= ways == 0 || !reset.methods.is_empty();
        }
        reset
    }

    /// The endpoints that a reset of `function`'s bus hits besides it; nothing
    /// when it is on a root bus, which can't be reset.
    pub fn reset_along(&self, function: &Function) -> Option<Vec<PciAddress>> {
        let mut hit = self.endpoints_behind(*function.parents.first()?);
        hit.retain(|other| *other != function.address);
        Some(hit)
    }

    fn addresses(&self, wanted: impl Fn(&Function) -> bool) -> Vec<PciAddress> {
        let functions = self.functions.values();
        functions
            .filter(|function| wanted(function))
            .map(|function| function.address)
            .collect()
    }
}

/// What `read` makes of `names`. Each takes many short waits for the kernel, so
/// large hosts are read by several threads.
fn on_all_cpus<K: Ord + Send, V: Send>(
    names: &[String],
    read: impl Fn(&String) -> Option<(K, V)> + Sync,
) -> BTreeMap<K, V> {
    /// As many take longer to read than a thread to start.
    const WORTH_A_THREAD: usize = 256;
    const MAX_THREADS: usize = 8;
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (names.len() / WORTH_A_THREAD).clamp(1, cpus.min(MAX_THREADS));
    if threads == 1 {
        return names.iter().filter_map(read).collect();
    }
    let read = &read;
    thread::scope(|scope| {
        let parts: Vec<_> = names
            .chunks(names.len().div_ceil(threads))
            .map(|part| {
                let work = move || part.iter().filter_map(read).collect::<Vec<_>>();
                // Where no thread can be had, this one does the work.
                let name = thread::Builder::new().name("survey".to_owned());
                name.spawn_scoped(scope, work).map_err(|_| part)
            })
            .collect();
        parts
            .into_iter()
            .flat_map(|part| match part {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(part) => part.iter().filter_map(read).collect(),
            })
            .collect()
    })
}

/// Looks at what keeps functions apart, or does not, where groups are shared:
/// at their members, and the bridges above those. Functions that sleep are not
/// woken for it.
fn read_routing<'a>(
    host: &Host,
    functions: &mut BTreeMap<PciAddress, Function>,
    groups: impl Iterator<Item = &'a Group>,
) {
    let members: BTreeSet<_> = groups
        .filter(|group| group.members.len() > 1)
        .flat_map(|group| group.members.iter().filter_map(|member| member.address))
        .collect();
    let parents: Vec<_> = members
        .iter()
        .filter_map(|member| functions.get(member))
        .flat_map(|function| function.parents.clone())
        .collect();
    for address in members.into_iter().chain(parents) {
        if let Some(function) = functions.get_mut(&address)
            && function.routing.is_none()
            && function.power_state.as_deref() == Some("D0")
        {
            function.routing = Routing::read(host, &address.to_string());
        }
    }
}
