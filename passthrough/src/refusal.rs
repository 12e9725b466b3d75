//! What the kernel means when it refuses a device: the one place where an
//! errno becomes words.

use std::fmt;
use std::io;

use crate::attach::Step;

/// A refusal in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    /// What was tried, as a verb.
    pub(crate) action: &'static str,
    /// Why the kernel would not.
    pub(crate) cause: &'static str,
    /// What the user can do about it.
    pub(crate) next: &'static str,
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause, self.next)
    }
}

impl Step {
    fn action(self) -> &'static str {
        match self {
            Self::OpenContainer
            | Self::OpenGroup
            | Self::OpenDevice
            | Self::OpenIommufd
            | Self::OpenCdev => "open",
            Self::CheckContainer => "use",
            Self::NotViable | Self::ClaimGroup | Self::BindIommufd => "claim",
            Self::SetIommu | Self::AttachIoas => "attach",
            Self::AllocIoas => "make an address space in",
            Self::AskLimits => "ask for the addresses of",
            Self::TellKvm => "tell KVM of",
            Self::DescribeDevice => "read the properties of",
        }
    }
}

/// What it means that `step` was refused with `source`. Complete: what is not
/// known by name gets the way to the kernel's own words.
///
/// From drivers/vfio/{group,container,vfio_main,vfio_iommu_type1}.c,
/// drivers/vfio/pci/vfio_pci_core.c and drivers/iommu/iommu.c of Linux 5.19
/// and later; up to 5.18 a status that is not viable stands for most of them.
pub(crate) fn explain(step: Step, source: &io::Error) -> Meaning {
    let (cause, next) = match source.raw_os_error() {
        Some(errno) => by_step(step, errno).or_else(|| by_errno(errno)),
        // An answer that was no error, but not the one that is needed.
        None => by_step(step, 0),
    }
    .unwrap_or((
        "the kernel refuses for a reason that has no name here",
        "look for its own words with `dmesg | tail`",
    ));
    Meaning {
        action: step.action(),
        cause,
        next,
    }
}

type Words = (&'static str, &'static str);

