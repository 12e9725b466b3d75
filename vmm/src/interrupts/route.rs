use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passthrough::ports::MsiMessage;

use super::kernel::{Kernel, WatchId};
use super::router::RouteError;
use super::stats::Counters;
use super::table::{Seat, Table};

/// How many entries KVM refused, and why: the fields of [`RouteError::Table`],
/// which may befall several routes.
type TableError = (usize, Arc<io::Error>);

/// What all routes of a VM share.
#[derive(Debug)]
pub(super) struct Core<K> {
    pub(super) kernel: K,
    /// Lock order: after a PCI function's lock, then after a route's. Held
    /// while KVM takes the table, so that tables arrive in the order they were
    /// made.
    table: Mutex<Table>,
    pub(super) counters: Counters,
}

impl<K: Kernel> Core<K> {
    pub(super) fn new(kernel: K) -> Self {
        Self {
            kernel,
            table: Mutex::default(),
            counters: Counters::default(),
        }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives KVM the table, if it lacks something of it.
    pub(super) fn commit(&self) -> Result<(), RouteError> {
        let mut table = self.table();
        if table.is_behind() {
            self.commit_locked(&mut table)
                .map_err(|(size, cause)| RouteError::Table(size, cause))?;
        }
        Ok(())
    }

    fn commit_locked(&self, table: &mut Table) -> Result<(), TableError> {
        let size = table.size();
        self.kernel
            .set_table(table.messages())
            .map_err(|source| (size, Arc::new(source)))?;
        table.committed();
        self.counters.tables.add(1);
        self.counters.table_entries.add(size as u64);
        Ok(())
    }

    /// Puts other messages into seats, at once and all together.
    fn reseat(&self, changes: &[(Seat, MsiMessage)]) -> Result<Vec<Seat>, TableError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut table = self.table();
        let seats = changes.iter();
        let seats = seats.map(|(seat, message)| table.put(seat.gsi, *message));
        let seats = seats.collect();
        match self.commit_locked(&mut table) {
            Ok(()) => Ok(seats),
            Err(error) => {
                changes.iter().for_each(|(seat, _)| table.restore(*seat));
                Err(error)
            }
        }
    }

    fn add_irqfd(&self, event: &K::Event, seat: Seat) -> Result<(), RouteError> {
        // The route before the irqfd: the other way round a host kernel with
        // AVIC has crashed, and an early signal would go astray. KVM looks at
        // the counter too, so what was signalled before is delivered now.
        self.kernel
            .add_irqfd(event, seat.gsi)
            .map_err(|source| RouteError::Irqfd(seat.gsi, source))?;
        self.counters.irqfds.add(1);
        Ok(())
    }

    fn remove_irqfd(&self, event: &K::Event, seat: Seat) -> Result<(), RouteError> {
        self.kernel
            .remove_irqfd(event, seat.gsi)
            .map_err(|source| RouteError::Irqfd(seat.gsi, source))?;
        self.counters.irqfds_removed.add(1);
        Ok(())
    }

    fn inject(&self, message: MsiMessage) {
        self.counters.injections.add(1);
        match self.kernel.inject(message) {
            Ok(true) => {}
            Ok(false) => self.counters.untaken.add(1),
            // Nothing that a guest can write into a message comes to this.
            Err(_) => self.counters.lost.add(1),
        }
    }
}

/// How a route's signals reach the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Not at all: disconnected.
    Held,
    /// The interrupts thread injects this message.
    Watched(MsiMessage),
    /// KVM delivers the seat's message by an irqfd.
    Direct(Seat),
}

#[derive(Debug)]
struct State {
    way: Way,
    /// The place in the table, while `way` is not `Direct`, which has it then.
    /// Its message may not be the one to deliver any more.
    kept: Option<Seat>,
    /// The route is in the promoter's queue.
    queued: bool,
}

/// What became of a route in the promoter's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promotion {
    /// It has its irqfd.
    Done,
    /// KVM has not got its message yet.
    Later,
    /// It has no use for one any more.
    Gone,
}

/// One interrupt's way into the guest, shared by who connects it and the
/// interrupts thread.
///
/// Each step takes the lock for all of its work. A signal is therefore taken
/// from the counter and injected in one step, and no other can come in between:
/// nothing is injected after the route is disconnected, nor with an old message
/// after it is connected with a new one.
#[derive(Debug)]
pub(super) struct Route<K: Kernel> {
    id: WatchId,
    event: K::Event,
    /// Lock order: before the table's.
    state: Mutex<State>,
}

impl<K: Kernel> Route<K> {
    pub(super) fn new(id: WatchId, event: K::Event) -> Self {
        Self {
            id,
            event,
            state: Mutex::new(State {
                way: Way::Held,
                kept: None,
                queued: false,
            }),
        }
    }

    pub(super) fn id(&self) -> WatchId {
        self.id
    }

    pub(super) fn event(&self) -> &K::Event {
        &self.event
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`InterruptRouter::connect_all`](passthrough::ports::InterruptRouter::connect_all).
    ///
    /// Only the owner of a route calls this, and nobody else changes the way of
    /// one that is direct: it may be seated anew between two locks.
    pub(super) fn connect_all(
        core: &Core<K>,
        routes: &[(&Self, MsiMessage)],
    ) -> Vec<Result<(), RouteError>> {
        let mut live = Vec::new();
        let mut changes = Vec::new();
        let mut results = Vec::new();
        for (index, (route, message)) in routes.iter().enumerate() {
            let seat = route.connect(core, *message);
            if let Ok(Some(seat)) = seat {
                live.push((index, *route));
                changes.push((seat, *message));
            }
            results.push(seat.map(drop));
        }
        match core.reseat(&changes) {
            Ok(seats) => {
                for ((_, route), seat) in live.into_iter().zip(seats) {
                    route.lock().way = Way::Direct(seat);
                }
            }
            Err((size, cause)) => {
                for (index, _) in live {
                    results[index] = Err(RouteError::Table(size, Arc::clone(&cause)));
                }
            }
        }
        results
    }

