use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

use super::watch;
use crate::outcome::{EndReport, Outcome};

static WAKE: OnceLock<EventFd> = OnceLock::new();
static LAST: AtomicI32 = AtomicI32::new(0);

/// SIGTERM, SIGINT and SIGHUP end the process in good order: what was taken
/// from the host is given back first.
///
/// Process-wide: for the command, not for an embedding monitor.
#[derive(Debug)]
pub struct Signals {
    wake: EventFd,
}

impl Signals {
    /// Takes the three signals over, for the rest of the process's life. They
    /// no longer end the process: look at [`Self::arrived`] between steps, or
    /// put a [`Self::watch`] into the event loop.
    ///
    /// # Errors
    /// When no eventfd or handler can be had.
    pub fn take_over() -> io::Result<Self> {
        let wake = match WAKE.get() {
            Some(wake) => wake,
            None => {
                let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                WAKE.get_or_init(|| event)
            }
        };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            register_signal_handler(signal, handle)?;
        }
        Ok(Self {
            wake: wake.try_clone()?,
        })
    }

    /// The number of a signal that has arrived and was not acted on.
    pub fn arrived(&self) -> Option<i32> {
        self.wake.read().ok().map(|_| LAST.load(Ordering::Acquire))
    }

    /// Ends the VM of `report` when a signal arrives, or did before.
    pub fn watch(self, report: Arc<EndReport>) -> SignalWatch {
        SignalWatch {
            signals: self,
            report,
        }
    }
}

/// Signals, as a part of the event loop.
#[derive(Debug)]
pub struct SignalWatch {
    signals: Signals,
    report: Arc<EndReport>,
}

/// Only what a signal handler may do: an atomic store and a write(2).
extern "C" fn handle(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    LAST.store(signal, Ordering::Release);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1);
    }
}

impl MutEventSubscriber for SignalWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Some(signal) = self.signals.arrived() {
            let signal = Some(signal);
            self.report.end(Outcome::Stopped { signal });
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(
            ops,
            Events::new(&self.signals.wake, EventSet::IN),
            "signals",
        );
    }
}
