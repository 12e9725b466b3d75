use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use devices::pci::PciAddress;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_PCI_HOT_RESET_FLAG_DEV_ID, VFIO_TYPE, vfio_pci_dependent_device,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

use super::capability::{Answer, u32_at};
use crate::vfio::{Affected, Holder, HotReset};

ioctl_io_nr!(
    VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
    VFIO_TYPE as u32,
    VFIO_BASE + 12
);
ioctl_io_nr!(VFIO_DEVICE_PCI_HOT_RESET, VFIO_TYPE as u32, VFIO_BASE + 13);

/// Bytes of `struct vfio_pci_hot_reset_info`, and of `struct vfio_pci_hot_reset`,
/// before their lists.
const HEAD: u32 = 3 * size_of::<u32>() as u32;
const FLAGS: usize = 4;
const COUNT: usize = 8;
const ENTRY: u32 = size_of::<vfio_pci_dependent_device>() as u32;
/// `VFIO_PCI_DEVID_OWNED`: nobody has it open, and nobody else may.
const DEVID_OWNED: u32 = 0;
/// `VFIO_PCI_DEVID_NOT_OWNED`.
const DEVID_NOT_OWNED: u32 = u32::MAX;
/// How often the list is asked for while devices come and go.
const RETRIES: u32 = 4;

/// A group that this process has open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnedGroup<'a> {
    pub(crate) id: u32,
    /// How many of its devices are open here.
    pub(crate) open: usize,
    pub(crate) file: BorrowedFd<'a>,
}

/// What proves to the kernel that this process owns what a hot reset hits. It
/// is another thing for each way in which a device can be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ownership<'a> {
    /// Through its group: the files of the groups that are open.
    Groups(&'a [OwnedGroup<'a>]),
    /// Through its own file: the iommufd that it is bound to, which the kernel
    /// knows.
    Iommufd,
}

/// What a hot reset of the device would hit, itself included
/// (`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`); nothing when its bus can't be reset.
///
/// The kernel does not say which devices of an open group are open. Of a group
/// with two or more open ones all count as open.
///
/// # Errors
/// The kernel's, besides `ENODEV`: `EPERM` when there is one that no IOMMU
/// serves.
pub(crate) fn hot_reset_info(
    device: BorrowedFd<'_>,
    ownership: &Ownership<'_>,
) -> io::Result<Option<HotReset>> {
    let list = match list(device) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        list => list?,
    };
    let affected = list.into_iter().map(|entry| Affected {
        device: entry.device,
        holder: holder(entry.id, ownership),
    });
    Ok(Some(HotReset {
        affected: affected.collect(),
    }))
}

