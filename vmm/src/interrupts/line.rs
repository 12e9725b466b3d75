use std::io;

use devices::legacy::InterruptLine;
use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line over an irqfd.
#[derive(Debug)]
pub struct EventLine(EventFd);

impl EventLine {
    pub(super) fn new(event: EventFd) -> Self {
        Self(event)
    }
}

impl InterruptLine for EventLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
