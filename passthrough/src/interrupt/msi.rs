use std::sync::Arc;

use devices::pci::{MsiMessage, MsiState, PciAddress};

use super::msix_vectors::signal;
use super::stats::InterruptStats;
use crate::config::MsiPlace;
use crate::limit::LogLimit;
use crate::ports::{InterruptRoute, InterruptRouter};
use crate::vfio::{DeviceBackend, DeviceError, IrqIndex};

/// VFIO's region of config space.
const CONFIG_REGION: u32 = 7;
/// Messages about one device's MSI; a guest can cause any number.
const MAX_MESSAGES: u32 = 16;

/// A vector with its way into the guest.
#[derive(Debug)]
struct Vector {
    route: Box<dyn InterruptRoute>,
    /// What the route delivers; nothing while the guest masks the vector.
    connected: Option<MsiMessage>,
    /// The device signals the route's event.
    armed: bool,
}

impl Vector {
    /// Whether a signal is being held back.
    fn is_pending(&self) -> bool {
        self.connected.is_none() && self.route.is_pending()
    }
}

/// A function's MSI: what the guest programs, and the host interrupts behind it.
///
/// Turning it on takes one call, which gives the device all the vectors that
/// the guest enables: the kernel can't add any later. Those that the guest
/// masks have no route and no event; they are armed when it first unmasks
/// them. From there on, masking only holds a vector's event back, and the
/// event's counter is the pending bit.
///
/// Routes come first and go last, so that nothing can fire before it can be
/// delivered. The guest's control register never reaches the device: the
/// kernel writes its own.
///
/// What the host refuses leaves vectors silent, with a log line.
#[derive(Debug)]
pub(super) struct MsiInterrupts {
    device: PciAddress,
    backend: Arc<dyn DeviceBackend>,
    router: Arc<dyn InterruptRouter>,
    place: MsiPlace,
    /// What was last asked for.
    state: MsiState,
    /// By number, as many as the guest has enabled; nothing for one that was
    /// never unmasked, or can't be delivered.
    vectors: Vec<Option<Vector>>,
    /// How many vectors the device has on the host; 0 while MSI is off there.
    host_vectors: u8,
    /// A bit for each vector that was pending when it was disarmed.
    kept: u32,
    /// How often a vector that the guest wanted could not be armed.
    silent: u64,
    /// Pending interrupts that could not be handed on.
    lost: u64,
    log: LogLimit,
}

impl MsiInterrupts {
    /// MSI of the function at `device`, off; nothing when the host has none.
    pub(super) fn new(
        device: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: Arc<dyn InterruptRouter>,
        place: MsiPlace,
    ) -> Option<Self> {
        backend.irq(IrqIndex::Msi)?;
        Some(Self {
            device,
            backend,
            router,
            place,
            state: MsiState::OFF,
            vectors: Vec::new(),
            host_vectors: 0,
            kept: 0,
            silent: 0,
            lost: 0,
            log: LogLimit::new(MAX_MESSAGES),
        })
    }

    /// Where its registers are.
    pub(super) fn place(&self) -> &MsiPlace {
        &self.place
    }

    /// Whether it is on in the device.
    pub(super) fn is_on(&self) -> bool {
        self.host_vectors > 0
    }

    /// Brings the host in line with what the guest has programmed.
    pub(super) fn follow(&mut self, state: MsiState) {
        if state == self.state {
            return;
        }
        // Another number of vectors needs another set of them.
        if state.vectors() != self.state.vectors() {
            self.turn_off();
            self.vectors = (0..state.vectors()).map(|_| None).collect();
        }
        self.state = state;
        if !state.is_enabled() {
            return;
        }
        self.route();
        if self.host_vectors == 0 {
            self.turn_on();
        } else {
            self.arm();
        }
    }

    /// Gives each vector the message that it is to deliver, or none, with new
    /// routes where they are needed, and all of them connected together.
    fn route(&mut self) {
        let mut failures = Vec::new();
        let mut changed = Vec::new();
        for (number, vector) in (0_u8..).zip(&mut self.vectors) {
            let wanted = self.state.delivery(number);
            if vector.is_none() && wanted.is_some() {
                match self.router.new_route() {
                    Ok(route) => {
                        *vector = Some(Vector {
                            route,
                            connected: None,
                            armed: false,
                        });
                    }
                    Err(error) => failures.push((number, "has no route to the guest", error)),
                }
            }
            let Some(vector) = vector else { continue };
            match wanted {
                _ if wanted == vector.connected => {}
                Some(message) => changed.push((number, vector, message)),
                None => match vector.route.disconnect() {
                    Ok(()) => vector.connected = None,
                    Err(error) => failures.push((number, "can't be masked", error)),
                },
            }
        }
        let mut routes: Vec<(&mut dyn InterruptRoute, MsiMessage)> = changed
            .iter_mut()
            .map(|(_, vector, message)| (&mut *vector.route, *message))
            .collect();
        let results = if routes.is_empty() {
            Vec::new()
        } else {
            self.router.connect_all(&mut routes)
        };
        for ((number, vector, message), result) in changed.into_iter().zip(results) {
            match result {
                Ok(()) => vector.connected = Some(message),
                Err(error) => failures.push((number, "can't be delivered", error)),
            }
        }
        for (number, what, error) in failures {
            self.silent += u64::from(self.state.delivery(number).is_some());
            self.report(number, what, &*error);
        }
    }