/// What an errno means at one step only.
fn by_step(step: Step, errno: i32) -> Option<Words> {
    const PERMISSION: Words = (
        "this user, or the container that it is in, may not open it",
        "run as root, or give the user access with chown or a udev rule",
    );
    const OTHER_OWNER: Words = (
        "a host driver, or another process, owns the DMA of a device in the group",
        "`airlock check` names it; bind it to vfio-pci or unbind it",
    );
    const UNSAFE_INTERRUPTS: Words = (
        "interrupts of the group are not isolated, so that a device could forge interrupts of the host (no interrupt remapping), or the firmware keeps memory mapped for it (RMRR)",
        "enable interrupt remapping in the firmware and on the kernel command line",
    );
    Some(match (step, errno) {
        (Step::OpenIommufd, libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
            "the host's iommufd is not loaded",
            "run `modprobe iommufd`, or use --iommu type1",
        ),
        (Step::OpenIommufd | Step::OpenCdev, libc::EACCES | libc::EPERM) => PERMISSION,
        (Step::OpenCdev, libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
            "VFIO has no file of its own for the device",
            "bind the device to vfio-pci, or use --iommu type1 if this kernel gives devices only by group",
        ),
        (Step::BindIommufd, libc::EPERM) => (
            "a host driver, or another owner's iommufd or group, owns the DMA of a device in the group",
            "`airlock check` names it; bind it to vfio-pci, unbind it, or stop the other owner (`fuser -v /dev/vfio/* /dev/vfio/devices/* /dev/iommu` names it)",
        ),
        (Step::BindIommufd, libc::EBUSY) => (
            "another process has the device, or its group in a container",
            "stop it first (`fuser -v /dev/vfio/* /dev/vfio/devices/*` names it)",
        ),
        (Step::BindIommufd, libc::EACCES) => (
            "it is a virtual function whose physical function is in VFIO too, and the token is missing or another one",
            "give it the token of its physical function (vf-token=UUID), or give the physical function back to its host driver",
        ),
        (Step::BindIommufd, libc::EINVAL) => (
            "the device is bound to an iommufd already, is a virtual function that wants no token, or this kernel takes no token by this way (Linux 6.18 does)",
            "leave the token out, or use --iommu type1",
        ),
        (Step::BindIommufd, libc::EAGAIN) => (
            "another program is resetting or configuring the device",
            "try again",
        ),
        (Step::BindIommufd, libc::ENODEV | libc::EIO) => (
            "the device does not answer, or just left the host",
            "see `dmesg | tail`; power-cycle the device or the host",
        ),
        (Step::AttachIoas, libc::EPERM) => UNSAFE_INTERRUPTS,
        (Step::AttachIoas, libc::EINVAL) => (
            "the device's IOMMU does not work with that of the devices before it",
            "assign the devices to different guests",
        ),
        (Step::AttachIoas, libc::EADDRINUSE) => (
            "addresses that are mapped already are reserved for the device",
            "assign the devices to different guests",
        ),
        (Step::AskLimits, _) => (
            "the kernel does not tell what the IOMMU can map",
            "look for its own words with `dmesg | tail`",
        ),
        (Step::OpenContainer, libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            ("the host's VFIO is not loaded", "run `modprobe vfio-pci`")
        }
        (Step::OpenContainer | Step::OpenGroup, libc::EACCES | libc::EPERM) => PERMISSION,
        (Step::CheckContainer, _) => (
            "the host's VFIO has no type1 IOMMU",
            "run `modprobe vfio_iommu_type1`",
        ),
        (Step::OpenGroup, libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
            "no device of the group is on a VFIO driver",
            "bind the device to vfio-pci",
        ),
        (Step::OpenGroup, libc::EBUSY) => (
            "another process uses the group, or one of its devices",
            "stop it first (`fuser -v` names it)",
        ),
        (Step::NotViable, _) | (Step::ClaimGroup, libc::EPERM) => OTHER_OWNER,
        (Step::ClaimGroup, libc::EBUSY) => (
            "the group's DMA is claimed already, by another process or through iommufd",
            "stop it first (`fuser -v /dev/vfio/* /dev/vfio/devices/* /dev/iommu` names it)",
        ),
        (Step::ClaimGroup, libc::EINVAL) => (
            "the group is in a container already, or the firmware keeps memory mapped for one of its devices (RMRR)",
            "see `dmesg | grep -i '1:1 IOMMU'`; turn shared memory of this slot off in the firmware's setup",
        ),
        (Step::ClaimGroup | Step::SetIommu, libc::ENODEV) => (
            "the group has lost its IOMMU or its last device",
            "check again: the host was changing",
        ),
        (Step::SetIommu, libc::EPERM) => UNSAFE_INTERRUPTS,
        (Step::SetIommu, libc::EINVAL) => (
            "the group's IOMMU does not work with type1, or not together with that of the groups before it",
            "assign the devices to different guests",
        ),
        (Step::SetIommu, libc::EBUSY) => (
            "the group's IOMMU is set up for something else",
            "stop the other user of its devices first",
        ),
        (Step::TellKvm, _) => (
            "KVM does not take it",
            "check that kernel modules kvm and vfio are of the same kernel; see `dmesg | tail`",
        ),
        (Step::OpenDevice, libc::ENODEV) => (
            "the device is not on a VFIO driver, or just left the host",
            "bind it to vfio-pci",
        ),
        (Step::OpenDevice, libc::EACCES) => (
            "it is a virtual function whose physical function is in VFIO too, and the token is missing or another one",
            "give it the token of its physical function (vf-token=UUID), or give the physical function back to its host driver",
        ),
        (Step::OpenDevice, libc::EAGAIN) => (
            "another program is resetting or configuring the device",
            "try again",
        ),
        (Step::OpenDevice, libc::EBUSY) => (
            "the device is in use",
            "stop its user first (`fuser -v` names it)",
        ),
        (Step::OpenDevice, libc::EINVAL) => (
            "the group has no address space, or the device is a virtual function that wants no token",
            "check again: the host was changing",
        ),
        (Step::OpenDevice | Step::DescribeDevice, libc::EIO | libc::ENODEV | libc::ENOTTY) => (
            "the device does not answer",
            "see `dmesg | tail`; power-cycle the device or the host",
        ),
        _ => return None,
    })
}

