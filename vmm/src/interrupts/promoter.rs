use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use super::route::{Core, Promotion, Route};
use super::router::RouteError;

/// Below this many routes in the table, a table is cheap enough for each.
const FEW: usize = 64;
/// With more, a table is written when this part of it is new. N routes that
/// fire one by one then write at most about N * (SHARE + 1) entries in all.
const SHARE: usize = 8;
/// Or after this time: at most 50 tables a second.
const PATIENCE: Duration = Duration::from_millis(20);

/// Routes that have fired and wait for their irqfd. Meanwhile the interrupts
/// thread delivers for them.
#[derive(Debug)]
pub(super) struct Queue<K: Kernel> {
    waiting: Vec<Arc<Route<K>>>,
    /// Since when the first of them waits.
    since: Instant,
    /// What kept routes from their irqfd was said.
    said: bool,
}

impl<K: Kernel> Queue<K> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            since: Instant::now(),
            said: false,
        }
    }

    /// Adds a route, once.
    pub(super) fn push(&mut self, route: Arc<Route<K>>, now: Instant) {
        if self.waiting.is_empty() {
            self.since = now;
        }
        self.waiting.push(route);
    }

    /// How long until there is something to promote; nothing when no route
    /// waits.
    pub(super) fn wait(&self, core: &Core<K>, now: Instant) -> Option<Duration> {
        let waiting = self.waiting.len();
        let in_table = core.table().len();
        if waiting == 0 {
            None
        } else if in_table + waiting <= FEW || waiting * SHARE >= in_table {
            Some(Duration::ZERO)
        } else {
            Some(PATIENCE.saturating_sub(now.saturating_duration_since(self.since)))
        }
    }

    /// Gives all waiting routes their irqfds, with one table for all.
    pub(super) fn promote(&mut self, core: &Core<K>, now: Instant) {
        let mut seated = Vec::new();
        for route in std::mem::take(&mut self.waiting) {
            match route.seat(core) {
                Ok(true) => seated.push(route),
                Ok(false) => {}
                Err(error) => self.say(&error),
            }
        }
        if let Err(error) = core.commit() {
            self.say(&error);
            seated.iter().for_each(|route| route.dequeue());
            return;
        }
        for route in seated {
            match route.promote(core) {
                // Reprogrammed since it was seated.
                Ok(Promotion::Later) => self.push(route, now),
                Ok(Promotion::Done | Promotion::Gone) => {}
                Err(error) => self.say(&error),
            }
        }
    }

    fn say(&mut self, error: &RouteError) {
        if !std::mem::replace(&mut self.said, true) {
            let error = crate::outcome::Chain(error);
            log::warn!("some interrupts are delivered by user space, which is slower: {error}");
        }
    }
}