    /// Turns MSI on in the device, with the events of all vectors that are
    /// routed. The kernel takes all or none; when it has fewer vectors than
    /// the guest enables, some are better than none.
    fn turn_on(&mut self) {
        let enabled = self.state.vectors();
        let mut count = enabled;
        let result = match self.set(0, count) {
            Err(DeviceError::ShortOfVectors { available, .. }) if available > 0 => {
                count = u8::try_from(available).unwrap_or(count).min(count);
                self.set(0, count)
            }
            other => other,
        };
        if let Err(error) = result {
            self.silent += u64::from(enabled);
            self.report(0, "and all others stay silent", &error);
            return;
        }
        self.host_vectors = count;
        if count < enabled {
            self.silent += u64::from(enabled - count);
            let short = DeviceError::ShortOfVectors {
                index: IrqIndex::Msi,
                asked: enabled.into(),
                available: count.into(),
            };
            self.report(count, "and all after it stay silent", &short);
        }
    }

    /// Arms vectors that were unmasked for the first time. Each alone: naming
    /// one that is armed already would interrupt it.
    fn arm(&mut self) {
        for number in 0..self.host_vectors {
            let vector = self.vectors.get(usize::from(number));
            let fresh = vector
                .and_then(Option::as_ref)
                .is_some_and(|vector| !vector.armed && vector.connected.is_some());
            if fresh && let Err(error) = self.set(number, 1) {
                self.silent += 1;
                self.report(number, "stays silent", &error);
            }
        }
    }

    /// Has the device signal the events of `count` vectors from `first` on.
    fn set(&mut self, first: u8, count: u8) -> Result<(), DeviceError> {
        let range = usize::from(first)..usize::from(first) + usize::from(count);
        let Some(vectors) = self.vectors.get_mut(range) else {
            return Ok(());
        };
        let events: Vec<_> = vectors
            .iter()
            .map(|vector| vector.as_ref().map(|vector| vector.route.event()))
            .collect();
        self.backend
            .set_irqs(IrqIndex::Msi, first.into(), &events)?;
        for vector in vectors.iter_mut().flatten() {
            vector.armed = true;
        }
        self.hand_on();
        Ok(())
    }

    /// Gives vectors that are armed again what was pending when they were
    /// disarmed.
    fn hand_on(&mut self) {
        let mut failures = Vec::new();
        for (number, vector) in (0_u8..).zip(&self.vectors) {
            let Some(vector) = vector.as_ref().filter(|vector| vector.armed) else {
                continue;
            };
            if self.kept >> number & 1 != 0
                && let Err(error) = signal(vector.route.event())
            {
                failures.push((number, error));
            }
            self.kept &= !(1 << number);
        }
        for (number, error) in failures {
            self.lost += 1;
            self.report(number, "loses a pending interrupt", &error);
        }
    }

    /// The pending bits (PCIe 6.0 §7.7.1.8): of vectors that are armed they
    /// are in the events, of others in the device, where the host masks them.
    pub(super) fn pending(&self) -> u32 {
        let elsewhere = self.in_device() | self.kept;
        let bit = |number: usize| match self.vectors.get(number) {
            Some(Some(vector)) if vector.armed => vector.is_pending(),
            _ => elsewhere >> number & 1 != 0,
        };
        let count = usize::from(self.place.capability.vectors());
        (0..count).fold(0, |bits, number| bits | u32::from(bit(number)) << number)
    }

    /// The device's own pending bits.
    fn in_device(&self) -> u32 {
        let mut bytes = [0; 4];
        if let Some(at) = self.place.pending() {
            let read = self
                .backend
                .region_read(CONFIG_REGION, at.into(), &mut bytes);
            if let Err(error) = read {
                log::debug!("{}: {error}", self.device);
                return 0;
            }
        }
        u32::from_le_bytes(bytes)
    }

    /// Adds what it has cost.
    pub(super) fn add_stats(&self, stats: &mut InterruptStats) {
        let armed = self.vectors.iter().flatten().filter(|vector| vector.armed);
        stats.armed += armed.count() as u64;
        stats.silent += self.silent;
        stats.lost += self.lost;
    }

    /// As [`Self::turn_off`], and nothing is pending: the device was reset.
    pub(super) fn reset(&mut self) {
        self.turn_off();
        self.kept = 0;
    }

    /// Silences the device, then lets the routes go. What is pending stays so.
    fn turn_off(&mut self) {
        if std::mem::take(&mut self.host_vectors) > 0
            && let Err(error) = self.backend.disable_irqs(IrqIndex::Msi)
        {
            self.report(0, "can't be turned off, nor any other", &error);
        }
        for (number, vector) in (0_u8..).zip(self.vectors.drain(..)) {
            if vector.is_some_and(|vector| vector.armed && vector.is_pending()) {
                self.kept |= 1 << number;
            }
        }
        self.state = MsiState::OFF;
    }

    fn report(&mut self, vector: u8, what: &str, error: &dyn std::error::Error) {
        if let Some(error) = self.log.error(error) {
            let device = self.device;
            log::error!("{device}: MSI vector {vector} {what}: {error}");
        }
    }
}

impl Drop for MsiInterrupts {
    fn drop(&mut self) {
        self.turn_off();
    }
}

#[cfg(test)]
#[path = "msi_test.rs"]
mod tests;
