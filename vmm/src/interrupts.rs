//! GSIs, routes and irqfds: how events become guest interrupts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::legacy::InterruptLine;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use passthrough::ports::{InterruptRoute, InterruptRouter, MsiMessage, PortError};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Pins of the emulated IOAPIC: GSIs 0 to 23.
const IOAPIC_PINS: u32 = 24;
/// KVM's limit of routes (`KVM_MAX_IRQ_ROUTES`); higher GSIs can't be routed.
const MAX_GSI: u32 = 4096;

/// A global system interrupt: KVM's number for an interrupt's way into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(u32);

impl Gsi {
    /// Pin `pin` of the IOAPIC; nothing above 23.
    pub const fn ioapic_pin(pin: u32) -> Option<Self> {
        if pin < IOAPIC_PINS {
            Some(Self(pin))
        } else {
            None
        }
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GSI {}", self.0)
    }
}

/// Why an interrupt could not be routed.
#[derive(Debug, Error)]
pub enum RouteError {
    /// No GSI is free.
    #[error("all {MAX_GSI} interrupt routes of the VM are taken: assign fewer devices")]
    Exhausted,
    /// No eventfd could be made.
    #[error("cannot make an eventfd; is the limit of open files too low (ulimit -n)?")]
    Event(#[source] io::Error),
    /// KVM refused the routing table.
    #[error("KVM refuses the routing table with {0}")]
    Routing(Gsi, #[source] kvm_ioctls::Error),
    /// KVM refused the irqfd.
    #[error("KVM refuses the irqfd for {0}")]
    Irqfd(Gsi, #[source] kvm_ioctls::Error),
}

/// The VM's interrupt routing table.
///
/// GSIs 0 to 23 go to the PIC and IOAPIC, as KVM has them by default; the rest
/// are given out to MSI routes. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vm: Arc<VmFd>,
    // Lock order: after a PCI function's lock. Held while KVM takes the table,
    // so that tables arrive in the order they were made.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    taken: BTreeSet<Gsi>,
    messages: BTreeMap<Gsi, MsiMessage>,
}

impl Router {
    /// The table of `vm`, which must have its in-kernel irqchip.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self(Arc::new(Inner {
            vm,
            table: Mutex::default(),
        }))
    }

    /// An edge-triggered line into pin `gsi`.
    ///
    /// # Errors
    /// [`RouteError`] when KVM refuses the irqfd.
    pub fn line(&self, gsi: Gsi) -> Result<EventLine, RouteError> {
        let event = new_event()?;
        self.0
            .vm
            .register_irqfd(&event, gsi.0)
            .map_err(|source| RouteError::Irqfd(gsi, source))?;
        Ok(EventLine(event))
    }
}

impl InterruptRouter for Router {
    fn new_route(&self) -> Result<Box<dyn InterruptRoute>, PortError> {
        let event = new_event()?;
        let mut table = self.0.lock();
        let gsi = (IOAPIC_PINS..MAX_GSI)
            .map(Gsi)
            .find(|gsi| !table.taken.contains(gsi))
            .ok_or(RouteError::Exhausted)?;
        table.taken.insert(gsi);
        drop(table);
        Ok(Box::new(Route {
            router: Arc::clone(&self.0),
            gsi,
            event,
            connected: false,
        }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes `gsi` to `message` if it is not there yet.
    fn set(&self, gsi: Gsi, message: MsiMessage) -> Result<(), RouteError> {
        let mut table = self.lock();
        let before = table.messages.insert(gsi, message);
        if before == Some(message) {
            return Ok(());
        }
        let result = self
            .commit(&table)
            .map_err(|source| RouteError::Routing(gsi, source));
        if result.is_err() {
            match before {
                Some(before) => table.messages.insert(gsi, before),
                None => table.messages.remove(&gsi),
            };
        }
        result
    }

    fn commit(&self, table: &Table) -> Result<(), kvm_ioctls::Error> {
        let entries: Vec<_> = irqchip_entries()
            .chain(
                table
                    .messages
                    .iter()
                    .map(|(gsi, message)| msi_entry(*gsi, *message)),
            )
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        self.vm.set_gsi_routing(&routing)
    }
}

fn new_event() -> Result<EventFd, RouteError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(RouteError::Event)
}

/// KVM's default table, which setting a table of our own would lose: the PICs
/// have 8 pins each and share GSIs 0 to 15 with the IOAPIC.
fn irqchip_entries() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pic = (0..16).map(|gsi| match gsi {
        0..8 => irqchip_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => irqchip_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    });
    let ioapic = (0..IOAPIC_PINS).map(|gsi| irqchip_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    pic.chain(ioapic)
}

fn irqchip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi_entry(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

/// An edge-triggered interrupt line over an irqfd.
#[derive(Debug)]
pub struct EventLine(EventFd);

impl InterruptLine for EventLine {
    fn pulse(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

#[derive(Debug)]
struct Route {
    router: Arc<Inner>,
    gsi: Gsi,
    event: EventFd,
    connected: bool,
}

impl InterruptRoute for Route {
    fn event(&self) -> BorrowedFd<'_> {
        crate::sys::borrow(&self.event)
    }

    fn connect(&mut self, message: MsiMessage) -> Result<(), PortError> {
        // The route before the irqfd: the other way round a host kernel with
        // AVIC has crashed, and an early signal would go astray.
        self.router.set(self.gsi, message)?;
        if !self.connected {
            // KVM looks at the counter when it takes the eventfd: what was
            // signalled before is delivered now.
            self.router
                .vm
                .register_irqfd(&self.event, self.gsi.0)
                .map_err(|source| RouteError::Irqfd(self.gsi, source))?;
            self.connected = true;
        }
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), PortError> {
        if self.connected {
            self.router
                .vm
                .unregister_irqfd(&self.event, self.gsi.0)
                .map_err(|source| RouteError::Irqfd(self.gsi, source))?;
            self.connected = false;
        }
        Ok(())
    }

    fn is_pending(&self) -> bool {
        // Reading empties the counter, so what was read is put back. A signal
        // in between only adds to it.
        match self.event.read() {
            Ok(count) => {
                if let Err(error) = self.event.write(count) {
                    log::error!("lost a pending interrupt of {}: {error}", self.gsi);
                }
                true
            }
            Err(_) => false,
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            log::warn!("{error}");
        }
        // The entry leaves KVM's table with the next change: nothing can
        // signal it any more, and a commit of its own would cost a call.
        let mut table = self.router.lock();
        table.messages.remove(&self.gsi);
        table.taken.remove(&self.gsi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_table_has_both_irqchips() {
        let entries: Vec<_> = irqchip_entries().collect();
        assert_eq!(entries.len(), 16 + 24);
        let of = |gsi| entries.iter().filter(move |e| e.gsi == gsi).count();
        assert_eq!(of(4), 2, "COM1 reaches PIC and IOAPIC");
        assert_eq!(of(23), 1);
    }

    #[test]
    fn only_the_ioapic_has_pins() {
        assert!(Gsi::ioapic_pin(23).is_some());
        assert_eq!(Gsi::ioapic_pin(24), None);
    }
}
