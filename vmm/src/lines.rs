//! The guest's interrupt lines: what the interrupt pins of PCI functions drive.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use devices::pci::{PciAddress, PinWiring};
use event_manager::{EventOps, EventSet as LoopSet, Events, MutEventSubscriber};
use kvm_ioctls::{Cap, VmFd};
use passthrough::ports::{
    InterruptLine, InterruptPin, InterruptRoute, InterruptRouter, MsiMessage, PortError,
};
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::Acknowledgement;
use crate::event_loop::Subscriber;

/// Events that one look at the epoll answers.
const BATCH: usize = 16;

/// Why a line could not be had.
#[derive(Debug, Error)]
pub enum LineError {
    /// No descriptor was left.
    #[error(
        "cannot make an event for an interrupt line; is the limit of open files too low (ulimit -n)?"
    )]
    Event(#[source] io::Error),
    /// An event can't be watched.
    #[error(
        "cannot watch an interrupt line's event; is the limit of watches too low (fs.epoll.max_user_watches)?"
    )]
    Watch(#[source] io::Error),
    /// KVM refused.
    #[error("KVM refuses {action} for input {input} of the I/O APIC")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// The input.
        input: u32,
        /// What KVM answered.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// What KVM does for lines; a trait, so that the rules can be tried without it.
trait Controller: Send + Sync + Debug {
    /// Has KVM assert `input` for each signal of `event`, and signal
    /// `resample` when the guest has acknowledged and the line was let go.
    fn add_irqfd(
        &self,
        event: &EventFd,
        resample: &EventFd,
        input: u32,
    ) -> Result<(), kvm_ioctls::Error>;

    /// Ends that, and lets go of the line unless others assert it.
    fn remove_irqfd(&self, event: &EventFd, input: u32) -> Result<(), kvm_ioctls::Error>;

    /// Sets the level of `input`.
    fn set_level(&self, input: u32, asserted: bool) -> Result<(), kvm_ioctls::Error>;
}

impl Controller for Arc<VmFd> {
    fn add_irqfd(
        &self,
        event: &EventFd,
        resample: &EventFd,
        input: u32,
    ) -> Result<(), kvm_ioctls::Error> {
        self.register_irqfd_with_resample(event, resample, input)
    }

    fn remove_irqfd(&self, event: &EventFd, input: u32) -> Result<(), kvm_ioctls::Error> {
        self.unregister_irqfd(event, input)
    }

    fn set_level(&self, input: u32, asserted: bool) -> Result<(), kvm_ioctls::Error> {
        self.set_irq_line(input, asserted)
    }
}

/// The lines of a VM, which functions may share. Cloning gives another handle.
///
/// Normally KVM does everything: an irqfd asserts the line, and signals the
/// function's resample event when the guest has acknowledged. Where KVM can't
/// do that, the event loop asserts the line, and the function itself says when
/// to let go of it.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    controller: Box<dyn Controller>,
    resamples: bool,
    epoll: Epoll,
    // Lock order: after a function's lock; nothing is locked while it is held.
    books: Mutex<Books>,
}

/// Lines that the event loop asserts.
#[derive(Debug, Default)]
struct Books {
    watched: BTreeMap<u64, Arc<Trapped>>,
    made: u64,
    /// How many functions assert an input: KVM sees but one level.
    asserting: BTreeMap<u32, usize>,
}

impl Lines {
    /// The lines of `vm`, which must have its in-kernel irqchip.
    ///
    /// # Errors
    /// [`LineError::Event`].
    pub fn new(vm: Arc<VmFd>, acknowledgement: Acknowledgement) -> Result<Self, LineError> {
        let can = vm.check_extension(Cap::IrqfdResample);
        if !can {
            log::warn!("KVM has no resampling irqfds: devices that use their pin will be slow");
        }
        let resamples = can && acknowledgement == Acknowledgement::Resampled;
        Self::with(Box::new(vm), resamples)
    }

    fn with(controller: Box<dyn Controller>, resamples: bool) -> Result<Self, LineError> {
        Ok(Self(Arc::new(Inner {
            controller,
            resamples,
            epoll: Epoll::new().map_err(LineError::Event)?,
            books: Mutex::default(),
        })))
    }

