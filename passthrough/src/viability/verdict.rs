use devices::pci::PciAddress;
use serde::{Deserialize, Serialize};

use super::isolation::Isolation;
use super::member::{Member, MemberState};
use super::regime::Regime;
use super::remedy::Remedy;
use crate::host::{GroupId, Survey};

/// Whether a group can be given to a guest, and what would have to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The group.
    pub group: GroupId,
    /// The rule that was applied.
    pub regime: Regime,
    /// Nothing confines the DMA of its devices: VFIO made the group for a device
    /// without an IOMMU. Never viable.
    pub noiommu: bool,
    /// Why its members are together.
    pub isolation: Isolation,
    /// Every member and its state.
    pub members: Vec<Member>,
    /// The fewest changes that make the group viable; none when it is. One for
    /// each member that blocks: nothing less will do, and the others may stay
    /// as they are.
    pub changes: Vec<Change>,
}

/// A change to one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The member's name in sysfs.
    pub device: String,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done with a member that blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Bind it to vfio-pci, or the variant of it that fits: it then goes to the guest's process with the rest
    /// and can be reset with them.
    BindToVfio(PciAddress),
    /// Take its driver away: a bridge, which VFIO would refuse.
    Unbind(PciAddress),
    /// Take its driver away, on a bus other than PCI.
    UnbindOther,
    /// Find out what it is doing first.
    Inspect,
}

impl Verdict {
    /// Judges `group`; nothing when the survey does not have it.
    pub fn judge(survey: &Survey, group: GroupId) -> Option<Self> {
        let regime = Regime::of(&survey.kernel);
        let found = survey.groups.get(&group)?;
        let members: Vec<_> = found
            .members
            .iter()
            .map(|member| Member::judge(survey, found, member, regime))
            .collect();
        let changes = members
            .iter()
            .filter(|member| member.state.blocks())
            .map(|member| Change {
                device: member.name.clone(),
                action: action(survey, member),
            })
            .collect();
        Some(Self {
            group,
            regime,
            noiommu: found.is_noiommu(),
            isolation: Isolation::judge(survey, found),
            members,
            changes,
        })
    }

    /// Whether the kernel will let the group be taken: no member blocks. A
    /// group of which no member could be seen is not viable, nor one that no
    /// IOMMU confines.
    pub fn is_viable(&self) -> bool {
        !self.noiommu && !self.members.is_empty() && self.blocking().next().is_none()
    }

    /// The members in the way.
    pub fn blocking(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.state.blocks())
    }
}

fn action(survey: &Survey, member: &Member) -> Action {
    match (&member.state, member.address) {
        (MemberState::Unknown { .. }, _) => Action::Inspect,
        (_, None) => Action::UnbindOther,
        (_, Some(address)) => {
            let function = survey.functions.get(&address);
            if function.is_some_and(|function| function.is_bridge()) {
                Action::Unbind(address)
            } else {
                Action::BindToVfio(address)
            }
        }
    }
}

impl Change {
    /// How to carry the change out on the host of `survey`.
    pub fn remedy(&self, survey: &Survey) -> Remedy {
        match self.action {
            Action::BindToVfio(device) => Remedy::bind_to_vfio(survey, device),
            Action::Unbind(device) => Remedy::unbind(survey, device),
            Action::UnbindOther => Remedy::advice(format!(
                "take '{}' from its driver, by the unbind file of that driver in /sys/bus",
                self.device
            )),
            Action::Inspect => Remedy::advice(format!(
                "check again as root; if that does not help, look at '{}' in sysfs",
                self.device
            )),
        }
    }
}
