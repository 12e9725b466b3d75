use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use devices::legacy::{InputNotice, Serial};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::watch;
use crate::outcome::{EndReport, Outcome};

/// Ctrl-A: the next key is for airlock.
const ESCAPE: u8 = 0x01;
const QUIT: u8 = b'x';

/// From standard input into the guest's serial port.
///
/// Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends one Ctrl-A. When the port is full,
/// input waits in the terminal until the port says that there is room again.
#[derive(Debug)]
pub struct Console {
    // A descriptor of its own: standard input of the standard library reads
    // ahead, and what it has read no longer wakes epoll.
    input: File,
    serial: Arc<Serial>,
    room: EventFd,
    report: Arc<EndReport>,
    pending: Vec<u8>,
    escaped: bool,
    watching: bool,
}

/// Wakes the loop from a vCPU thread when the port has room.
#[derive(Debug)]
pub(crate) struct RoomNotice(pub(crate) EventFd);

impl InputNotice for RoomNotice {
    fn room(&self) {
        if let Err(error) = self.0.write(1) {
            log::warn!("console input stalls: {error}");
        }
    }
}

/// What a key press means.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Guest(u8),
    Quit,
    Nothing,
}

impl Console {
    /// Feeds `serial`; `room` is signalled when it can take more.
    ///
    /// # Errors
    /// When standard input is closed.
    pub(crate) fn new(
        serial: Arc<Serial>,
        room: EventFd,
        report: Arc<EndReport>,
    ) -> io::Result<Self> {
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned()?.into(),
            serial,
            room,
            report,
            pending: Vec::new(),
            escaped: false,
            watching: false,
        })
    }

    fn key(&mut self, byte: u8) -> Key {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Key::Nothing
            }
            (true, QUIT) => Key::Quit,
            (true, ESCAPE) | (false, _) => Key::Guest(byte),
            (true, _) => Key::Nothing,
        }
    }

    /// Reads what there is. Whether there can be more.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 64];
        let count = match self.input.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) => {
                log::warn!("no more console input: {error}");
                0
            }
        };
        for byte in buffer.into_iter().take(count) {
            match self.key(byte) {
                Key::Guest(byte) => self.pending.push(byte),
                Key::Quit => self.report.end(Outcome::Stopped { signal: None }),
                Key::Nothing => {}
            }
        }
        count > 0
    }

    /// Gives the port what it takes, and watches the input only while nothing
    /// waits.
    fn feed(&mut self, ops: &mut EventOps) {
        let taken = self.serial.enqueue(&self.pending);
        self.pending.drain(..taken.min(self.pending.len()));
        if self.pending.is_empty() {
            self.watch(ops);
        } else {
            self.unwatch(ops);
        }
    }

    fn watch(&mut self, ops: &mut EventOps) {
        if !self.watching {
            // A regular file or /dev/null can't be polled: no input then.
            self.watching = ops.add(Events::new(&self.input, EventSet::IN)).is_ok();
        }
    }

    fn unwatch(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.watching)
            && let Err(error) = ops.remove(Events::empty(&self.input))
        {
            log::debug!("standard input was not watched: {error}");
        }
    }
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.room.as_raw_fd() {
            let _ = self.room.read();
            self.feed(ops);
        } else if self.read() {
            self.feed(ops);
        } else {
            self.unwatch(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(
            ops,
            Events::new(&self.room, EventSet::IN),
            "the serial port",
        );
        self.watch(ops);
    }
}