    /// What the event loop must watch, if there is anything.
    pub fn watch(&self) -> Option<Subscriber> {
        let lines = Arc::downgrade(&self.0);
        (!self.0.resamples).then(|| Box::new(LineWatch(lines)) as Subscriber)
    }

    /// An end of the line into `input` of the I/O APIC.
    ///
    /// # Errors
    /// [`LineError::Event`].
    fn line(&self, input: u32) -> Result<Box<dyn InterruptLine>, LineError> {
        let event = new_event()?;
        if self.0.resamples {
            return Ok(Box::new(ResampledLine {
                lines: Arc::clone(&self.0),
                input,
                event,
                resample: new_event()?,
                connected: false,
            }));
        }
        let end = Trapped {
            input,
            event,
            asserted: AtomicBool::new(false),
        };
        Ok(Box::new(TrappedLine {
            lines: Arc::clone(&self.0),
            end: Arc::new(end),
            id: None,
        }))
    }
}

fn new_event() -> Result<EventFd, LineError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(LineError::Event)
}

/// Forgets what an event counts.
fn drain(event: &EventFd) {
    // An empty one answers with an error, which is as good.
    let _ = event.read();
}

/// A line that KVM asserts, and of which it says when the guest has
/// acknowledged.
#[derive(Debug)]
struct ResampledLine {
    lines: Arc<Inner>,
    input: u32,
    event: EventFd,
    resample: EventFd,
    connected: bool,
}

impl InterruptLine for ResampledLine {
    fn event(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(&self.event)
    }

    fn resample_event(&self) -> Option<BorrowedFd<'_>> {
        Some(crate::sys::borrow(&self.resample))
    }

    fn connect(&mut self) -> Result<(), PortError> {
        if self.connected {
            return Ok(());
        }
        // An acknowledgement of the line's earlier use is no one's.
        drain(&self.resample);
        self.lines
            .controller
            .add_irqfd(&self.event, &self.resample, self.input)
            .map_err(|source| LineError::Refused {
                action: "a resampling irqfd",
                input: self.input,
                source,
            })?;
        self.connected = true;
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        if self.connected {
            // KVM lets go of the line, unless others assert it.
            self.lines
                .controller
                .remove_irqfd(&self.event, self.input)
                .map_err(|source| LineError::Refused {
                    action: "to take an irqfd back",
                    input: self.input,
                    source,
                })?;
            self.connected = false;
            drain(&self.event);
        }
        Ok(())
    }

    fn release(&mut self) -> bool {
        false
    }

    fn silence(&mut self) {}
}

impl Drop for ResampledLine {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::warn!("{error}");
        }
    }
}

/// One function's end of a line that the event loop asserts.
#[derive(Debug)]
struct Trapped {
    input: u32,
    event: EventFd,
    /// Changed with the books locked.
    asserted: AtomicBool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the signals of all watched events.
    fn look(&self) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) => {
                log::debug!("cannot look at interrupt lines: {error}");
                return;
            }
        };
        let mut books = self.lock();
        for event in events.iter().take(count) {
            // One that was disconnected a moment ago is nobody's.
            if let Some(end) = books.watched.get(&event.data()).cloned()
                && end.event.read().is_ok()
            {
                self.set(&mut books, &end, true);
            }
        }
    }

    /// Asserts the line for one function, or no longer. Says whether it
    /// changed anything for that function.
    fn set(&self, books: &mut Books, end: &Trapped, asserted: bool) -> bool {
        if end.asserted.swap(asserted, Ordering::SeqCst) == asserted {
            return false;
        }
        let others = books.asserting.entry(end.input).or_default();
        *others = if asserted {
            others.saturating_add(1)
        } else {
            others.saturating_sub(1)
        };
        let level = *others > 0;
        let changes = *others == usize::from(asserted);
        if changes && let Err(error) = self.controller.set_level(end.input, level) {
            log::error!(
                "KVM does not set input {} of the I/O APIC: {error}",
                end.input
            );
        }
        true
    }
}

#[derive(Debug)]
struct TrappedLine {
    lines: Arc<Inner>,
    end: Arc<Trapped>,
    /// While it is connected.
    id: Option<u64>,
}

