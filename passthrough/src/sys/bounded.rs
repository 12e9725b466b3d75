//! Accesses to sysfs that may wait for ever, and are given up in time.
//!
//! Some attributes take their device's lock. An unbind from a VFIO driver
//! holds it until the device's user lets go, and whoever waits for it can't be
//! interrupted: not by a signal, and not by the end of the process. So a
//! process of its own does the access:
//!
//! ```text
//!   caller ──fork── go-between ──fork── worker       the go-between ends at once and is reaped:
//!     │                                  │           the worker is init's child, no zombie stays
//!     │            socket pair           │
//!     ├──────────────────────────────────┤ write(2) … answer
//!     │ time is up: shutdown(2)          │ … the answer can't be sent any more:
//!     │                                  │   undo, end
//! ```
//!
//! The socket decides the race in one place, inside the kernel: an answer that
//! was sent before the shutdown is read by the caller, one that comes later
//! fails in the worker, which then knows that nobody counts on what it did.
//! The same happens when the caller has died.
//!
//! The worker's memory is a copy of the caller's, in which another thread may
//! have held any lock. So it does nothing but system calls, and it keeps no
//! file of the caller's open: an open device would keep the unbind waiting. For
//! the same reason device memory must be mapped with `MADV_DONTFORK`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// The most that is read: sysfs gives a page, names of drivers are short.
const READ_LIMIT: usize = 4096;
/// An errno stands in front of what was read.
const HEADER: usize = 4;
/// As `ps` shows the worker.
const NAME: &[u8] = b"airlock-sysfs\0";

/// What is done to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access<'a> {
    /// Reads at most a page, in one read(2).
    Read,
    /// Writes these bytes in one write(2).
    Write(&'a [u8]),
}

/// A write that takes an access back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) bytes: &'a [u8],
}

/// Does `access` to `file`; nothing when there was no answer within `limit`.
/// If it goes through after that, or after the end of this process, the worker
/// carries out `undo` in order, whatever each write answers.
///
/// # Errors
/// The kernel's answer to the access, and what kept it from being begun:
/// running out of descriptors or processes.
pub(crate) fn access(
    file: BorrowedFd<'_>,
    access: Access<'_>,
    undo: &[Undo<'_>],
    limit: Duration,
) -> io::Result<Option<Vec<u8>>> {
    let (own, other) = socket_pair()?;
    let mut kept: Vec<_> = undo.iter().map(|undo| undo.file.as_raw_fd()).collect();
    kept.extend([file.as_raw_fd(), other.as_raw_fd()]);
    kept.sort_unstable();
    let worker = Worker {
        socket: other.as_raw_fd(),
        file: file.as_raw_fd(),
        access,
        undo,
        kept: &kept,
        last_fd: descriptor_limit(),
    };
    worker.start()?;
    drop(other);
    wait(&own, limit)?;
    // SAFETY: the call touches no memory.
    unsafe { libc::shutdown(own.as_raw_fd(), libc::SHUT_RDWR) };
    receive(&own)
}

/// Everything that the worker needs, prepared before the fork.
struct Worker<'a> {
    socket: RawFd,
    file: RawFd,
    access: Access<'a>,
    undo: &'a [Undo<'a>],
    /// The descriptors that it keeps, sorted.
    kept: &'a [RawFd],
    /// The highest descriptor that there may be.
    last_fd: RawFd,
}

