use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use passthrough::ports::{InterruptRoute, InterruptRouter, MsiMessage, PortError};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::kernel::{Kernel, Kvm};
use super::line::EventLine;
use super::route::{Core, Route};
use super::stats::RouterStats;
use super::table::Gsi;
use super::thread::{InterruptThread, Registry};

/// Why an interrupt could not be routed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// The routing table has no room.
    #[error("KVM's interrupt routing table is full, at 4096 entries: assign fewer devices")]
    Exhausted,
    /// No eventfd could be made.
    #[error("cannot make an eventfd; is the limit of open files too low (ulimit -n)?")]
    Event(#[source] io::Error),
    /// An event can't be watched.
    #[error(
        "cannot watch an interrupt's event; is the limit of watches too low (fs.epoll.max_user_watches)?"
    )]
    Watch(#[source] io::Error),
    /// The interrupts thread.
    #[error("cannot start the thread that delivers interrupts")]
    Thread(#[source] io::Error),
    /// KVM refused the routing table.
    #[error("KVM refuses the routing table of {0} entries")]
    Table(usize, #[source] Arc<io::Error>),
    /// KVM refused the irqfd.
    #[error("KVM refuses the irqfd for {0}")]
    Irqfd(Gsi, #[source] io::Error),
}

/// The VM's interrupt routing. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // The thread ends first; it uses the others.
    _thread: InterruptThread,
    core: Arc<Core<Kvm>>,
    registry: Arc<Registry>,
}

impl Router {
    /// The routing of `vm`, which must have its in-kernel irqchip.
    ///
    /// # Errors
    /// [`RouteError`] when the host has no thread or descriptor left.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, RouteError> {
        let core = Arc::new(Core::new(Kvm::new(vm).map_err(RouteError::Event)?));
        let registry = Arc::default();
        let thread = InterruptThread::start(&core, &registry, new_event()?);
        Ok(Self(Arc::new(Inner {
            _thread: thread.map_err(RouteError::Thread)?,
            core,
            registry,
        })))
    }

    /// An edge-triggered line into pin `gsi`.
    ///
    /// # Errors
    /// [`RouteError`] when KVM refuses the irqfd.
    pub fn line(&self, gsi: Gsi) -> Result<EventLine, RouteError> {
        let event = new_event()?;
        self.0
            .core
            .kernel
            .add_irqfd(&event, gsi)
            .map_err(|source| RouteError::Irqfd(gsi, source))?;
        Ok(EventLine::new(event))
    }

    /// What routing has cost so far.
    pub fn stats(&self) -> RouterStats {
        let gsis = self.0.core.table().len();
        self.0.core.counters.read(gsis)
    }
}

impl InterruptRouter for Router {
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>, PortError> {
        let Inner { core, registry, .. } = &*self.0;
        let route = Arc::new(Route::new(registry.id(), new_event()?));
        registry.insert(route.id(), Arc::clone(&route) as _);
        core.counters.routes.add(1);
        Ok(Box::new(Handle {
            router: Arc::clone(&self.0),
            route,
        }))
    }

    fn connect_all(
        &self,
        routes: &mut [(&mut dyn InterruptRoute, MsiMessage)],
    ) -> Vec<Result<(), PortError>> {
        // Those of another router stay out.
        let handles: Vec<_> = routes
            .iter()
            .map(|(route, message)| {
                let route: &dyn Any = &**route;
                let handle = route.downcast_ref::<Handle>();
                let handle = handle.filter(|handle| Arc::ptr_eq(&handle.router, &self.0));
                handle.map(|handle| (&*handle.route, *message))
            })
            .collect();
        let ours: Vec<_> = handles.iter().copied().flatten().collect();
        let mut results = Route::connect_all(&self.0.core, &ours).into_iter();
        handles
            .iter()
            .map(|handle| match handle.and_then(|_| results.next()) {
                Some(result) => result.map_err(Into::into),
                None => Err("the route is another router's".into()),
            })
            .collect()
    }
}

pub(super) fn new_event() -> Result<EventFd, RouteError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(RouteError::Event)
}

/// A route's owner.
#[derive(Debug)]
struct Handle {
    router: Arc<Inner>,
    route: Arc<Route<Kvm>>,
}

impl InterruptRoute for Handle {
    fn event(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(self.route.event())
    }

    fn connect(&mut self, message: MsiMessage) -> Result<(), PortError> {
        let results = Route::connect_all(&self.router.core, &[(&self.route, message)]);
        results.into_iter().try_for_each(|result| Ok(result?))
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        Ok(self.route.disconnect(&self.router.core)?)
    }

    fn is_pending(&self) -> bool {
        // Reading empties the counter, so what was read is put back. A signal
        // in between only adds to it.
        match self.route.event().read() {
            Ok(count) => {
                if let Err(error) = self.route.event().write(count) {
                    log::error!("lost a pending interrupt: {error}");
                    self.router.core.counters.lost.add(1);
                }
                true
            }
            Err(_) => false,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.router.registry.remove(self.route.id());
        if let Err(error) = self.route.release(&self.router.core) {
            log::warn!("{}", crate::outcome::Chain(&error));
        }
    }
}
