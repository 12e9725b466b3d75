use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Journal;
use crate::ports::{InterruptLine, InterruptPin, PortError};
use crate::sys;

/// What the guest's end of a line sees, and the monitor's switches.
#[derive(Debug, Default)]
struct State {
    /// The events of the connected line.
    connected: Option<(File, Option<File>)>,
    asserted: bool,
    has_no_lines: bool,
    is_deaf: bool,
    refuse_connects: u64,
}

/// A function's interrupt line, as a [`super::FakeRouter`] has it: the guest's
/// end, and what the monitor can do.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeLines(Arc<Mutex<State>>);

impl FakeLines {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitor has no lines at all.
    pub(super) fn none(&self) {
        self.lock().has_no_lines = true;
    }

    /// The monitor does not learn when the guest acknowledges.
    pub(super) fn deaf(&self) {
        self.lock().is_deaf = true;
    }

    pub(super) fn refuse_connects(&self, connections: u64) {
        self.lock().refuse_connects = connections;
    }

    /// Whether the line is asserted now.
    pub(super) fn is_asserted(&self) -> bool {
        let mut state = self.lock();
        if let Some((event, _)) = &mut state.connected
            && event.read_exact(&mut [0; 8]).is_ok()
        {
            state.asserted = true;
        }
        state.asserted
    }

    /// The guest acknowledges: the line is let go, and the function told.
    pub(super) fn acknowledge(&self) {
        let mut state = self.lock();
        if let Some((_, resample)) = &mut state.connected
            && let Some(resample) = resample
        {
            // Its counter is far from full.
            drop(resample.write_all(&1_u64.to_ne_bytes()));
            state.asserted = false;
        }
    }

    pub(super) fn new_line(
        &self,
        pin: InterruptPin,
        journal: &Journal,
    ) -> Result<Option<Box<dyn InterruptLine>>, PortError> {
        let state = self.lock();
        if state.has_no_lines {
            return Ok(None);
        }
        journal.step(format_args!("new line"))?;
        journal.note(format!("line {pin:?} new"));
        let resample = (!state.is_deaf).then(sys::event).transpose()?;
        Ok(Some(Box::new(FakeLine {
            event: File::from(sys::event()?),
            resample: resample.map(File::from),
            journal: journal.clone(),
            lines: self.clone(),
        })))
    }
}

#[derive(Debug)]
struct FakeLine {
    event: File,
    resample: Option<File>,
    journal: Journal,
    lines: FakeLines,
}

impl InterruptLine for FakeLine {
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn resample_event(&self) -> Option<BorrowedFd<'_>> {
        self.resample.as_ref().map(AsFd::as_fd)
    }

    fn connect(&mut self) -> Result<(), PortError> {
        self.journal.note("line connect");
        self.journal.step(format_args!("line connect"))?;
        let mut state = self.lines.lock();
        if let Some(left) = state.refuse_connects.checked_sub(1) {
            state.refuse_connects = left;
            return Err("no line is free".into());
        }
        let resample = self.resample.as_ref().map(File::try_clone).transpose()?;
        state.connected = Some((self.event.try_clone()?, resample));
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        self.journal.note("line disconnect");
        self.journal.step(format_args!("line disconnect"))?;
        let mut state = self.lines.lock();
        state.connected = None;
        state.asserted = false;
        // Whether there was a signal does not matter.
        drop(self.event.read_exact(&mut [0; 8]));
        Ok(())
    }

    fn release(&mut self) -> bool {
        let asserted = self.lines.is_asserted();
        if asserted {
            self.journal.note("line release");
            self.lines.lock().asserted = false;
        }
        asserted
    }

    fn silence(&mut self) {
        self.journal.note("line silence");
        let mut state = self.lines.lock();
        state.asserted = false;
        // Whether there was a signal does not matter.
        drop(self.event.read_exact(&mut [0; 8]));
    }
}

impl Drop for FakeLine {
    fn drop(&mut self) {
        self.journal.note("line drop");
        let mut state = self.lines.lock();
        state.connected = None;
        state.asserted = false;
    }
}