impl InterruptLine for TrappedLine {
    fn event(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(&self.end.event)
    }

    fn resample_event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn connect(&mut self) -> Result<(), PortError> {
        if self.id.is_some() {
            return Ok(());
        }
        let mut books = self.lines.lock();
        let id = books.made;
        let interest = EpollEvent::new(EventSet::IN, id);
        let fd = self.end.event.as_raw_fd();
        self.lines
            .epoll
            .ctl(ControlOperation::Add, fd, interest)
            .map_err(LineError::Watch)?;
        books.made += 1;
        books.watched.insert(id, Arc::clone(&self.end));
        self.id = Some(id);
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        let Some(id) = self.id.take() else {
            return Ok(());
        };
        let mut books = self.lines.lock();
        books.watched.remove(&id);
        self.lines.set(&mut books, &self.end, false);
        drain(&self.end.event);
        let fd = self.end.event.as_raw_fd();
        let none = EpollEvent::default();
        self.lines
            .epoll
            .ctl(ControlOperation::Delete, fd, none)
            .map_err(LineError::Watch)?;
        Ok(())
    }

    fn release(&mut self) -> bool {
        // Nearly always there is nothing to do, and no lock to take.
        self.end.asserted.load(Ordering::SeqCst) && {
            let mut books = self.lines.lock();
            self.lines.set(&mut books, &self.end, false)
        }
    }

    fn silence(&mut self) {
        // With the books locked, the event loop is not half-way between
        // taking a signal and asserting the line.
        let mut books = self.lines.lock();
        drain(&self.end.event);
        self.lines.set(&mut books, &self.end, false);
    }
}

impl Drop for TrappedLine {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::warn!("{error}");
        }
    }
}

/// The event loop's part.
struct LineWatch(Weak<Inner>);

impl MutEventSubscriber for LineWatch {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        if let Some(lines) = self.0.upgrade() {
            lines.look();
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Some(lines) = self.0.upgrade()
            && let Err(error) = ops.add(Events::new(&lines.epoll, LoopSet::IN))
        {
            log::error!("interrupt pins stay silent: {error}");
        }
    }
}

/// The interrupts of the function at one place of the guest's topology.
#[derive(Debug)]
pub struct FunctionInterrupts {
    routes: Arc<dyn InterruptRouter>,
    lines: Lines,
    /// By pin, the input that it drives.
    inputs: [u32; 4],
}

impl FunctionInterrupts {
    /// Those of the function that stands at `address`: on the root bus, or
    /// right below the port at `port` there. It does not matter which numbers
    /// the guest gives its buses later.
    pub fn new(
        routes: Arc<dyn InterruptRouter>,
        lines: Lines,
        wiring: PinWiring,
        address: PciAddress,
        port: Option<PciAddress>,
    ) -> Self {
        let inputs = InterruptPin::ALL.map(|pin| input(wiring, address, port, pin));
        Self {
            routes,
            lines,
            inputs,
        }
    }
}

/// The input of the I/O APIC that `pin` of the function at `address` drives:
/// its own device's on the root bus, or as its port turns it.
fn input(
    wiring: PinWiring,
    address: PciAddress,
    port: Option<PciAddress>,
    pin: InterruptPin,
) -> u32 {
    match port {
        None => wiring.input(address.device(), pin),
        Some(port) => wiring.input(port.device(), pin.swizzled(address.device())),
    }
}

impl InterruptRouter for FunctionInterrupts {
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>, PortError> {
        self.routes.new_route()
    }

    fn connect_all(
        &self,
        routes: &mut [(&mut dyn InterruptRoute, MsiMessage)],
    ) -> Vec<Result<(), PortError>> {
        self.routes.connect_all(routes)
    }

    fn new_line(&self, pin: InterruptPin) -> Result<Option<Box<dyn InterruptLine>>, PortError> {
        let index = usize::from(pin.register()) - 1;
        let input = self.inputs.get(index);
        Ok(input.map(|input| self.lines.line(*input)).transpose()?)
    }
}

#[cfg(test)]
#[path = "lines_test.rs"]
pub(crate) mod tests;
