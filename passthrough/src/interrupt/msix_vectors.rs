use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use devices::pci::{MsiMessage, PciAddress};

use crate::limit::LogLimit;
use crate::ports::{InterruptRoute, InterruptRouter};
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

/// A vector on its way to be connected.
struct Candidate {
    vector: u16,
    armed: Armed,
    message: MsiMessage,
    /// It must be armed after that.
    is_fresh: bool,
}

/// The host's side of a function's MSI-X: which vectors are armed, and what
/// each delivers.
///
/// Routes come first and go last, so that nothing can fire before it can be
/// delivered.
#[derive(Debug)]
pub(super) struct MsixVectors {
    device: PciAddress,
    backend: Arc<dyn DeviceBackend>,
    router: Arc<dyn InterruptRouter>,
    armed: Vec<Option<Armed>>,
    /// Vectors that were pending when they were disarmed.
    pending: BTreeSet<u16>,
    /// MSI-X is on in the device.
    on: bool,
    /// How many vectors the host can give, as far as is known.
    available: u16,
    /// The host can't add vectors while MSI-X is on (before Linux 6.4).
    no_resize: bool,
    silent: u64,
    lost: u64,
    log: LogLimit,
}

impl MsixVectors {
    /// Off, with `vectors` as the guest sees them; nothing when the host has
    /// no MSI-X for the device.
    pub(super) fn new(
        device: PciAddress,
        backend: Arc<dyn DeviceBackend>,
        router: Arc<dyn InterruptRouter>,
        vectors: u16,
    ) -> Option<Self> {
        let irq = backend.irq(IrqIndex::Msix)?;
        Some(
            Self {
                device,
                backend,
                router,
                armed: (0..vectors).map(|_| None).collect(),
                pending: BTreeSet::new(),
                on: false,
                available: 0,
                no_resize: irq.no_resize,
                silent: 0,
                lost: 0,
                log: LogLimit::new(MAX_MESSAGES),
            }
            .with_all_available(),
        )
    }

    fn with_all_available(mut self) -> Self {
        self.expect_all();
        self
    }

    /// Takes it for possible again that the host has all vectors.
    fn expect_all(&mut self) {
        let irq = self.backend.irq(IrqIndex::Msix);
        let count = irq.map_or(0, |irq| irq.count);
        self.available = u16::try_from(count).unwrap_or(u16::MAX);
    }

    /// Whether MSI-X is on in the device.
    pub(super) fn is_on(&self) -> bool {
        self.on
    }

    /// How many vectors are armed.
    pub(super) fn armed(&self) -> usize {
        self.armed.iter().flatten().count()
    }

    /// Whether the vector is armed.
    pub(super) fn is_armed(&self, vector: u16) -> bool {
        matches!(self.armed.get(usize::from(vector)), Some(Some(_)))
    }

    /// How often a vector could not be armed.
    pub(super) fn silent(&self) -> u64 {
        self.silent
    }

    /// Pending interrupts that could not be handed on.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether an interrupt of the vector waits on the host for the guest to
    /// unmask it. Of a vector that is not armed the device may know more.
    pub(super) fn is_pending(&self, vector: u16) -> bool {
        match self.armed.get(usize::from(vector)) {
            Some(Some(armed)) => armed.is_pending(),
            _ => self.pending.contains(&vector),
        }
    }

    /// Turns MSI-X on, and brings vectors in line with what each is to
    /// deliver. What is connected together, and what is armed together, takes
    /// the same number of calls for one vector as for all.
    pub(super) fn follow(&mut self, wanted: impl Iterator<Item = (u16, Option<MsiMessage>)>) {
        let mut candidates = Vec::new();
        for (vector, message) in wanted {
            match message {
                Some(message) => candidates.extend(self.candidate(vector, message)),
                None => self.mask(vector),
            }
        }
        let mut fresh = self.connect(candidates);
        if !self.on {
            fresh = self.turn_on(fresh);
        }
        if self.on {
            self.arm_all(fresh);
        }
    }

    /// Holds a vector's interrupts back.
    fn mask(&mut self, vector: u16) {
        if let Some(Some(armed)) = self.armed.get_mut(usize::from(vector))
            && armed.connected.is_some()
        {
            match armed.route.disconnect() {
                Ok(()) => armed.connected = None,
                Err(error) => self.report(vector, "can't be masked", &*error),
            }
        }
    }

    /// The vector, if it must be connected to deliver `message`. Nothing too
    /// when the host can't signal it, which was reported.
    fn candidate(&mut self, vector: u16, message: MsiMessage) -> Option<Candidate> {
        let slot = self.armed.get_mut(usize::from(vector))?;
        if let Some(armed) = slot {
            if armed.connected == Some(message) {
                return None;
            }
            return slot.take().map(|armed| Candidate {
                vector,
                armed,
                message,
                is_fresh: false,
            });
        }
        if vector >= self.available {
            let short = DeviceError::ShortOfVectors {
                index: IrqIndex::Msix,
                asked: u32::from(vector) + 1,
                available: self.available.into(),
            };
            self.stays_silent(vector, &short);
            return None;
        }
        match self.router.new_route() {
            Ok(route) => Some(Candidate {
                vector,
                armed: Armed {
                    route,
                    connected: None,
                },
                message,
                is_fresh: true,
            }),
            Err(error) => {
                self.stays_silent(vector, &*error);
                None
            }
        }
    }

