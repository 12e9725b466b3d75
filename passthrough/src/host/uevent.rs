use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};

/// The group that the kernel sends to. Those of udev are others
/// (lib/kobject_uevent.c).
const KERNEL_GROUP: u32 = 1;
/// The kernel's port. Processes have other numbers (netlink(7)).
const KERNEL_PORT: u32 = 0;
/// Twice what the kernel sends at most: a path, and variables of 2 KiB
/// (linux/kobject.h, `UEVENT_BUFFER_SIZE`).
const MESSAGE_LIMIT: usize = 8 * 1024;
/// More variables than the kernel gives (`UEVENT_NUM_ENVP`).
const VARIABLE_LIMIT: usize = 128;
/// Room for some thousand messages, which a hotplug of a large tree sends at
/// once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What happened to a device of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UeventAction {
    /// It is there now.
    Add,
    /// It is gone.
    Remove,
    /// A driver has it now.
    Bind,
    /// Its driver has let it go.
    Unbind,
    /// Something else: a change, a new name.
    Other,
}

/// A message of the kernel about one of its devices.
///
/// It is no proof: root can have the kernel send any of them again, by a write
/// to the device's `uevent` attribute. So it says where to look, and sysfs says
/// what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: UeventAction,
    /// The device's path below `/sys`, from `/devices` on.
    pub path: String,
    /// Its bus or class, such as `pci` or `vfio-dev`.
    pub subsystem: Option<String>,
}

impl Uevent {
    /// Reads a message as the kernel sends it:
    /// `ACTION@PATH`, then `KEY=VALUE` variables, each with a zero byte at its
    /// end. Nothing when it is none, as those of udev are.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut texts = message
            .split(|byte| *byte == 0)
            .map(|text| std::str::from_utf8(text).ok());
        let (action, path) = texts.next()??.split_once('@')?;
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return None;
        }
        let mut subsystem = None;
        for text in texts.take(VARIABLE_LIMIT).flatten() {
            if let Some(("SUBSYSTEM", value)) = text.split_once('=') {
                subsystem = Some(value.to_owned());
            }
        }
        Some(Self {
            action: match action {
                "add" => UeventAction::Add,
                "remove" => UeventAction::Remove,
                "bind" => UeventAction::Bind,
                "unbind" => UeventAction::Unbind,
                _ => UeventAction::Other,
            },
            path: path.to_owned(),
            subsystem,
        })
    }
}

/// What a look at the socket gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Event(Uevent),
    /// Messages were lost: what is must be looked at anew.
    Lost,
    /// Something that is no message of the kernel, and does not count.
    Foreign,
}

/// Where uevents come from: the kernel, or a test.
pub trait UeventSource: AsFd + Send + std::fmt::Debug {
    /// Takes the next message; nothing when there is none at the moment. Never
    /// blocks.
    ///
    /// # Errors
    /// When no message will ever come again.
    fn receive(&mut self) -> io::Result<Option<Received>>;
}

/// The kernel's uevents. Readable (poll(2)) while there are any.
///
/// Needs no privilege. In a network namespace that is not the host's first,
/// and whose owner is another user namespace, the kernel sends none.
#[derive(Debug)]
pub struct UeventSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl UeventSocket {
    /// Listens from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(KOBJECT_UEVENT),
        )?;
        // Best effort: without the privilege the default does, and what is
        // lost is noticed.
        let _ = set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        // Port 0 has the kernel choose one.
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self {
            socket,
            buffer: vec![0; MESSAGE_LIMIT],
        })
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl UeventSource for UeventSocket {
    fn receive(&mut self) -> io::Result<Option<Received>> {
        loop {
            // With TRUNC the answer is the message's size, not what fitted.
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let (size, sender) = match recvfrom(&self.socket, &mut self.buffer[..], flags) {
                Ok((_, size, sender)) => (size, sender),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::NOBUFS) => return Ok(Some(Received::Lost)),
                Err(error) => return Err(error.into()),
            };
            let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            let message = self.buffer.get(..size);
            return Ok(Some(judge(sender, message)));
        }
    }
}

