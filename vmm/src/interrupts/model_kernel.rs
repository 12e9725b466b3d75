//! A kernel for the model test: one eventfd, and what epoll, irqfd and the
//! routing table do with it (Linux, virt/kvm/eventfd.c and irqchip.c).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use passthrough::ports::MsiMessage;

use super::kernel::{Kernel, WatchId};
use super::table::Gsi;

/// What may happen by itself at any moment, also in the middle of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Chance {
    /// The device signals its event.
    Fire,
    /// KVM's work queue injects what an irqfd found when it was made.
    Work,
    /// The call that comes next is refused.
    Refuse,
}

/// A kernel that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// A new irqfd does not look at the counter.
    BlindIrqfd,
    /// Taking an irqfd away leaves in the counter what was delivered.
    StaleCounter,
    /// Taking an irqfd away does not wait for the work queue.
    NoFlush,
}

/// What a rule of the game was broken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Violation {
    /// A signal that never arrives.
    Lost,
    /// More interrupts than signals.
    Invented,
    /// An interrupt after `disconnect` returned.
    Held,
    /// With a message that the guest did not program.
    Message,
    /// The pending bit is not the truth.
    Pending,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) counter: u8,
    pub(super) watched: bool,
    irqfd: bool,
    /// An injection waits in KVM's work queue.
    pub(super) work: bool,
    /// KVM's route, by its message's data.
    route: Option<u32>,
    /// Messages that are right at the moment; none while the guest masks.
    pub(super) allowed: (Option<u32>, Option<u32>),
    /// Signals less interrupts.
    credit: u8,
    /// The counter has signals that were not delivered.
    pub(super) fresh: bool,
    /// Signals were taken from the counter to be injected.
    taken: bool,
    /// Calls that may be refused yet.
    pub(super) refusals: u8,
}

#[derive(Debug)]
struct Inner {
    world: World,
    /// What happens before the how many-th call from now.
    chance: Option<(usize, Chance)>,
    calls: usize,
    violation: Option<Violation>,
    defect: Option<Defect>,
}

#[derive(Clone, Debug)]
pub(super) struct ModelKernel(Arc<Mutex<Inner>>);

impl ModelKernel {
    pub(super) fn new(defect: Option<Defect>, refusals: u8) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            world: World {
                counter: 0,
                watched: false,
                irqfd: false,
                work: false,
                route: None,
                allowed: (None, None),
                credit: 0,
                fresh: false,
                taken: false,
                refusals,
            },
            chance: None,
            calls: 0,
            violation: None,
            defect,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(super) fn world(&self) -> World {
        self.lock().world.clone()
    }

    pub(super) fn violation(&self) -> Option<Violation> {
        self.lock().violation
    }

    /// A step begins, in which `chance` happens before the given call.
    pub(super) fn begin(&self, chance: Option<(usize, Chance)>) {
        let mut inner = self.lock();
        inner.chance = chance;
        inner.calls = 0;
    }

    /// The step ends. Answers how many calls it made, and whether its chance
    /// came true.
    pub(super) fn end(&self) -> (usize, bool) {
        let mut inner = self.lock();
        inner.settle();
        (inner.calls, inner.chance.take().is_none())
    }

    /// Something happens between two steps.
    pub(super) fn happen(&self, chance: Chance) {
        let mut inner = self.lock();
        inner.happen(chance);
        inner.settle();
    }

    /// The guest's messages that are right from now on.
    pub(super) fn allow(&self, one: Option<u32>, other: Option<u32>) {
        self.lock().world.allowed = (one, other);
    }

    /// A call begins.
    fn call(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        if let Some((at, chance)) = inner.chance
            && at == inner.calls
            && inner.world.can(chance)
            && chance != Chance::Refuse
        {
            inner.chance = None;
            inner.happen(chance);
        }
        inner.calls += 1;
        inner
    }

    /// A call begins that may be refused.
    fn fallible(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.call();
        let refused = inner.chance == Some((inner.calls - 1, Chance::Refuse));
        if refused && inner.world.can(Chance::Refuse) {
            inner.chance = None;
            inner.world.refusals -= 1;
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Ok(inner)
    }
}

impl World {
    /// Something was signalled that has not been delivered.
    pub(super) fn is_outstanding(&self) -> bool {
        self.fresh || self.taken
    }

    /// Whether it may happen now. More signals at once than two are no other
    /// case.
    pub(super) fn can(&self, chance: Chance) -> bool {
        match chance {
            Chance::Fire => self.counter < 2 && self.credit < 3,
            Chance::Work => self.work,
            Chance::Refuse => self.refusals > 0,
        }
    }
}

impl Inner {
    /// With nothing on its way, all signals were delivered, some together.
    fn settle(&mut self) {
        if !self.world.is_outstanding() && !self.world.work {
            self.world.credit = 0;
        }
    }

    fn happen(&mut self, chance: Chance) {
        match chance {
            Chance::Fire => {
                self.world.fresh = true;
                self.world.credit += 1;
                self.world.counter += 1;
                if self.world.irqfd {
                    self.world.counter = 0;
                    self.deliver_route();
                }
            }
            Chance::Work => {
                self.world.work = false;
                self.deliver_route();
            }
            Chance::Refuse => {}
        }
    }

    /// Delivers by KVM's table; without an entry the signal is gone.
    fn deliver_route(&mut self) {
        if let Some(data) = self.world.route {
            self.world.fresh = false;
            self.deliver(data);
        }
    }

    fn deliver(&mut self, data: u32) {
        let (one, other) = self.world.allowed;
        let found = if one.is_none() && other.is_none() {
            Some(Violation::Held)
        } else if one != Some(data) && other != Some(data) {
            Some(Violation::Message)
        } else if self.world.credit == 0 {
            Some(Violation::Invented)
        } else {
            None
        };
        self.violation = self.violation.or(found);
        self.world.credit = self.world.credit.saturating_sub(1);
    }
}

impl Kernel for ModelKernel {
    type Event = ();

    fn set_table(&self, messages: &BTreeMap<Gsi, MsiMessage>) -> io::Result<()> {
        // There is one route.
        let message = messages.values().next();
        self.fallible()?.world.route = message.map(|message| message.data);
        Ok(())
    }

    fn add_irqfd(&self, _: &(), _: Gsi) -> io::Result<()> {
        let mut inner = self.fallible()?;
        inner.world.irqfd = true;
        let looks = inner.defect != Some(Defect::BlindIrqfd);
        inner.world.work = looks && inner.world.counter > 0;
        Ok(())
    }

    fn remove_irqfd(&self, _: &(), _: Gsi) -> io::Result<()> {
        let mut inner = self.fallible()?;
        inner.world.irqfd = false;
        let defect = inner.defect;
        if defect != Some(Defect::StaleCounter) {
            inner.world.counter = 0;
        }
        if inner.world.work && defect != Some(Defect::NoFlush) {
            inner.happen(Chance::Work);
        }
        Ok(())
    }

    fn inject(&self, message: MsiMessage) -> io::Result<bool> {
        let mut inner = self.call();
        inner.world.taken = false;
        inner.deliver(message.data);
        Ok(true)
    }

    fn watch(&self, _: &(), _: WatchId) -> io::Result<()> {
        self.fallible()?.world.watched = true;
        Ok(())
    }

    fn unwatch(&self, _: &()) -> io::Result<()> {
        self.call().world.watched = false;
        Ok(())
    }

    fn take(&self, _: &()) -> u64 {
        let world = &mut self.call().world;
        world.taken |= std::mem::take(&mut world.fresh);
        std::mem::take(&mut world.counter).into()
    }
}