impl Worker<'_> {
    fn start(&self) -> io::Result<()> {
        // The handlers of the caller's signals must not run in a copy of it.
        let mask = block_signals()?;
        // SAFETY: the child does only system calls that are async-signal-safe
        // and ends with `_exit`, as `go_between` says.
        let child = unsafe { libc::fork() };
        if child == 0 {
            self.go_between();
        }
        let failed = (child < 0).then(io::Error::last_os_error);
        restore_signals(&mask);
        match failed {
            Some(error) => Err(error),
            None => {
                reap(child);
                Ok(())
            }
        }
    }

    /// The first child: starts the second and ends.
    fn go_between(&self) -> ! {
        // Not fork(): that takes locks of the C library.
        let flags = libc::c_long::from(libc::SIGCHLD);
        let none: libc::c_long = 0;
        // SAFETY: without flags and with no stack, this is a plain fork.
        let child = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        match child {
            0 => self.work(),
            -1 => {
                self.answer(errno(), &mut [0; HEADER]);
                exit(1)
            }
            _ => exit(0),
        }
    }

    /// The second child.
    fn work(&self) -> ! {
        // SAFETY: the call touches no memory.
        unsafe { libc::setsid() };
        // SAFETY: the kernel reads the name up to its zero byte.
        unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
        self.close_others();
        let mut message = [0; HEADER + READ_LIMIT];
        let (result, size) = match self.access {
            Access::Read => {
                let room = &mut message[HEADER..];
                // SAFETY: the kernel writes at most as many bytes as there is room.
                let read = unsafe { libc::read(self.file, room.as_mut_ptr().cast(), room.len()) };
                (read, usize::try_from(read).unwrap_or(0))
            }
            Access::Write(bytes) => (write(self.file, bytes), 0),
        };
        let error = if result < 0 { errno() } else { 0 };
        let answered = self.answer(error, &mut message[..HEADER + size]);
        if !answered && error == 0 {
            for undo in self.undo {
                write(undo.file.as_raw_fd(), undo.bytes);
            }
        }
        exit(0)
    }

    /// Sends `errno` and what follows it; whether anybody took it.
    fn answer(&self, errno: i32, message: &mut [u8]) -> bool {
        for (byte, value) in message.iter_mut().zip(errno.to_ne_bytes()) {
            *byte = value;
        }
        let (start, size) = (message.as_ptr().cast(), message.len());
        // SAFETY: the kernel reads `size` bytes of the message.
        let sent = unsafe { libc::send(self.socket, start, size, libc::MSG_NOSIGNAL) };
        sent >= 0
    }

    fn close_others(&self) {
        let mut next = 0;
        for &fd in self.kept {
            if fd > next {
                self.close(next, fd - 1);
            }
            next = fd + 1;
        }
        self.close(next, RawFd::MAX);
    }

    fn close(&self, first: RawFd, last: RawFd) {
        // SAFETY: the worker is alone in its copy of the process, in which
        // nobody uses these descriptors any more.
        let answer = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if answer < 0 {
            // Linux 5.8 and older.
            for fd in first..=last.min(self.last_fd) {
                // SAFETY: as above.
                unsafe { libc::close(fd) };
            }
        }
    }
}

fn write(file: RawFd, bytes: &[u8]) -> isize {
    // SAFETY: the kernel reads the bytes that it is given.
    unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) }
}

fn exit(status: i32) -> ! {
    // SAFETY: the call does not come back and runs nothing of the process.
    unsafe { libc::_exit(status) }
}

fn errno() -> i32 {
    // Reads a number; nothing that a worker must not do.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A pair of sockets that keeps messages whole.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors into `fds`.
    let answer = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    let first = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    // SAFETY: as above.
    let second = unsafe { OwnedFd::from_raw_fd(fds[1]) };
    Ok((first, second))
}

fn descriptor_limit() -> RawFd {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one structure into `limit`.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    // More than the kernel's own largest limit makes no sense.
    RawFd::try_from(limit.rlim_cur.min(1 << 20)).unwrap_or(1 << 20)
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: a set of signals is plain bits, for which zero is a value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = all;
    // SAFETY: the set belongs to this function.
    unsafe { libc::sigfillset(&mut all) };
    // SAFETY: both sets belong to this function.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) } {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the kernel reads the set, which it has written before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Waits for the go-between, which ends at once. Where the monitor ignores
/// `SIGCHLD` or reaps everything by itself, there is nobody to wait for.
fn reap(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the kernel writes one number into `status`.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        if errno() != libc::EINTR {
            return;
        }
    }
}

/// Waits until there is an answer, its sender is gone, or time is up.
fn wait(socket: &OwnedFd, limit: Duration) -> io::Result<()> {
    let end = Instant::now().checked_add(limit);
    loop {
        let left = match end {
            Some(end) => end.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        // Rounded up, so that the last turn is no busy one.
        let left = left.as_millis().saturating_add(1);
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let left = libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel reads and writes one structure.
        let ready = unsafe { libc::poll(&mut poll, 1, left) };
        if ready > 0 || ready == 0 && end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
        if ready < 0 && errno() != libc::EINTR {
            return Err(io::Error::last_os_error());
        }
    }
}

/// The answer, if one was sent. After the shutdown no other can come.
fn receive(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER + READ_LIMIT];
    let (start, room) = (message.as_mut_ptr().cast(), message.len());
    // SAFETY: the kernel writes at most as many bytes as there is room.
    let size = unsafe { libc::recv(socket.as_raw_fd(), start, room, libc::MSG_DONTWAIT) };
    let Ok(size) = usize::try_from(size) else {
        return Ok(None);
    };
    message.truncate(size);
    match message.split_first_chunk() {
        Some((header, data)) => match i32::from_ne_bytes(*header) {
            0 => Ok(Some(data.to_vec())),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        // Nobody sent anything, and now nobody can.
        None => Ok(None),
    }
}

#[cfg(test)]
#[path = "bounded_test.rs"]
mod tests;