    /// Connects the route, unless it is direct and has another message: answers
    /// its seat then, which must have the new one.
    fn connect(&self, core: &Core<K>, message: MsiMessage) -> Result<Option<Seat>, RouteError> {
        let mut state = self.lock();
        match (state.way, state.kept) {
            (Way::Direct(seat), _) => {
                return Ok((seat.message != message).then_some(seat));
            }
            (Way::Watched(_), _) => state.way = Way::Watched(message),
            (Way::Held, Some(seat)) if seat.message == message && core.table().has(seat) => {
                core.add_irqfd(&self.event, seat)?;
                state.way = Way::Direct(seat);
                state.kept = None;
            }
            (Way::Held, _) => {
                core.kernel
                    .watch(&self.event, self.id)
                    .map_err(RouteError::Watch)?;
                state.way = Way::Watched(message);
                // What was signalled before need not wait for the thread.
                self.deliver(core, message);
            }
        }
        Ok(None)
    }

    /// As [`InterruptRoute::disconnect`](passthrough::ports::InterruptRoute::disconnect).
    pub(super) fn disconnect(&self, core: &Core<K>) -> Result<(), RouteError> {
        self.hold(core, &mut self.lock())
    }

    fn hold(&self, core: &Core<K>, state: &mut State) -> Result<(), RouteError> {
        match state.way {
            Way::Held => {}
            Way::Watched(_) => self.unwatch(core),
            Way::Direct(seat) => {
                core.remove_irqfd(&self.event, seat)?;
                state.kept = Some(seat);
            }
        }
        state.way = Way::Held;
        Ok(())
    }

    /// Disconnects for good and gives the GSI back. What was signalled while
    /// the route was connected is delivered.
    pub(super) fn release(&self, core: &Core<K>) -> Result<(), RouteError> {
        let mut state = self.lock();
        if let Way::Watched(message) = state.way {
            self.deliver(core, message);
        }
        self.hold(core, &mut state)?;
        if let Some(seat) = state.kept.take() {
            core.table().remove(seat.gsi);
        }
        Ok(())
    }

    /// The interrupts thread found the event signalled. Says whether the route
    /// is to be queued for its irqfd.
    pub(super) fn signalled(&self, core: &Core<K>) -> bool {
        let mut state = self.lock();
        match state.way {
            Way::Watched(message) if self.deliver(core, message) => {
                !std::mem::replace(&mut state.queued, true)
            }
            _ => {
                core.counters.spurious.add(1);
                false
            }
        }
    }

    /// Puts a queued route into the table. Says whether it waits for its
    /// irqfd; otherwise it has left the queue. Without a free GSI it stays
    /// with the interrupts thread, and may be queued again.
    pub(super) fn seat(&self, core: &Core<K>) -> Result<bool, RouteError> {
        let mut state = self.lock();
        let Way::Watched(message) = state.way else {
            state.queued = false;
            return Ok(false);
        };
        let mut table = core.table();
        let seat = match state.kept {
            Some(seat) if seat.message == message => Some(seat),
            Some(seat) => Some(table.put(seat.gsi, message)),
            None => table.seat(message),
        };
        state.kept = seat;
        if seat.is_none() {
            state.queued = false;
            return Err(RouteError::Exhausted);
        }
        Ok(true)
    }

    /// Gives a queued route its irqfd, if KVM's table has its message.
    pub(super) fn promote(&self, core: &Core<K>) -> Result<Promotion, RouteError> {
        let mut state = self.lock();
        match (state.way, state.kept) {
            (Way::Watched(message), Some(seat))
                if seat.message == message && core.table().has(seat) =>
            {
                state.queued = false;
                core.add_irqfd(&self.event, seat)?;
                self.unwatch(core);
                state.way = Way::Direct(seat);
                state.kept = None;
                core.counters.promotions.add(1);
                Ok(Promotion::Done)
            }
            (Way::Watched(_), _) => Ok(Promotion::Later),
            (Way::Held | Way::Direct(_), _) => {
                state.queued = false;
                Ok(Promotion::Gone)
            }
        }
    }

    /// Leaves the promoter's queue as it is. It may be queued again.
    pub(super) fn dequeue(&self) {
        self.lock().queued = false;
    }

    /// Injects what the event counts, if it counts anything.
    fn deliver(&self, core: &Core<K>, message: MsiMessage) -> bool {
        let signalled = core.kernel.take(&self.event) > 0;
        if signalled {
            core.inject(message);
        }
        signalled
    }

    fn unwatch(&self, core: &Core<K>) {
        // It can fail only where nothing was watched.
        if let Err(error) = core.kernel.unwatch(&self.event) {
            log::debug!("an event was not watched: {error}");
        }
    }

    /// The state without what only counts up: two routes of the same shape
    /// behave the same from now on.
    #[cfg(test)]
    pub(super) fn shape(&self, core: &Core<K>) -> (Shape, Option<(u32, bool)>, bool) {
        let state = self.lock();
        let table = core.table();
        let seat = |seat: Seat| (seat.message.data, table.has(seat));
        let way = match state.way {
            Way::Held => Shape::Held,
            Way::Watched(message) => Shape::Watched(message.data),
            Way::Direct(direct) => Shape::Direct(seat(direct)),
        };
        (way, state.kept.map(seat), state.queued)
    }
}

/// A [`Way`] for the model test: messages by their data, seats by theirs and
/// whether KVM has it.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    Held,
    Watched(u32),
    Direct((u32, bool)),
}
