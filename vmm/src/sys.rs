//! The few calls into libc that no crate of ours wraps; besides the memory and
//! vCPU rooms the only place with `unsafe`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use kvm_ioctls::DeviceFd;
use vmm_sys_util::eventfd::EventFd;

/// The event's descriptor, for as long as the event is borrowed.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns the descriptor and closes it only when dropped,
    // which the lifetime of the answer forbids.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// A descriptor of our own for a device of KVM's.
pub(crate) fn own(device: &DeviceFd) -> io::Result<OwnedFd> {
    // SAFETY: the device is open as long as it is borrowed, which is longer
    // than this descriptor is.
    let descriptor = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    descriptor.try_clone_to_owned()
}

/// Takes over a descriptor that this process was started with, and keeps it
/// from the programs that this process starts.
///
/// # Errors
/// The kernel's: `EBADF` when nothing is open by that number.
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: changes a flag of whatever is open by that number, if anything.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number was given to this process from outside, for this
    // purpose, so that nothing in it owns what is open by it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The host's page size in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf reads a constant; this one every Linux has.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Nanoseconds on `CLOCK_MONOTONIC`: comparable between processes.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writing; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How a terminal is set.
#[derive(Clone, Copy)]
pub(crate) struct TerminalSettings(libc::termios);

impl TerminalSettings {
    /// Asks the terminal.
    pub(crate) fn of(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let mut settings = std::mem::MaybeUninit::uninit();
        // SAFETY: `settings` is valid for writing a whole termios.
        let result = unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded and filled it.
        Ok(Self(unsafe { settings.assume_init() }))
    }

    /// The same for a guest's console: every key arrives as it is, unechoed.
    /// Output processing stays, for the monitor's own lines.
    pub(crate) fn raw(mut self) -> Self {
        self.0.c_iflag &= !(libc::IXON | libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP);
        self.0.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
        self.0.c_cc[libc::VMIN] = 1;
        self.0.c_cc[libc::VTIME] = 0;
        self
    }

    /// Sets the terminal.
    pub(crate) fn apply(&self, terminal: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the settings are a whole termios, from tcgetattr.
        let result = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &self.0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}