/// What a message from `sender` counts; nothing of one that was too long.
fn judge(sender: Option<SocketAddrNetlink>, message: Option<&[u8]>) -> Received {
    if sender.is_none_or(|sender| sender.pid() != KERNEL_PORT) {
        return Received::Foreign;
    }
    match message {
        // Longer than the kernel says that its messages are.
        None => Received::Lost,
        Some(message) => Uevent::parse(message).map_or(Received::Foreign, Received::Event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REMOVE: &[u8] = b"remove@/devices/pci0000:00/0000:00:03.0/0000:01:00.0/vfio-dev/vfio0\0\
        ACTION=remove\0DEVPATH=/devices/pci0000:00/0000:00:03.0/0000:01:00.0/vfio-dev/vfio0\0\
        SUBSYSTEM=vfio-dev\0MAJOR=511\0MINOR=0\0DEVNAME=vfio/devices/vfio0\0SEQNUM=1234\0";

    #[test]
    fn a_message_as_the_kernel_sends_it() {
        let event = Uevent::parse(REMOVE).unwrap();
        assert_eq!(event.action, UeventAction::Remove);
        assert!(event.path.ends_with("/0000:01:00.0/vfio-dev/vfio0"));
        assert_eq!(event.subsystem.as_deref(), Some("vfio-dev"));
        for (text, action) in [
            ("add", UeventAction::Add),
            ("bind", UeventAction::Bind),
            ("unbind", UeventAction::Unbind),
            ("change", UeventAction::Other),
            ("", UeventAction::Other),
        ] {
            let event = Uevent::parse(format!("{text}@/devices/x\0").as_bytes()).unwrap();
            assert_eq!((event.action, event.subsystem), (action, None));
        }
    }

    #[test]
    fn what_is_no_message_of_the_kernel_is_none() {
        for garbage in [
            &b""[..],
            b"\0",
            b"add",
            b"add@",
            b"add@devices/x",
            b"add@/devices/../../etc",
            b"libudev\0\xfe\xed\xca\xfe add@/devices/x",
            b"add@/devices/\xff\0SUBSYSTEM=pci\0",
        ] {
            assert_eq!(Uevent::parse(garbage), None, "{garbage:?}");
        }
        // One bad variable spoils nothing else.
        let event = Uevent::parse(b"add@/devices/x\0\xff=\0=\0SUBSYSTEM=pci").unwrap();
        assert_eq!(event.subsystem.as_deref(), Some("pci"));
    }

    #[test]
    fn only_the_kernel_is_believed() {
        let from = |pid| Some(SocketAddrNetlink::new(pid, KERNEL_GROUP));
        assert!(matches!(judge(from(0), Some(REMOVE)), Received::Event(_)));
        assert_eq!(judge(from(77), Some(REMOVE)), Received::Foreign);
        assert_eq!(judge(None, Some(REMOVE)), Received::Foreign);
        assert_eq!(judge(from(0), Some(b"what")), Received::Foreign);
        assert_eq!(judge(from(0), None), Received::Lost);
        assert_eq!(judge(from(77), None), Received::Foreign);
    }

    #[test]
    fn a_silent_socket_does_not_block() {
        let mut socket = UeventSocket::open().unwrap();
        // Whatever the machine is doing, it ends.
        for _ in 0..100_000 {
            if socket.receive().unwrap().is_none() {
                return;
            }
        }
        panic!("the socket never runs dry");
    }

    proptest! {
        #[test]
        fn any_message_does(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Some(event) = Uevent::parse(&bytes) {
                prop_assert!(event.path.starts_with('/'));
                prop_assert!(event.path.len() < bytes.len());
            }
        }

        #[test]
        fn any_cut_message_does(size in 0..REMOVE.len(), at in 0..REMOVE.len(), byte: u8) {
            let mut message = REMOVE[..size].to_vec();
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
            let _ = Uevent::parse(&message);
        }

        #[test]
        fn any_variables_do(names in proptest::collection::vec("[A-Z=@/\\PC]{0,20}", 0..200)) {
            let message = format!("add@/devices/x\0{}\0", names.join("\0"));
            prop_assert!(Uevent::parse(message.as_bytes()).is_some());
        }
    }
}
