use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use devices::pci::{MsiMessage, Msix, PciAddress};

use crate::config::MsixCapability;
use crate::limit::LogLimit;
use crate::ports::{InterruptRoute, InterruptRouter, PortError};
use crate::vfio::{DeviceBackend, DeviceError, IrqIndex};

/// Messages about one device's interrupts; a guest can cause any number.
const MAX_MESSAGES: u32 = 16;

/// A vector that the device signals into its route's event.
#[derive(Debug)]
struct Armed {
    route: Box<dyn InterruptRoute>,
    /// What the route delivers; nothing while the guest masks the vector.
    connected: Option<MsiMessage>,
}

/// A function's MSI-X: the guest's table, and the host interrupts behind it.
///
/// A vector costs the host nothing until the guest first unmasks it. Then it
/// is armed: route, message, and last the device's event, so that nothing can
/// fire before it can be delivered. From there on, masking only holds its
/// event back; the event's counter is the pending bit. Everything is given
/// back when the guest turns MSI-X off.
///
/// What the host refuses leaves a vector silent, with a log line. The guest
/// tries again by masking and unmasking it.
#[derive(Debug)]
pub(crate) struct MsixInterrupts {
    device: PciAddress,
    backend: Arc<dyn DeviceBackend>,
    router: Arc<dyn InterruptRouter>,
    capability: MsixCapability,
    state: Msix,
    armed: Vec<Option<Armed>>,
    /// MSI-X is on in the device.
    on: bool,
    /// How many vectors the host can give, as far as is known.
    available: u16,
    /// The host can't add vectors while MSI-X is on (before Linux 6.4).
    no_resize: bool,
    log: LogLimit,
}

impl MsixInterrupts {
    /// The state after reset: off.
    pub(crate) fn new(
        device: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: Arc<dyn InterruptRouter>,
        capability: MsixCapability,
    ) -> Option<Self> {
        let state = Msix::new(capability.vectors)?;
        let irq = backend.irq(IrqIndex::Msix)?;
        Some(Self {
            device,
            backend,
            router,
            armed: (0..state.vectors()).map(|_| None).collect(),
            available: u16::try_from(irq.count).unwrap_or(u16::MAX),
            no_resize: irq.no_resize,
            capability,
            state,
            on: false,
            log: LogLimit::new(MAX_MESSAGES),
        })
    }

    /// The guest wrote the message control register.
    pub(crate) fn write_control(&mut self, value: u16) {
        let changed = self.state.write_control(value);
        self.apply(changed);
    }

    /// The guest reads the table.
    pub(crate) fn table_read(&self, offset: u64, data: &mut [u8]) {
        self.state.table_read(offset, data);
    }

    /// The guest writes to the table.
    pub(crate) fn table_write(&mut self, offset: u64, data: &[u8]) {
        let changed = self.state.table_write(offset, data);
        if !changed.is_empty() {
            self.apply(changed);
        }
    }

    /// The guest reads the pending bits: those of armed vectors are in the
    /// events, the others in the device, where they are masked.
    pub(crate) fn pba_read(&self, offset: u64, data: &mut [u8]) {
        let mut device = [0; 8];
        let device = &mut device[..data.len().min(8)];
        if let Some(pba) = self.capability.pba {
            let at = pba.area.offset.saturating_add(offset);
            let read = self.backend.region_read(pba.bar.get().into(), at, device);
            if read.is_err() {
                device.fill(0);
            }
        }
        self.state.pba_read(offset, data, |vector| {
            match self.armed.get(usize::from(vector)) {
                Some(Some(armed)) => armed.connected.is_none() && armed.route.is_pending(),
                _ => {
                    let byte = (u64::from(vector) / 8).checked_sub(offset);
                    let byte = byte.and_then(|byte| device.get(byte as usize));
                    byte.is_some_and(|byte| byte >> (vector % 8) & 1 != 0)
                }
            }
        });
    }

    /// Back to the state after reset: off, all masked.
    pub(crate) fn reset(&mut self) {
        self.state.reset();
        self.turn_off();
    }

    /// Brings the host in line with the guest's table.
    fn apply(&mut self, changed: Range<u16>) {
        if !self.state.is_enabled() {
            self.turn_off();
            return;
        }
        let mut fresh = Vec::new();
        for vector in changed {
            let wanted = self.state.delivery(vector);
            match (&mut self.armed[usize::from(vector)], wanted) {
                (Some(armed), wanted) => {
                    if let Err(error) = armed.deliver(wanted) {
                        self.report(vector, "can't change how it is delivered", &*error);
                    }
                }
                (None, Some(message)) => match self.prepare(vector, message) {
                    Ok(armed) => fresh.push((vector, armed)),
                    Err(Some(error)) => self.report(vector, "no route to the guest", &*error),
                    Err(None) => {}
                },
                (None, None) => {}
            }
        }
        if !self.on {
            fresh = self.turn_on(fresh);
        }
        if self.on {
            self.arm_all(fresh);
        }
    }

    /// A route for a vector, connected. Nothing when the host has no vector
    /// to signal it, which was reported.
    fn prepare(&mut self, vector: u16, message: MsiMessage) -> Result<Armed, Option<PortError>> {
        if vector >= self.available {
            let short = DeviceError::ShortOfVectors {
                index: IrqIndex::Msix,
                asked: u32::from(vector) + 1,
                available: self.available.into(),
            };
            self.report(vector, "stays silent", &short);
            return Err(None);
        }
        let mut armed = Armed {
            route: self.router.new_route()?,
            connected: None,
        };
        armed.deliver(Some(message))?;
        Ok(armed)
    }