/// Resets the device's bus or slot, and with it all that
/// [`hot_reset_info`] tells (`VFIO_DEVICE_PCI_HOT_RESET`).
///
/// # Errors
/// The kernel's: `EINVAL` when one of them is not this process's or has no
/// VFIO driver, `EBUSY` or `EAGAIN` when somebody uses one at this moment.
pub(crate) fn hot_reset(device: BorrowedFd<'_>, ownership: &Ownership<'_>) -> io::Result<()> {
    let files = match ownership {
        Ownership::Iommufd => Vec::new(),
        // It takes no more files than there are devices: only those of groups
        // that are hit.
        Ownership::Groups(groups) => {
            let hit = list(device)?;
            let is_hit =
                |group: &&OwnedGroup<'_>| hit.iter().any(|entry| entry.id == Id::Group(group.id));
            groups
                .iter()
                .filter(is_hit)
                .map(|group| group.file)
                .collect()
        }
    };
    let (bytes, count) = u32::try_from(files.len())
        .ok()
        .and_then(|count| Some((count.checked_mul(4)?.checked_add(HEAD)?, count)))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let mut words = vec![bytes, 0, count];
    // The kernel reads them as signed; they are not negative.
    words.extend(files.iter().map(|file| file.as_raw_fd() as u32));
    // SAFETY: the kernel only reads, and no more than the head and the `count`
    // files that it names.
    match unsafe { ioctl_with_ptr(&device, VFIO_DEVICE_PCI_HOT_RESET(), words.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whose the kernel says a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    /// It was asked through a group's device.
    Group(u32),
    /// It was asked through a device's own file.
    Device(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    device: PciAddress,
    id: Id,
}

fn holder(id: Id, ownership: &Ownership<'_>) -> Holder {
    match id {
        Id::Device(DEVID_NOT_OWNED) => Holder::Other,
        Id::Device(DEVID_OWNED) => Holder::Nobody,
        Id::Device(_) => Holder::This,
        Id::Group(id) => {
            let groups = match ownership {
                Ownership::Groups(groups) => *groups,
                Ownership::Iommufd => &[],
            };
            match groups.iter().find(|group| group.id == id) {
                None => Holder::Other,
                // The device that was asked is the open one.
                Some(group) if group.open < 2 => Holder::Nobody,
                Some(_) => Holder::This,
            }
        }
    }
}

fn list(device: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut room = 1;
    for _ in 0..RETRIES {
        let bytes = ENTRY
            .checked_mul(room)
            .and_then(|list| list.checked_add(HEAD));
        let mut answer = Answer::new(bytes.unwrap_or(u32::MAX))?;
        // SAFETY: the buffer has the `argsz` bytes that its first field
        // promises, aligned for the structure, and lives through the call.
        let result = unsafe {
            ioctl_with_mut_ptr(
                &device,
                VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(),
                answer.as_mut_ptr(),
            )
        };
        if result == 0 {
            return parse(&answer.bytes());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOSPC) => room = u32_at(&answer.bytes(), COUNT),
            // One came in between.
            Some(libc::EAGAIN) => {}
            _ => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

fn parse(bytes: &[u8]) -> io::Result<Vec<Entry>> {
    let by_device = u32_at(bytes, FLAGS) & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
    let count = u32_at(bytes, COUNT) as usize;
    let list = bytes.get(HEAD as usize..).unwrap_or_default();
    let entry = |entry: &[u8]| {
        let [.., low, high, bus, function] = *entry else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let segment = u16::from_ne_bytes([low, high]);
        let device = PciAddress::new(segment, bus, function >> 3, function & 7);
        let id = u32_at(entry, 0);
        Ok(Entry {
            device: device.map_err(|_| io::ErrorKind::InvalidData)?,
            id: match by_device {
                true => Id::Device(id),
                false => Id::Group(id),
            },
        })
    };
    list.chunks_exact(ENTRY as usize)
        .take(count)
        .map(entry)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn holders(words: &[u32], ownership: &Ownership<'_>) -> Vec<(String, Holder)> {
        let list = parse(&bytes(words)).unwrap().into_iter();
        list.map(|entry| (entry.device.to_string(), holder(entry.id, ownership)))
            .collect()
    }

    fn is(device: &str, holder: Holder) -> (String, Holder) {
        (device.to_owned(), holder)
    }

    #[test]
    fn the_numbers_of_the_calls() {
        // linux/vfio.h: _IO(';', 100 + n).
        assert_eq!(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), 0x3b70);
        assert_eq!(VFIO_DEVICE_PCI_HOT_RESET(), 0x3b71);
    }

    /// Two cards behind a bridge, of group 5, as the kernel tells them.
    #[test]
    fn through_a_group() {
        let answer = [28, 0, 2, 5, 0x0802_0000, 5, 0x1002_0000];
        let null = File::open("/dev/null").unwrap();
        let group = |id, open| OwnedGroup {
            id,
            open,
            file: null.as_fd(),
        };
        for (groups, expected) in [
            (vec![group(4, 1), group(5, 1)], Holder::Nobody),
            (vec![group(5, 2)], Holder::This),
            (vec![group(4, 1)], Holder::Other),
        ] {
            assert_eq!(
                holders(&answer, &Ownership::Groups(&groups)),
                [is("0000:02:01.0", expected), is("0000:02:02.0", expected)]
            );
        }
    }

    #[test]
    fn through_the_devices_own_file() {
        let answer = [
            36,
            1,
            3,
            7,
            0x0802_0000,
            0,
            0x1002_0000,
            u32::MAX,
            0x1902_0001,
        ];
        assert_eq!(
            holders(&answer, &Ownership::Iommufd),
            [
                is("0000:02:01.0", Holder::This),
                is("0000:02:02.0", Holder::Nobody),
                is("0001:02:03.1", Holder::Other),
            ]
        );
    }

    #[test]
    fn what_is_no_device_is_refused_with_its_errno() {
        let null = File::open("/dev/null").unwrap();
        let errno = |error: io::Error| error.raw_os_error();
        for ownership in [Ownership::Iommufd, Ownership::Groups(&[])] {
            let error = hot_reset_info(null.as_fd(), &ownership).unwrap_err();
            assert_eq!(errno(error), Some(libc::ENOTTY));
            let error = hot_reset(null.as_fd(), &ownership).unwrap_err();
            assert_eq!(errno(error), Some(libc::ENOTTY));
        }
    }

    proptest! {
        #[test]
        fn any_answer_does(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse(&bytes);
        }
    }
}
