//! The main thread's event loop: the end of the VM, signals, the terminal.

mod console;
mod guard;
mod lull;
mod signals;
mod terminal;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use console::Console;
pub(crate) use console::RoomNotice;
pub use guard::{GuardWatch, Removable};
pub use lull::Lull;
pub use signals::Signals;
pub use terminal::RawTerminal;

use crate::outcome::{EndReport, Outcome};

/// Why the loop could not go on.
#[derive(Debug, Error)]
pub enum LoopError {
    /// epoll failed.
    #[error("the event loop failed")]
    Epoll(#[from] event_manager::Error),
    /// No descriptor was left.
    #[error("the event loop can't watch another event")]
    Watch(#[source] std::io::Error),
}

/// Something that the loop watches.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// The loop, and what it watches.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
    report: Arc<EndReport>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

impl EventLoop {
    /// Watches `subscribers` and the end of the VM.
    ///
    /// # Errors
    /// [`LoopError`] when epoll fails.
    pub fn new(report: &Arc<EndReport>, subscribers: Vec<Subscriber>) -> Result<Self, LoopError> {
        let mut manager: EventManager<Subscriber> = EventManager::new()?;
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        manager.add_subscriber(Box::new(EndWatch(Arc::clone(report))));
        Ok(Self {
            manager,
            report: Arc::clone(report),
        })
    }

    /// Runs until the VM has ended.
    ///
    /// # Errors
    /// [`LoopError`] when epoll fails.
    pub fn run(&mut self) -> Result<Outcome, LoopError> {
        loop {
            if let Some(outcome) = self.report.take() {
                return Ok(outcome);
            }
            self.manager.run()?;
        }
    }

    /// Runs until `event` is signalled; or until the VM has ended, which the
    /// answer is then. Calls `tell` as often as `every` has passed.
    ///
    /// # Errors
    /// [`LoopError`] when epoll fails, or can't watch the event.
    pub fn run_until(
        &mut self,
        event: &EventFd,
        every: Duration,
        tell: impl Fn(),
    ) -> Result<Option<Outcome>, LoopError> {
        let seen = Arc::new(AtomicBool::new(false));
        let event = event.try_clone().map_err(LoopError::Watch)?;
        let watch = Once {
            event,
            seen: Arc::clone(&seen),
        };
        let id = self.manager.add_subscriber(Box::new(watch));
        let mut told = Instant::now();
        let outcome = loop {
            if let Some(outcome) = self.report.take() {
                break Some(outcome);
            }
            if seen.load(Ordering::Relaxed) {
                break None;
            }
            let left = every.saturating_sub(told.elapsed());
            if left.is_zero() {
                told = Instant::now();
                tell();
                continue;
            }
            // Rounded up: not a moment too early.
            let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            self.manager
                .run_with_timeout(milliseconds.saturating_add(1))?;
        };
        drop(self.manager.remove_subscriber(id));
        Ok(outcome)
    }
}

/// Says so when an event has been signalled.
struct Once {
    event: EventFd,
    seen: Arc<AtomicBool>,
}

impl MutEventSubscriber for Once {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if self.event.read().is_ok() {
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new(&self.event, EventSet::IN);
        if !watch(ops, events, "what the start waits for") {
            // Who asks next finds out by itself.
            self.seen.store(true, Ordering::Relaxed);
        }
    }
}

/// Wakes the loop when the VM has ended.
struct EndWatch(Arc<EndReport>);

impl MutEventSubscriber for EndWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // The loop looks at the report after each round.
        let _ = self.0.event().read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(
            ops,
            Events::new(self.0.event(), EventSet::IN),
            "the end of the VM",
        );
    }
}

/// Adds what to watch; what can't be watched is said once, and done without.
pub(crate) fn watch(ops: &mut EventOps, events: Events, what: &str) -> bool {
    match ops.add(events) {
        Ok(()) => true,
        Err(error) => {
            log::warn!("cannot watch {what}: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::Timeline;

    #[test]
    fn the_loop_ends_with_the_report() {
        let report = EndReport::new(Timeline::start()).unwrap();
        let other = Arc::clone(&report);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.end(Outcome::PowerOff);
        });
        let outcome = EventLoop::new(&report, Vec::new()).unwrap().run().unwrap();
        assert!(matches!(outcome, Outcome::PowerOff));
        thread.join().unwrap();
    }

    #[test]
    fn the_loop_pauses_at_an_event_or_at_the_end() {
        let report = EndReport::new(Timeline::start()).unwrap();
        let mut events = EventLoop::new(&report, Vec::new()).unwrap();
        let event = EventFd::new(0).unwrap();
        let told = std::cell::Cell::new(0);
        let tell = || {
            told.set(told.get() + 1);
            if told.get() == 3 {
                event.write(1).unwrap();
            }
        };
        let short = Duration::from_millis(1);
        assert!(events.run_until(&event, short, tell).unwrap().is_none());
        assert!(told.get() >= 3);
        report.end(Outcome::PowerOff);
        let outcome = events.run_until(&event, Duration::MAX, || {}).unwrap();
        assert!(matches!(outcome, Some(Outcome::PowerOff)));
    }
}