/// What an errno means at any step.
fn by_errno(errno: i32) -> Option<Words> {
    Some(match errno {
        libc::ENOMEM => (
            "the host has no memory left for page tables, or this process may lock no more",
            "free memory, or raise the limit with `ulimit -l`",
        ),
        libc::EMFILE => (
            "this process has too many files open",
            "raise the limit with `ulimit -n`",
        ),
        libc::ENFILE => (
            "the host has too many files open",
            "raise /proc/sys/fs/file-max",
        ),
        libc::EACCES | libc::EPERM => (
            "this user may not do that",
            "run as root, and look at `dmesg | tail` for a security module's refusal",
        ),
        libc::ENOTTY | libc::EBADF | libc::EBADFD => (
            "the kernel has no VFIO of this kind there",
            "check that the file is VFIO's own (`ls -l /dev/vfio`), made by the kernel that runs",
        ),
        libc::ENODEV | libc::ENXIO | libc::ENOENT => (
            "the device just left the host",
            "check again with `airlock check`",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 15] = [
        Step::OpenContainer,
        Step::CheckContainer,
        Step::OpenGroup,
        Step::NotViable,
        Step::ClaimGroup,
        Step::SetIommu,
        Step::TellKvm,
        Step::OpenDevice,
        Step::OpenIommufd,
        Step::AllocIoas,
        Step::OpenCdev,
        Step::BindIommufd,
        Step::AttachIoas,
        Step::DescribeDevice,
        Step::AskLimits,
    ];

    fn words(step: Step, errno: i32) -> String {
        explain(step, &io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn every_step_and_errno_has_words() {
        for step in STEPS {
            for errno in 0..140 {
                let meaning = explain(step, &io::Error::from_raw_os_error(errno));
                assert!(!meaning.action.is_empty() && !meaning.cause.is_empty());
                assert!(!meaning.next.is_empty());
            }
        }
        let unknown = explain(Step::OpenGroup, &io::Error::other("?"));
        assert!(unknown.next.contains("dmesg"));
    }

    #[test]
    fn one_errno_means_different_things_at_different_steps() {
        for (step, errno, expected) in [
            (Step::OpenContainer, libc::ENOENT, "modprobe vfio-pci"),
            (Step::OpenGroup, libc::EPERM, "may not open"),
            (Step::NotViable, libc::EPERM, "owns the DMA"),
            (Step::ClaimGroup, libc::EPERM, "owns the DMA"),
            (Step::SetIommu, libc::EPERM, "interrupt remapping"),
            (Step::OpenDevice, libc::EPERM, "security module"),
            (Step::OpenGroup, libc::EBUSY, "another process"),
            (Step::ClaimGroup, libc::EBUSY, "claimed already"),
            (Step::OpenDevice, libc::EBUSY, "in use"),
            (Step::ClaimGroup, libc::EINVAL, "RMRR"),
            (Step::SetIommu, libc::EINVAL, "type1"),
            (Step::OpenGroup, libc::ENODEV, "no device of the group"),
            (Step::ClaimGroup, libc::ENODEV, "lost"),
            (Step::OpenDevice, libc::ENODEV, "not on a VFIO driver"),
            (Step::DescribeDevice, libc::ENODEV, "does not answer"),
            (Step::OpenDevice, libc::EACCES, "token"),
            (Step::OpenIommufd, libc::ENOENT, "modprobe iommufd"),
            (Step::OpenCdev, libc::ENOENT, "--iommu type1"),
            (Step::OpenCdev, libc::EACCES, "chown"),
            (Step::BindIommufd, libc::EPERM, "owns the DMA"),
            (Step::BindIommufd, libc::EACCES, "vf-token="),
            (Step::AttachIoas, libc::EPERM, "interrupt remapping"),
            (Step::AskLimits, libc::ENOTTY, "dmesg"),
            (Step::OpenGroup, libc::EACCES, "chown"),
            (Step::SetIommu, libc::ENOMEM, "memory"),
            (Step::OpenDevice, libc::EMFILE, "ulimit -n"),
            (Step::OpenDevice, libc::EAGAIN, "try again"),
        ] {
            let text = words(step, errno);
            assert!(text.contains(expected), "{step:?} {errno}: {text}");
        }
    }
}