    /// Connects them together. Answers those that are to be armed.
    fn connect(&mut self, mut candidates: Vec<Candidate>) -> Vec<(u16, Armed)> {
        if candidates.is_empty() {
            return Vec::new();
        }
        let mut routes: Vec<(&mut dyn InterruptRoute, MsiMessage)> = candidates
            .iter_mut()
            .map(|candidate| (&mut *candidate.armed.route, candidate.message))
            .collect();
        let results = self.router.connect_all(&mut routes);
        let mut fresh = Vec::new();
        for (candidate, result) in candidates.into_iter().zip(results) {
            let Candidate {
                vector,
                mut armed,
                message,
                is_fresh,
            } = candidate;
            let connected = result.is_ok();
            if connected {
                armed.connected = Some(message);
            }
            match result {
                Err(error) if is_fresh => self.stays_silent(vector, &*error),
                Err(error) => self.report(vector, "can't change what it delivers", &*error),
                Ok(()) => {}
            }
            if !is_fresh {
                self.armed[usize::from(vector)] = Some(armed);
            } else if connected {
                fresh.push((vector, armed));
            }
        }
        fresh
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
        let mut count = self.available.min(self.armed.len() as u16);
        let mut result = self.enable_all(count, &fresh);
        if let Err(DeviceError::ShortOfVectors { available, .. }) = &result {
            // Some is better than none: drivers get by with fewer queues.
            let available = u16::try_from(*available).unwrap_or(count).min(count);
            if let Err(error) = &result {
                self.report(available, "and all after it stay silent", error);
            }
            self.available = available;
            count = available;
            let all = fresh.len();
            fresh.retain(|(vector, _)| *vector < available);
            self.silent += (all - fresh.len()) as u64;
            if count == 0 {
                return Vec::new();
            }
            result = self.enable_all(count, &fresh);
        }
        match result {
            Ok(()) => {
                self.on = true;
                self.keep(fresh);
            }
            Err(error) => self.report(0, "MSI-X stays off", &error),
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
            Ok(()) => self.keep(run),
            Err(error) if first == last => self.stays_silent(first, &error),
            // The kernel takes all or none: save what can be saved.
            Err(_) => {
                let mut left = run.into_iter();
                while let Some((vector, armed)) = left.next() {
                    if !self.set_or_report(vector, &[Some(armed.route.event())]) {
                        // The others would fail for the same want.
                        self.silent += left.len() as u64;
                        break;
                    }
                    self.keep(vec![(vector, armed)]);
                }
            }
        }
    }

    /// The device signals them now. What was pending when they were disarmed
    /// arrives.
    fn keep(&mut self, run: Vec<(u16, Armed)>) {
        for (vector, armed) in run {
            if self.pending.remove(&vector)
                && let Err(error) = signal(armed.route.event())
            {
                self.lost += 1;
                self.report(vector, "loses a pending interrupt", &error);
            }
            self.armed[usize::from(vector)] = Some(armed);
        }
    }

    /// Silences the device, then lets the routes go. What is pending stays so,
    /// as it would in a real device.
    pub(super) fn turn_off(&mut self) {
        if std::mem::take(&mut self.on)
            && let Err(error) = self.backend.disable_irqs(IrqIndex::Msix)
        {
            self.report(0, "MSI-X can't be turned off", &error);
        }
        for (vector, armed) in (0..).zip(&mut self.armed) {
            if armed.take().is_some_and(|armed| armed.is_pending()) {
                self.pending.insert(vector);
            }
        }
        // The host may have more when it is turned on again.
        self.expect_all();
    }

    /// Forgets what is pending: the device was reset.
    pub(super) fn forget_pending(&mut self) {
        self.pending.clear();
    }

    fn set_or_report(&mut self, vector: u16, events: &[Option<BorrowedFd<'_>>]) -> bool {
        let result = self.backend.set_irqs(IrqIndex::Msix, vector.into(), events);
        if let Err(error) = &result {
            self.stays_silent(vector, error);
        }
        result.is_ok()
    }

    fn stays_silent(&mut self, vector: u16, error: &dyn std::error::Error) {
        self.silent += 1;
        self.report(vector, "stays silent", error);
    }

    fn report(&mut self, vector: u16, what: &str, error: &dyn std::error::Error) {
        if let Some(error) = self.log.error(error) {
            let device = self.device;
            log::error!("{device}: MSI-X vector {vector}: {what}: {error}");
        }
    }
}

impl Drop for MsixVectors {
    fn drop(&mut self) {
        self.turn_off();
    }
}

impl Armed {
    fn is_pending(&self) -> bool {
        self.connected.is_none() && self.route.is_pending()
    }
}

/// Signals an event once.
pub(super) fn signal(event: BorrowedFd<'_>) -> io::Result<()> {
    File::from(event.try_clone_to_owned()?).write_all(&1_u64.to_ne_bytes())
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
