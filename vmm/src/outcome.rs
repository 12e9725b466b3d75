//! How a run ends.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::{PowerEvent, PowerEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::timeline::{Milestone, Timeline};
use crate::vcpu::{VcpuEnd, VcpuObserver};

/// Why the VM ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel reported a panic.
    Panicked,
    /// A vCPU could not go on.
    Crashed {
        /// Which one.
        vcpu: u8,
        /// Why.
        end: VcpuEnd,
    },
    /// The user or a signal ended it.
    Stopped {
        /// The signal's number; none when asked for at the terminal.
        signal: Option<i32>,
    },
    /// The host would not follow the guest; the message has device and cause.
    HostRefused(String),
    /// The host wants devices back that the guest has, and the user chose to
    /// end the VM then; the message has devices and cause.
    DeviceLost(String),
}

impl Outcome {
    /// The exit status of `airlock run`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Stopped { signal: None } => 0,
            Self::HostRefused(_) => 1,
            Self::Reset => 3,
            Self::Panicked => 4,
            Self::Crashed { .. } => 5,
            Self::DeviceLost(_) => 6,
            Self::Stopped {
                signal: Some(signal),
            } => u8::try_from(*signal).map_or(u8::MAX, |signal| 128u8.saturating_add(signal)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched itself off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Crashed { vcpu, end } => {
                write!(f, "the guest crashed: vCPU {vcpu}: {}", Chain(end))
            }
            Self::Stopped { signal: None } => f.write_str("stopped at the terminal"),
            Self::Stopped {
                signal: Some(signal),
            } => write!(f, "stopped by signal {signal}"),
            Self::HostRefused(reason) => write!(f, "the VM can't go on: {reason}"),
            Self::DeviceLost(reason) => write!(f, "the VM was ended for its devices: {reason}"),
        }
    }
}

/// An error with all its causes, in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Where every part of the VM reports its end. The first report counts.
///
/// Never blocks: vCPU threads call it.
#[derive(Debug)]
pub struct EndReport {
    state: Mutex<State>,
    /// What `state` says, to be had without its lock.
    over: AtomicBool,
    event: EventFd,
    timeline: Timeline,
}

#[derive(Debug)]
enum State {
    Running,
    Ended(Outcome),
    /// Ended, and the outcome was taken.
    Told,
}

impl EndReport {
    /// Nothing has ended yet.
    ///
    /// # Errors
    /// When no eventfd can be had.
    pub fn new(timeline: Timeline) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::new(State::Running),
            over: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            timeline,
        }))
    }

    /// Ends the VM, unless it has ended already.
    pub fn end(&self, outcome: Outcome) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, State::Running) {
            log::debug!("after the end: {outcome}");
            return;
        }
        self.timeline.mark(Milestone::GuestEnded);
        *state = State::Ended(outcome);
        self.over.store(true, Ordering::Release);
        if let Err(error) = self.event.write(1) {
            log::error!("cannot wake the event loop: {error}");
        }
    }

    /// Takes the outcome, when there is one. It is given once.
    pub fn take(&self) -> Option<Outcome> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Running) {
            return None;
        }
        match std::mem::replace(&mut *state, State::Told) {
            State::Ended(outcome) => Some(outcome),
            State::Running | State::Told => None,
        }
    }

    /// Readable once the VM has ended.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl PowerEvents for EndReport {
    fn signal(&self, event: PowerEvent) {
        self.end(match event {
            PowerEvent::PowerOff => Outcome::PowerOff,
            PowerEvent::Reset => Outcome::Reset,
            PowerEvent::Panicked => Outcome::Panicked,
        });
    }
}

impl VcpuObserver for EndReport {
    fn entering(&self, id: u8) {
        if id == 0 {
            self.timeline.mark(Milestone::FirstVcpuEntry);
        }
    }

    fn ended(&self, id: u8, end: VcpuEnd) {
        self.end(match end {
            // Not the guest's doing.
            VcpuEnd::Panicked => Outcome::HostRefused(format!("vCPU {id}: {end}")),
            end => Outcome::Crashed { vcpu: id, end },
        });
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_counts() {
        let report = EndReport::new(Timeline::start()).unwrap();
        assert!(report.take().is_none());
        assert!(!report.is_over());
        report.signal(PowerEvent::Reset);
        assert!(report.is_over());
        report.signal(PowerEvent::PowerOff);
        assert!(report.event().read().is_ok());
        assert_eq!(report.take().unwrap().exit_code(), 3);
        report.signal(PowerEvent::PowerOff);
        assert!(report.take().is_none(), "what comes later is no second end");
    }

    #[test]
    fn each_end_has_its_exit_code() {
        assert_eq!(Outcome::PowerOff.exit_code(), 0);
        assert_eq!(Outcome::Panicked.exit_code(), 4);
        assert_eq!(Outcome::DeviceLost(String::new()).exit_code(), 6);
        assert_eq!(Outcome::Stopped { signal: Some(15) }.exit_code(), 143);
        let crash = Outcome::Crashed {
            vcpu: 1,
            end: VcpuEnd::TripleFault,
        };
        assert_eq!(crash.exit_code(), 5);
        assert!(crash.to_string().contains("vCPU 1: triple fault"));
    }
}
