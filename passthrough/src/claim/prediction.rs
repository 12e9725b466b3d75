//! What the plan foretells of the kernel's answers.

use crate::host::{GroupId, NodeState, Remapping, Survey};
use crate::plan::{Backend, Check, Item, Outcome, Plan, Subject};

/// What the kernel should answer, if the plan is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    /// It hands over.
    Yes,
    /// It refuses.
    No,
    /// The plan does not say, or says no for a reason that the kernel does not
    /// have at this point.
    Open,
}

impl Prediction {
    /// Whether `granted` is the other answer.
    pub(super) fn is_refuted_by(self, granted: bool) -> bool {
        match self {
            Self::Yes => !granted,
            Self::No => granted,
            Self::Open => false,
        }
    }

    fn from(items: impl Iterator<Item = Self>) -> Self {
        items.fold(Self::Yes, |all, one| match (all, one) {
            // A sure no stays one, whatever else is not known.
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Open, _) | (_, Self::Open) => Self::Open,
            _ => Self::Yes,
        })
    }
}

/// What the plan foretells of the container.
pub(super) fn of_container(plan: &Plan) -> Prediction {
    if plan.backend == Backend::Iommufd {
        // The plan has not looked at it.
        return Prediction::Open;
    }
    let items = plan.items.iter();
    Prediction::from(items.filter_map(|item| match (item.check, item.outcome) {
        (Check::Container, Outcome::Failed) => Some(Prediction::No),
        (Check::Container, Outcome::Warning) => Some(Prediction::Open),
        _ => None,
    }))
}

/// What the plan foretells of taking `group` for the devices of the plan that
/// are in it.
pub(super) fn of_group(survey: &Survey, plan: &Plan, group: GroupId) -> Prediction {
    let concerns = |item: &&Item| match item.subject {
        Subject::Group(id) => id == group,
        Subject::Device(device) => survey
            .functions
            .get(&device)
            .is_some_and(|function| function.group == Some(group)),
        _ => false,
    };
    // A claim goes by the group, also where the device's own file will be used.
    let file = &survey.groups.get(&group).map(|group| &group.node.state);
    let by_file = match (plan.backend, file) {
        (Backend::Iommufd, Some(NodeState::Missing | NodeState::Denied { .. })) => Prediction::Open,
        _ => Prediction::Yes,
    };
    let items = plan.items.iter().filter(concerns).filter_map(of_item);
    let parameter = survey.vfio.unsafe_interrupts == Some(true);
    let interrupts = match survey.iommu.interrupt_remapping.state {
        _ if parameter => Prediction::Yes,
        Remapping::On => Prediction::Yes,
        Remapping::Off => Prediction::No,
        Remapping::Unknown => Prediction::Open,
    };
    Prediction::from(items.chain([interrupts, by_file]))
}

fn of_item(item: &Item) -> Option<Prediction> {
    if item.outcome != Outcome::Failed {
        return None;
    }
    match item.check {
        Check::Isolation
        | Check::Driver
        | Check::Viability
        | Check::ReservedRegions
        | Check::GroupFile
        | Check::InUse => Some(Prediction::No),
        // The plan is stricter than the kernel there, or does not know.
        Check::Assignable | Check::Readable => Some(Prediction::Open),
        _ => None,
    }
}

/// What the plan foretells of the guest's addresses.
pub(super) fn of_memory(plan: &Plan) -> Prediction {
    let mut items = plan.items.iter();
    let failed = items.any(|item| {
        let about = matches!(item.check, Check::AddressWidth | Check::GuestMemory);
        about && item.outcome == Outcome::Failed
    });
    if failed {
        Prediction::No
    } else {
        Prediction::Yes
    }
}
