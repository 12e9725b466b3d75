use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::device::DeviceName;
use super::held::Owner;
use super::restore::{Outcome, Released};
use crate::host::{GroupId, Holder};

/// Why a device was not bound or given back. Unless [`Undone`](Self::Undone)
/// says otherwise, nothing was changed.
#[derive(Debug, Error)]
pub enum BindError {
    /// The request names nothing.
    #[error("no device is named: give its PCI address, such as 01:00.0 (`lspci -D` lists them)")]
    NothingAsked,
    /// There is no such device.
    #[error("there is no device {device}: see `ls /sys/bus/{bus}/devices`", bus = device.bus())]
    NotThere {
        /// What was asked for.
        device: DeviceName,
    },
    /// A name of a driver that can't be one.
    #[error("'{name}' can't be the name of a driver: see `ls /sys/bus/BUS/drivers`")]
    DriverName {
        /// What was asked for.
        name: String,
    },
    /// The bus lets no driver be chosen.
    #[error(
        "{device} has no driver_override: the bus '{bus}' does not let a driver be chosen for one device", bus = device.bus()
    )]
    NoOverride {
        /// The device.
        device: DeviceName,
    },
    /// There is no saying which driver is for guests on that bus.
    #[error(
        "which driver gives {device} to a guest is not known on its bus: name it with --driver"
    )]
    DriverNeeded {
        /// The device.
        device: DeviceName,
    },
    /// A member of a group whose bus can't be told.
    #[error(
        "'{text}' is in the group, but its bus can't be told: bind the devices by name, without --group"
    )]
    NoBus {
        /// Its bus and name, as far as they could be read.
        text: String,
    },
    /// A bridge is never given to a guest.
    #[error(
        "{device} is a bridge, which VFIO does not take: bind the devices behind it instead (`airlock devices` shows them)"
    )]
    Bridge {
        /// The bridge.
        device: DeviceName,
    },
    /// No IOMMU confines the device.
    #[error("{device} is in no IOMMU group, so that nothing would confine its DMA: {hint}")]
    NoGroup {
        /// The device.
        device: DeviceName,
        /// What to do.
        hint: String,
    },
    /// VFIO made its group for want of an IOMMU.
    #[error(
        "group {group} of {device} is one that VFIO made for a device without an IOMMU (noiommu): nothing confines its DMA. Enable the IOMMU in the firmware and on the kernel's command line"
    )]
    NoIommu {
        /// The device.
        device: DeviceName,
        /// Its group.
        group: GroupId,
    },
    /// The host uses it.
    #[error("{device} {uses}: the host still needs it. End that use, or add `--force {device}`")]
    HostNeeds {
        /// The device.
        device: DeviceName,
        /// What for.
        uses: String,
    },
    /// A PF with VFs, which VFIO's drivers refuse.
    #[error(
        "{device} has {count} VFs, and vfio-pci takes no PF that has any: disable them with --disable-vfs, or bind a VF instead"
    )]
    HasVirtualFunctions {
        /// The PF.
        device: DeviceName,
        /// How many.
        count: usize,
    },
    /// A VF that was to be disabled is at work.
    #[error("the VFs of {device} can't be disabled: {function} {reason}")]
    VirtualFunctionInUse {
        /// The PF.
        device: DeviceName,
        /// The VF.
        function: DeviceName,
        /// What it is doing.
        reason: String,
    },
    /// A process uses the device, or its group.
    #[error("{device} is in use: {}. Stop it first", who(.holders))]
    InUse {
        /// The device.
        device: DeviceName,
        /// Who has its files open.
        holders: Vec<Holder>,
    },
    /// Another airlock has it.
    #[error("{device} is bound already, {owner}: {next}")]
    Taken {
        /// The device.
        device: DeviceName,
        /// By whom and since when.
        owner: Owner,
        /// What to do.
        next: String,
    },
    /// No airlock has it.
    #[error(
        "airlock does not hold {device}, so there is nothing to give back (`airlock bindings` lists what it holds)"
    )]
    NotHeld {
        /// The device.
        device: DeviceName,
    },
    /// Another airlock is binding or giving back at this moment.
    #[error(
        "another airlock ({holder}) is binding or giving back devices, and did not finish in {} s: try again",
        .limit.as_secs()
    )]
    Locked {
        /// Who.
        holder: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The host changed between plan and deed.
    #[error("{device} {found} now, but {planned} when the plan was made: plan again")]
    Changed {
        /// The device.
        device: DeviceName,
        /// What it was.
        planned: String,
        /// What it is.
        found: String,
    },
    /// A read that failed.
    #[error("cannot read {path}: {answer}")]
    Read {
        /// The attribute.
        path: String,
        /// The kernel's answer.
        answer: io::Error,
    },
    /// A write that failed.
    #[error("the kernel refused '{value}' in {path}: {answer}{hint}")]
    Write {
        /// The attribute.
        path: String,
        /// What was written.
        value: String,
        /// The kernel's answer.
        answer: io::Error,
        /// What that means there, from a colon on.
        hint: &'static str,
    },
    /// The kernel did not answer in time.
    #[error(
        "the kernel did not finish with {path} of {device} in {} s: somebody has the device open (`fuser -v /dev/vfio/*` names who), or its driver hangs (`dmesg | tail`). What was begun is undone as soon as it lets go",
        .limit.as_secs()
    )]
    Blocked {
        /// The device.
        device: DeviceName,
        /// The attribute.
        path: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The module of a driver could not be loaded.
    #[error("cannot load module {module}: {reason}")]
    Modprobe {
        /// The module.
        module: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The driver did not take the device.
    #[error("{device} should be on {wanted}, but {found}: {hint}")]
    NotBound {
        /// The device.
        device: DeviceName,
        /// The driver.
        wanted: String,
        /// What it is on instead.
        found: String,
        /// What may be the cause.
        hint: String,
    },
    /// A device that was removed to be found anew was not found.
    #[error(
        "{device} was removed so that the kernel sets its DMA up for the host, and a scan of its bus ({path}) does not find it: see `dmesg | tail`, then look for it on all buses with `echo 1 > /sys/bus/pci/rescan`"
    )]
    NotFoundAnew {
        /// The device.
        device: DeviceName,
        /// What was to find it.
        path: String,
    },
    /// A file of the journal could not be written or read.
    #[error("cannot {action} {path}: {answer}. Without a journal nothing is bound: run as root, on a host with /run", path = .path.display())]
    Journal {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        answer: io::Error,
    },
    /// It failed halfway, and was taken back.
    #[error("{cause}. {}", outcome(.undone))]
    Undone {
        /// What failed.
        cause: Box<BindError>,
        /// What became of each device that had been touched.
        undone: Vec<Released>,
    },
}

fn who(holders: &[Holder]) -> String {
    let texts = holders.iter().map(|holder| {
        let name = if holder.name.is_empty() {
            "a process"
        } else {
            &holder.name
        };
        format!("{name} (pid {}) has {} open", holder.pid, holder.file)
    });
    texts.collect::<Vec<_>>().join(", ")
}

fn outcome(undone: &[Released]) -> String {
    let is_back = |released: &&Released| matches!(released.outcome, Outcome::Back { .. });
    let others = undone.iter().filter(|released| !is_back(released));
    let others: Vec<_> = others.map(ToString::to_string).collect();
    if others.is_empty() {
        return "Everything is as it was".to_owned();
    }
    let again = if undone.iter().all(Released::is_back) {
        ""
    } else {
        ". `airlock release --stale` tries again"
    };
    format!("Not everything is as it was: {}{again}", others.join("; "))
}
