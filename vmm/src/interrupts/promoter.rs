use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use super::route::{Core, Promotion, Route};
use super::router::RouteError;

/// Below this many routes in the table, a table is cheap enough for each.
const FEW: usize = 64;
/// With more, a table is written when one part in so many of it is new: N
/// routes that fire in quick succession write about N * (SHARE + 1) entries.
const SHARE: usize = 8;
/// Or when the first has waited for so long: at most 50 tables a second.
const PATIENCE: Duration = Duration::from_millis(20);

/// Whether a table is worth it for `waiting` routes, with `seated` in it.
fn is_worth_it(waiting: usize, seated: usize) -> bool {
    seated + waiting <= FEW || waiting * SHARE >= seated
}

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
        if waiting == 0 {
            None
        } else if is_worth_it(waiting, core.table().len()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries written in all when so many routes fire one after the other.
    fn written(routes: usize) -> usize {
        let (mut seated, mut waiting, mut entries) = (0, 0, 0);
        for _ in 0..routes {
            waiting += 1;
            if is_worth_it(waiting, seated) {
                seated += std::mem::take(&mut waiting);
                entries += seated;
            }
        }
        // The rest, after some patience.
        entries + seated + waiting
    }

    #[test]
    fn the_work_is_linear() {
        assert!(is_worth_it(1, 0), "the first goes at once");
        for routes in [64, 256, 1024, 2048, 4056] {
            let each = written(routes) / routes;
            assert!(each <= FEW / 2 + SHARE + 2, "{routes}: {each} entries each");
        }
        let (some, many) = (written(1024), written(4096));
        assert!(many < 5 * some, "{many} for four times those of {some}");
    }
}
