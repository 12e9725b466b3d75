use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use crate::host::{Acs, Function, Group, PortKind, Survey};

/// Why a group has the members that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// It is one device, which the IOMMU tells from all others and which no
    /// other can reach but through the IOMMU.
    Isolated,
    /// It is several, for these causes.
    Shared(Vec<Cause>),
}

/// Why devices share a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// They are conventional PCI: their DMA reaches the IOMMU under the
    /// requester id of a bridge (PCIe to PCI bridge 1.0 §2.3), and on their bus
    /// each sees what the others send.
    RequesterId {
        /// The bridge.
        bridge: PciAddress,
        /// Under which address their DMA comes.
        requester: PciAddress,
        /// The devices.
        devices: Vec<PciAddress>,
    },
    /// A port sends requests from device to device without asking the IOMMU.
    NoAcs {
        /// The port.
        port: PciAddress,
        /// What it is.
        kind: PortKind,
        /// What it lacks.
        acs: Acs,
        /// The members behind it.
        behind: Vec<PciAddress>,
    },
    /// The functions of one device may reach each other inside of it.
    Functions {
        /// The functions.
        functions: Vec<PciAddress>,
        /// That their ACS does not forbid it was seen, not only concluded.
        seen: bool,
    },
    /// Nothing that was seen explains it.
    Unexplained {
        /// Config space could not be read: as root there is more to see, or
        /// once the devices are awake.
        unread: bool,
    },
}

impl Isolation {
    /// Finds out about `group`.
    pub(super) fn judge(survey: &Survey, group: &Group) -> Self {
        if group.members.len() < 2 {
            return Self::Isolated;
        }
        let addresses = group.members.iter().filter_map(|member| member.address);
        let functions: Vec<_> = addresses
            .filter_map(|address| survey.functions.get(&address))
            .collect();
        let mut causes = conventional(survey, &functions);
        let explained: BTreeSet<_> = causes
            .iter()
            .flat_map(|cause| match cause {
                Cause::RequesterId { devices, .. } => devices.clone(),
                _ => Vec::new(),
            })
            .collect();
        causes.extend(ports(survey, &functions));
        causes.extend(slots(&functions, &explained));
        if causes.is_empty() {
            let unread = functions.iter().any(|function| function.routing.is_none());
            causes.push(Cause::Unexplained { unread });
        }
        Self::Shared(causes)
    }
}

/// What is behind bridges to conventional PCI, by bridge.
fn conventional(survey: &Survey, functions: &[&Function]) -> Vec<Cause> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let endpoints = functions.iter().filter(|function| !function.is_bridge());
    for function in endpoints {
        if let Some(bridge) = requester(survey, function) {
            found.entry(bridge).or_default().push(function.address);
        }
    }
    found
        .into_iter()
        .map(|((bridge, requester), devices)| Cause::RequesterId {
            bridge,
            requester,
            devices,
        })
        .collect()
}

/// The bridge that speaks for `function`, and the address that it uses
/// (drivers/pci/search.c, `pci_for_each_dma_alias`). Only conventional PCI has
/// one.
fn requester(survey: &Survey, function: &Function) -> Option<(PciAddress, PciAddress)> {
    if function.is_express() {
        return None;
    }
    let mut speaker = None;
    let mut below = function.address;
    for address in &function.parents {
        let bridge = survey.functions.get(address)?;
        if !bridge.is_express() {
            // A bridge between conventional buses speaks as itself.
            speaker = Some((*address, *address));
            below = *address;
            continue;
        }
        let kind = bridge.routing.and_then(|routing| routing.kind);
        // A bridge whose kind can't be read has conventional PCI behind it, so
        // it is most likely one from PCIe to that.
        if matches!(kind, None | Some(PortKind::ToConventional)) {
            // It takes the bus below it, device 0 and function 0.
            let id = PciAddress::new(below.segment(), below.bus(), 0, 0).ok()?;
            speaker = Some((*address, id));
        }
        break;
    }
    speaker
}