    /// Turns MSI-X on in the device, as some devices look at the bit even
    /// when every vector is masked. Answers which of `fresh` are left to arm.
    fn turn_on(&mut self, fresh: Vec<(u16, Armed)>) -> Vec<(u16, Armed)> {
        if !self.no_resize {
            // One vector, without an event: the least that turns it on.
            self.on = self.set_or_report(0, &[None]);
            return if self.on { fresh } else { Vec::new() };
        }
        // The set can't grow later: all vectors now, most without an event.
        let mut fresh = fresh;
        let count = self.available.min(self.state.vectors());
        let result = self.enable_all(count, &fresh);
        if let Err(DeviceError::ShortOfVectors { available, .. }) = &result {
            // Some is better than none: drivers get by with fewer queues.
            let available = u16::try_from(*available).unwrap_or(count).min(count);
            if let Err(error) = &result {
                self.report(available, "and all after it stay silent", error);
            }
            self.available = available;
            fresh.retain(|(vector, _)| *vector < available);
            if available > 0 {
                self.on = match self.enable_all(available, &fresh) {
                    Ok(()) => true,
                    Err(error) => {
                        self.report(0, "MSI-X stays off", &error);
                        false
                    }
                };
            }
        } else if let Err(error) = &result {
            self.report(0, "MSI-X stays off", error);
        } else {
            self.on = true;
        }
        if self.on {
            for (vector, armed) in fresh {
                self.armed[usize::from(vector)] = Some(armed);
            }
        }
        Vec::new()
    }

    fn enable_all(&self, count: u16, fresh: &[(u16, Armed)]) -> Result<(), DeviceError> {
        let events = events(0..count, fresh);
        self.backend.set_irqs(IrqIndex::Msix, 0, &events)
    }

    /// Arms vectors, in as few calls as there are runs without an armed one
    /// in between: naming that again would interrupt it.
    fn arm_all(&mut self, fresh: Vec<(u16, Armed)>) {
        let mut run: Vec<(u16, Armed)> = Vec::new();
        for (vector, armed) in fresh {
            if let Some((last, _)) = run.last() {
                let between = usize::from(last + 1)..usize::from(vector);
                if self.armed[between].iter().any(Option::is_some) {
                    self.arm(std::mem::take(&mut run));
                }
            }
            run.push((vector, armed));
        }
        self.arm(run);
    }

    fn arm(&mut self, run: Vec<(u16, Armed)>) {
        let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else {
            return;
        };
        let (first, last) = (*first, *last);
        let result = {
            let events = events(first..last + 1, &run);
            self.backend.set_irqs(IrqIndex::Msix, first.into(), &events)
        };
        match result {
            Ok(()) => {
                for (vector, armed) in run {
                    self.armed[usize::from(vector)] = Some(armed);
                }
            }
            Err(error) if first == last => self.report(first, "stays silent", &error),
            // The kernel takes all or none: save what can be saved.
            Err(_) => {
                for (vector, armed) in run {
                    let event = Some(armed.route.event());
                    let armed = self.set_or_report(vector, &[event]).then_some(armed);
                    let failed = armed.is_none();
                    self.armed[usize::from(vector)] = armed;
                    if failed {
                        // The others would fail for the same want.
                        break;
                    }
                }
            }
        }
    }

    fn set_or_report(&mut self, vector: u16, events: &[Option<BorrowedFd<'_>>]) -> bool {
        let result = self.backend.set_irqs(IrqIndex::Msix, vector.into(), events);
        if let Err(error) = &result {
            self.report(vector, "stays silent", error);
        }
        result.is_ok()
    }

    /// Silences the device, then lets the routes go.
    fn turn_off(&mut self) {
        if std::mem::take(&mut self.on)
            && let Err(error) = self.backend.disable_irqs(IrqIndex::Msix)
        {
            self.report(0, "MSI-X can't be turned off", &error);
        }
        self.armed.fill_with(|| None);
    }

    fn report(&mut self, vector: u16, what: &str, error: &dyn std::error::Error) {
        if let Some(end) = self.log.admit() {
            let cause = error.source().map(|cause| format!(": {cause}"));
            let cause = cause.unwrap_or_default();
            let device = self.device;
            log::error!("{device}: MSI-X vector {vector}: {what}: {error}{cause}{end}");
        }
    }
}

impl Drop for MsixInterrupts {
    fn drop(&mut self) {
        self.turn_off();
    }
}

impl Armed {
    /// Changes what is delivered; nothing holds signals back.
    fn deliver(&mut self, wanted: Option<MsiMessage>) -> Result<(), PortError> {
        match wanted {
            _ if wanted == self.connected => return Ok(()),
            Some(message) => self.route.connect(message)?,
            None => self.route.disconnect()?,
        }
        self.connected = wanted;
        Ok(())
    }
}

/// The events of a range of vectors, in order; none for those not in `fresh`.
fn events<'a>(range: Range<u16>, fresh: &'a [(u16, Armed)]) -> Vec<Option<BorrowedFd<'a>>> {
    let mut events = vec![None; range.len()];
    for (vector, armed) in fresh {
        if let Some(index) = vector.checked_sub(range.start)
            && let Some(event) = events.get_mut(usize::from(index))
        {
            *event = Some(armed.route.event());
        }
    }
    events
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
