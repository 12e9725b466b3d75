//! The main thread's event loop: the end of the VM, signals, the terminal.

mod console;
mod guard;
mod signals;
mod terminal;

use std::sync::Arc;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

pub use console::Console;
pub(crate) use console::RoomNotice;
pub use guard::{GuardWatch, Removable};
pub use signals::Signals;
pub use terminal::RawTerminal;

use crate::outcome::{EndReport, Outcome};

/// Why the loop could not go on.
#[derive(Debug, Error)]
#[error("the event loop failed")]
pub struct LoopError(#[from] event_manager::Error);

/// Something that the loop watches.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// Runs until the VM has ended.
///
/// # Errors
/// [`LoopError`] when epoll fails.
pub fn run(report: &Arc<EndReport>, subscribers: Vec<Subscriber>) -> Result<Outcome, LoopError> {
    let mut manager: EventManager<Subscriber> = EventManager::new()?;
    for subscriber in subscribers {
        manager.add_subscriber(subscriber);
    }
    manager.add_subscriber(Box::new(EndWatch(Arc::clone(report))));
    loop {
        if let Some(outcome) = report.take() {
            return Ok(outcome);
        }
        manager.run()?;
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
fn watch(ops: &mut EventOps, events: Events, what: &str) -> bool {
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
    use std::time::Duration;

    #[test]
    fn the_loop_ends_with_the_report() {
        let report = EndReport::new(Timeline::start()).unwrap();
        let other = Arc::clone(&report);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.end(Outcome::PowerOff);
        });
        let outcome = run(&report, Vec::new()).unwrap();
        assert!(matches!(outcome, Outcome::PowerOff));
        thread.join().unwrap();
    }
}
