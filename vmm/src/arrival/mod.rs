//! Assigned devices that arrive beside the guest's boot.
//!
//! The kernel resets a device when it is opened, which takes a tenth of a second or
//! longer, and a guest looks at its devices late in its boot. So vCPUs start at once, and
//! what waits is the first access to a device's config space:
//!
//! ```text
//!  main thread   files open, groups joined | build the rest | run ........ | devices take their places
//!  Opening                                   | resets ...................... |
//!  vCPUs                                                      | boot ... | waits | boot ..........
//! ```
//!
//! What devices and their ports are is foretold, and answered before that
//! ([`ConfigGate`]).

mod gate;
mod newcomers;
mod opening;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use passthrough::AssignedDevice;
use passthrough::iommu::AddressSpace;

pub use gate::ConfigGate;
pub use newcomers::{ArrivalError, Newcomers, Stand};
pub use opening::Opening;

/// After this long a waiting guest is worth a line in the log, and again and again
/// after as much.
const SLOW: Duration = Duration::from_secs(5);

/// Whether the assigned devices have taken their places in the guest.
#[derive(Debug, Default)]
pub struct Arrival {
    /// What `state` says, to be had without its lock.
    here: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// The devices, in the guest.
#[derive(Debug)]
pub struct Arrived {
    /// Their functions.
    pub functions: Vec<Arc<Mutex<AssignedDevice>>>,
    /// The address space that is theirs.
    pub space: Arc<dyn AddressSpace>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Awaited,
    /// Until they are taken away, when the guest is over.
    Here(Option<Arrived>),
    /// They will not come. Why, unless the VM ended first or that was taken.
    Never(Option<ArrivalError>),
}

impl Arrival {
    /// They are awaited.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether they are here.
    pub fn is_here(&self) -> bool {
        self.here.load(Ordering::Acquire)
    }

    /// They are here: whoever waits goes on.
    fn complete(&self, arrived: Arrived) {
        self.change(State::Here(Some(arrived)));
    }

    /// Those that are here, to be given back.
    pub fn take(&self) -> Option<Arrived> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Here(arrived) => arrived.take(),
            State::Awaited | State::Never(_) => None,
        }
    }

    /// They will not come, for a reason that [`Self::take_failure`] gives.
    pub fn fail(&self, error: ArrivalError) {
        self.change(State::Never(Some(error)));
    }

    /// Nobody need wait for them any more, unless they are here.
    pub fn give_up(&self) {
        self.change(State::Never(None));
    }

    /// Why they did not come. Given once.
    pub fn take_failure(&self) -> Option<ArrivalError> {
        match &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Never(error) => error.take(),
            State::Awaited | State::Here(_) => None,
        }
    }

    /// The first word counts.
    fn change(&self, to: State) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Awaited) {
            self.here
                .store(matches!(to, State::Here(_)), Ordering::Release);
            *state = to;
            self.changed.notify_all();
        }
    }

    /// Waits until they are here. False when they will not come. Called on vCPU threads.
    fn wait(&self) -> bool {
        let begun = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *state {
                State::Awaited => {}
                State::Here(_) => break,
                State::Never(_) => return false,
            }
            let (next, timeout) = self
                .changed
                .wait_timeout(state, SLOW)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() {
                log::warn!("the guest waits for its devices, which the host's kernel resets");
            }
        }
        log::debug!("config space waited {:?} for the devices", begun.elapsed());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passthrough::fake::{FakeSpace, Journal};

    pub(super) fn nobody() -> Arrived {
        Arrived {
            functions: Vec::new(),
            space: Arc::new(FakeSpace::new(&Journal::default())),
        }
    }

    #[test]
    fn the_first_word_counts() {
        let arrival = Arrival::new();
        assert!(!arrival.is_here());
        arrival.complete(nobody());
        arrival.give_up();
        assert!(arrival.is_here() && arrival.wait());
        assert!(arrival.take().is_some() && arrival.take().is_none());
        let arrival = Arrival::new();
        arrival.fail(ArrivalError::Panicked);
        arrival.complete(nobody());
        assert!(!arrival.is_here() && !arrival.wait());
        assert!(matches!(
            arrival.take_failure(),
            Some(ArrivalError::Panicked)
        ));
        assert!(arrival.take_failure().is_none());
    }

    #[test]
    fn whoever_waits_goes_on() {
        for arrives in [true, false] {
            let arrival = Arrival::new();
            let other = Arc::clone(&arrival);
            let waits = std::thread::spawn(move || other.wait());
            match arrives {
                true => arrival.complete(nobody()),
                false => arrival.give_up(),
            }
            assert_eq!(waits.join().unwrap(), arrives);
        }
    }
}
