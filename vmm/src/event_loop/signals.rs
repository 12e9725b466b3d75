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

/// SIGTERM, SIGINT and SIGHUP end the VM in good order.
///
/// Process-wide: for the command, not for an embedding monitor.
#[derive(Debug)]
pub struct Signals {
    wake: EventFd,
    report: Arc<EndReport>,
}

impl Signals {
    /// Takes the three signals over, for the rest of the process's life.
    ///
    /// # Errors
    /// When no eventfd or handler can be had.
    pub fn install(report: Arc<EndReport>) -> io::Result<Self> {
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
            report,
        })
    }
}

/// Only what a signal handler may do: an atomic store and a write(2).
extern "C" fn handle(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    LAST.store(signal, Ordering::Release);
    if let Some(wake) = WAKE.get() {
        let _ = wake.write(1);
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if self.wake.read().is_ok() {
            let signal = Some(LAST.load(Ordering::Acquire));
            self.report.end(Outcome::Stopped { signal });
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::new(&self.wake, EventSet::IN), "signals");
    }
}
