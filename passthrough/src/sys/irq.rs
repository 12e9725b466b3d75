use std::io;
use std::mem::{size_of, size_of_val};
use std::num::TryFromIntError;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_NORESIZE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE,
    vfio_irq_info, vfio_irq_set,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr};
use vmm_sys_util::ioctl_io_nr;

use crate::vfio::IrqInfo;

ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, VFIO_TYPE as u32, VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);

/// Bytes of `struct vfio_irq_set` before its data.
const HEAD: usize = size_of::<vfio_irq_set>();
const _: () = assert!(HEAD == 5 * size_of::<u32>());

/// What the device has of an interrupt kind (`VFIO_DEVICE_GET_IRQ_INFO`);
/// nothing when it has none that could signal an eventfd.
///
/// # Errors
/// The kernel's, besides `EINVAL`, with which it denies the index.
pub(crate) fn irq_info(device: BorrowedFd<'_>, index: u32) -> io::Result<Option<IrqInfo>> {
    let mut info = vfio_irq_info {
        argsz: size_of::<vfio_irq_info>() as u32,
        index,
        ..Default::default()
    };
    // SAFETY: the structure has the length that `argsz` promises.
    if unsafe { ioctl_with_mut_ref(&device, VFIO_DEVICE_GET_IRQ_INFO(), &mut info) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINVAL) => Ok(None),
            _ => Err(error),
        };
    }
    let usable = info.count > 0 && info.flags & VFIO_IRQ_INFO_EVENTFD != 0;
    Ok(usable.then_some(IrqInfo {
        count: info.count,
        no_resize: info.flags & VFIO_IRQ_INFO_NORESIZE != 0,
    }))
}

/// Has the device signal `events` for the vectors from `start` on; `None`
/// makes a vector silent (`VFIO_DEVICE_SET_IRQS` with eventfds).
///
/// Answers 0 when it is done. A larger number is how many vectors the kernel
/// could have given: nothing was enabled then.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    events: &[Option<BorrowedFd<'_>>],
) -> io::Result<u32> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let fds = events
        .iter()
        .map(|event| event.as_ref().map_or(-1, AsRawFd::as_raw_fd));
    request(device, flags, index, start, fds)
}

/// Has the kernel unmask a level-triggered interrupt whenever `event` is
/// signalled, or no longer (`VFIO_IRQ_SET_ACTION_UNMASK` with an eventfd).
///
/// # Errors
/// The kernel's: `EINVAL` when the interrupt is off.
pub(crate) fn set_unmask_event(
    device: BorrowedFd<'_>,
    index: u32,
    event: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
    let fd = event.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    request(device, flags, index, 0, [fd].into_iter()).map(drop)
}

/// Unmasks a level-triggered interrupt now.
///
/// # Errors
/// The kernel's: `EINVAL` when the interrupt is off.
pub(crate) fn unmask_irq(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK;
    send(device, flags, index, 0, 1, &[]).map(drop)
}

/// Turns an interrupt kind off altogether.
///
/// # Errors
/// The kernel's: `EINVAL` when the kind is off already.
pub(crate) fn disable_irqs(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    request(device, flags, index, 0, std::iter::empty()).map(drop)
}

fn request(
    device: BorrowedFd<'_>,
    flags: u32,
    index: u32,
    start: u32,
    fds: impl ExactSizeIterator<Item = i32>,
) -> io::Result<u32> {
    let count = u32::try_from(fds.len()).map_err(too_many)?;
    // The kernel reads the data as signed: -1 is all ones.
    let data: Vec<u32> = fds.map(|fd| fd as u32).collect();
    send(device, flags, index, start, count, &data)
}

fn send(
    device: BorrowedFd<'_>,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    data: &[u32],
) -> io::Result<u32> {
    let bytes = u32::try_from(HEAD + size_of_val(data)).map_err(too_many)?;
    let mut words = vec![bytes, flags, index, start, count];
    words.extend(data);
    // SAFETY: the kernel only reads, and no more than the `argsz` bytes that
    // the first word promises.
    let result = unsafe { ioctl_with_ptr(&device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn too_many(_: TryFromIntError) -> io::Error {
    io::ErrorKind::InvalidInput.into()
}