/// The ports above members that were seen to lack ACS.
fn ports(survey: &Survey, functions: &[&Function]) -> Vec<Cause> {
    let mut found: BTreeMap<PciAddress, Vec<PciAddress>> = BTreeMap::new();
    for function in functions {
        for port in &function.parents {
            found.entry(*port).or_default().push(function.address);
        }
    }
    found
        .into_iter()
        .filter_map(|(port, behind)| {
            let routing = survey.functions.get(&port)?.routing?;
            let kind = routing.kind?;
            let needs_it = match kind {
                PortKind::RootPort | PortKind::DownstreamPort => true,
                // It matters there only beside other functions.
                PortKind::UpstreamPort => routing.multifunction,
                _ => false,
            };
            (needs_it && routing.acs.lacks()).then_some(Cause::NoAcs {
                port,
                kind,
                acs: routing.acs,
                behind,
            })
        })
        .collect()
}

/// Functions of one device. VFs are devices of their own, whatever their
/// numbers.
fn slots(functions: &[&Function], explained: &BTreeSet<PciAddress>) -> Vec<Cause> {
    let mut slots: BTreeMap<_, Vec<&Function>> = BTreeMap::new();
    for function in functions {
        let address = function.address;
        if function.physical_function.is_none() && !explained.contains(&address) {
            let slot = (address.segment(), address.bus(), address.device());
            slots.entry(slot).or_default().push(function);
        }
    }
    let shared = slots.into_values().filter(|slot| slot.len() > 1);
    shared
        .filter_map(|slot| {
            let mut routings = slot.iter().map(|function| function.routing);
            let lacks = routings
                .clone()
                .any(|routing| routing.is_some_and(|routing| routing.acs.lacks()));
            let unknown =
                routings.any(|routing| routing.is_none_or(|routing| routing.acs == Acs::Unknown));
            (lacks || unknown).then(|| Cause::Functions {
                functions: slot.iter().map(|function| function.address).collect(),
                seen: lacks,
            })
        })
        .collect()
}

fn names(addresses: &[PciAddress]) -> String {
    let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.join(""),
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequesterId {
                bridge,
                requester,
                devices,
            } => {
                let id = if bridge == requester {
                    "the bridge's address".to_owned()
                } else {
                    format!("the requester id {requester}")
                };
                let (are, whose, apart) = match devices.len() {
                    1 => ("is", "its", "it from what else is there"),
                    _ => ("are", "their", "them apart"),
                };
                write!(
                    f,
                    "{} {are} conventional PCI behind {bridge}, which sends {whose} DMA under {id}, so the IOMMU can't tell {apart}",
                    names(devices)
                )
            }
            Self::NoAcs {
                port,
                kind,
                acs,
                behind,
            } => {
                let kind = match kind {
                    PortKind::RootPort => "the root port",
                    PortKind::DownstreamPort => "the switch's downstream port",
                    _ => "the switch's upstream port",
                };
                write!(
                    f,
                    "{kind} {port} {acs}, so what {} sends to other devices may pass it without the IOMMU",
                    names(behind)
                )
            }
            Self::Functions { functions, seen } => {
                let how = if *seen {
                    "have no ACS between them"
                } else {
                    "don't show ACS between them"
                };
                write!(
                    f,
                    "{} are functions of one device and {how}, so they may reach each other inside of it",
                    names(functions)
                )
            }
            Self::Unexplained { unread: true } => f.write_str(
                "which port keeps them together can't be seen (config space of devices that are awake, as root, would show it)",
            ),
            Self::Unexplained { unread: false } => f.write_str(
                "no port was seen to lack ACS: the IOMMU's driver or the firmware put them together",
            ),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolated => f.write_str("isolated"),
            Self::Shared(causes) => {
                let texts: Vec<_> = causes.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join("; "))
            }
        }
    }
}

#[cfg(test)]
#[path = "isolation_test.rs"]
mod tests;
