use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EpollEvent;
use vmm_sys_util::eventfd::EventFd;

use super::kernel::{Kernel, Kvm, WatchId};
use super::promoter::Queue;
use super::route::{Core, Route};

/// The event that ends the thread.
const STOP: WatchId = WatchId(0);
/// Events that one call of epoll answers.
const BATCH: usize = 64;

/// Something whose event the interrupts thread watches.
pub(super) trait Watched: Send + Sync + Debug {
    /// Its event counted something a moment ago; it may have been taken since.
    fn signalled(self: Arc<Self>, core: &Core<Kvm>, queue: &mut Queue<Kvm>);
}

impl Watched for Route<Kvm> {
    fn signalled(self: Arc<Self>, core: &Core<Kvm>, queue: &mut Queue<Kvm>) {
        if Route::signalled(&self, core) {
            queue.push(self, Instant::now());
        }
    }
}

/// What the interrupts thread may be woken for.
#[derive(Debug, Default)]
pub(super) struct Registry {
    last: AtomicU64,
    /// Innermost lock: nothing is called while it is held.
    watched: Mutex<BTreeMap<WatchId, Arc<dyn Watched>>>,
}

impl Registry {
    /// An id that no other has or had, so that a late wake-up finds nobody.
    pub(super) fn id(&self) -> WatchId {
        WatchId(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) fn insert(&self, id: WatchId, watched: Arc<dyn Watched>) {
        self.lock().insert(id, watched);
    }

    pub(super) fn remove(&self, id: WatchId) {
        // Dropped after the lock is let go.
        let _watched = self.lock().remove(&id);
    }

    fn find(&self, id: WatchId) -> Option<Arc<dyn Watched>> {
        self.lock().get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WatchId, Arc<dyn Watched>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interrupts thread: delivers what no irqfd delivers. Dropping ends it.
#[derive(Debug)]
pub(super) struct InterruptThread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl InterruptThread {
    /// Starts it. `stop` is an event of its own.
    pub(super) fn start(
        core: &Arc<Core<Kvm>>,
        registry: &Arc<Registry>,
        stop: EventFd,
    ) -> io::Result<Self> {
        core.kernel.watch(&stop, STOP)?;
        let (core, registry) = (Arc::clone(core), Arc::clone(registry));
        let thread = std::thread::Builder::new()
            .name("interrupts".into())
            .spawn(move || run(&core, &registry))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for InterruptThread {
    fn drop(&mut self) {
        if let Err(error) = self.stop.write(1) {
            log::error!("cannot end the interrupts thread: {error}");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the interrupts thread panicked");
        }
    }
}

fn run(core: &Core<Kvm>, registry: &Registry) {
    let mut queue = Queue::new();
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        let count = match core
            .kernel
            .wait(milliseconds(queue.wait(core, Instant::now())), &mut events)
        {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                log::error!("interrupts that have no irqfd are lost from now on: {error}");
                return;
            }
        };
        for event in events.iter().take(count) {
            match WatchId(event.data()) {
                STOP => return,
                id => {
                    if let Some(watched) = registry.find(id) {
                        watched.signalled(core, &mut queue);
                    }
                }
            }
        }
        let now = Instant::now();
        if queue.wait(core, now) == Some(Duration::ZERO) {
            queue.promote(core, now);
        }
    }
}

/// For epoll: rounded up, so that time has really passed; -1 for ever.
fn milliseconds(wait: Option<Duration>) -> i32 {
    let Some(wait) = wait else { return -1 };
    i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_rounded_up() {
        assert_eq!(milliseconds(None), -1);
        assert_eq!(milliseconds(Some(Duration::ZERO)), 0);
        assert_eq!(milliseconds(Some(Duration::from_nanos(1))), 1);
        assert_eq!(milliseconds(Some(Duration::from_millis(20))), 20);
        assert_eq!(milliseconds(Some(Duration::MAX)), i32::MAX);
    }
}
