use std::ops::Range;

use devices::pci::{CONFIG_SPACE_SIZE, ConfigSpace, Register};

use super::book::{Placed, RuleBook};
use super::rule::Access;
use crate::vfio::{DeviceBackend, DeviceError};

/// VFIO's region of config space.
const REGION: u32 = 7;

/// Some bits of each byte.
type Mask = Box<[u8; CONFIG_SPACE_SIZE]>;

/// What a reset reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The function alone.
    Function,
    /// Its bus, and it with it.
    Bus,
}

/// Config space as the guest sees it.
///
/// ```text
///  guest  <-- space: what is answered here: constants, and what is the guest's
///         <-- device bits, without cleared ones: asked each time
///         --> writable and shared bits: to the device each time
/// ```
///
/// Purely the bytes: what a write means is seen to by the device that owns
/// the view.
#[derive(Debug)]
pub(crate) struct ConfigView {
    /// The rules.
    pub(crate) book: RuleBook,
    space: ConfigSpace,
    /// `space` after reset.
    initial: ConfigSpace,
    /// Bits of `space` that outlast a reset of the function alone.
    kept: Mask,
    /// Bits that are read from the device.
    device: Mask,
    /// Bits of these that the guest clears by writing a one.
    clearable: Mask,
    /// Those that it has cleared, until the device's bit goes off.
    cleared: Mask,
    /// Bits whose writes reach the device as they are.
    writable: Mask,
    /// Bits of `space` that the device has too.
    shared: Mask,
}

/// Reads all of a device's config space.
///
/// # Errors
/// [`DeviceError::Region`].
pub(crate) fn snapshot(backend: &dyn DeviceBackend) -> Result<ConfigSpace, DeviceError> {
    let size = backend.region(REGION).map_or(0, |region| region.size);
    let mut bytes = [0; CONFIG_SPACE_SIZE];
    let size = usize::try_from(size).unwrap_or(CONFIG_SPACE_SIZE);
    let bytes = &mut bytes[..size.min(CONFIG_SPACE_SIZE)];
    backend.region_read(REGION, 0, bytes)?;
    let mut snapshot = ConfigSpace::new();
    snapshot.set(0, bytes);
    Ok(snapshot)
}

impl ConfigView {
    /// The view by the rules in `book` of a device whose config space was
    /// `snapshot` at the start.
    pub(crate) fn new(snapshot: &ConfigSpace, book: RuleBook) -> Self {
        let none = || Box::new([0; CONFIG_SPACE_SIZE]);
        let mut view = Self {
            book: RuleBook::default(),
            space: ConfigSpace::new(),
            initial: ConfigSpace::new(),
            kept: none(),
            device: none(),
            clearable: none(),
            cleared: none(),
            writable: none(),
            shared: none(),
        };
        for Placed { place, rule } in &book.rules {
            for at in place.clone() {
                let shift = (at - place.start) % 4 * 8;
                let bits = (rule.bits >> shift) as u8;
                view.apply(snapshot.u8(at), at, bits, shifted(rule.access, shift));
            }
        }
        view.initial = view.space.clone();
        view.book = book;
        view
    }

    /// Gives some `bits` of a byte, which is `own` in the device, to whom the
    /// rule says.
    fn apply(&mut self, own: u8, at: u16, bits: u8, access: Access) {
        let none = (0, 0);
        // The value and its writable bits here; what the device has of it.
        let (value, guest) = match access {
            Access::Constant(shown) => (own & shown as u8, 0),
            Access::Value(value) => (value as u8, 0),
            Access::Guest { value, writable } | Access::Kept { value, writable } => {
                (value as u8, writable as u8)
            }
            Access::Shared { writable } => (own, writable as u8),
            Access::Device { .. } => none,
        };
        let (read, write, clear) = match access {
            Access::Device {
                readable,
                writable,
                clearable,
            } => (readable as u8, writable as u8, clearable as u8),
            _ => (0, 0, 0),
        };
        let kept = matches!(access, Access::Kept { .. });
        let shared = matches!(access, Access::Shared { .. });
        let merge = |old: u8, new: u8| old & !bits | new & bits;
        let value = merge(self.space.u8(at), value);
        let guest = merge(self.space.guest_bits(at), guest);
        self.space
            .define(Register::writable(at, 1, value.into(), guest.into()));
        let at = usize::from(at);
        for (mask, new) in [
            (&mut self.kept, if kept { u8::MAX } else { 0 }),
            (&mut self.shared, if shared { guest } else { 0 }),
            (&mut self.device, read),
            (&mut self.writable, write),
            (&mut self.clearable, clear),
        ] {
            if let Some(old) = mask.get_mut(at) {
                *old = merge(*old, new);
            }
        }
    }

    /// The guest reads. At most one call to the device, none for constants;
    /// what it does not answer reads as ones.
    pub(crate) fn read(&mut self, backend: &dyn DeviceBackend, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
        let Some(run) = span(&self.device, offset, data.len()) else {
            return;
        };
        let Some(bytes) = ask(backend, run.clone()) else {
            for at in run {
                data[at - usize::from(offset)] |= self.device[at];
            }
            return;
        };
        for (at, own) in run.zip(bytes) {
            // A bit that went off in the device may tell of something new.
            self.cleared[at] &= own;
            let shown = own & self.device[at] & !self.cleared[at];
            let byte = &mut data[at - usize::from(offset)];
            *byte = *byte & !self.device[at] | shown;
        }
    }

    /// The guest writes.
    pub(crate) fn write(&mut self, backend: &dyn DeviceBackend, offset: u16, data: &[u8]) {
        let before: Vec<_> = (self.book.limits.iter())
            .map(|limit| (*limit, self.space.u16(limit.offset)))
            .collect();
        self.space.write(offset, data);
        for (limit, old) in before {
            let new = self.space.u16(limit.offset);
            if new & limit.mask > limit.largest {
                let bytes = (new & !limit.mask | old & limit.mask).to_le_bytes();
                self.space.set(limit.offset, &bytes);
            }
        }
        self.clear(backend, offset, data);
        let start = usize::from(offset);
        let mut at = start;
        let end = (start + data.len()).min(CONFIG_SPACE_SIZE);
        while at < end {
            let taken = |at: &usize| self.writable[*at] | self.shared[*at] != 0;
            let run = at..(at..end).find(|at| !taken(at)).unwrap_or(end);
            if !run.is_empty()
                && let Err(error) = self.write_device(backend, run.clone(), &data[at - start..])
            {
                log::debug!("{error}");
            }
            at = run.end.max(at + 1);
        }
    }

    /// Ones clear the bits that are set in the device now.
    fn clear(&mut self, backend: &dyn DeviceBackend, offset: u16, data: &[u8]) {
        let Some(run) = span(&self.clearable, offset, data.len()) else {
            return;
        };
        let ones = |at: usize| data[at - usize::from(offset)] & self.clearable[at];
        if run.clone().all(|at| ones(at) == 0) {
            return;
        }
        for (at, own) in run.clone().zip(ask(backend, run).unwrap_or_default()) {
            let ones = data[at - usize::from(offset)] & self.clearable[at];
            self.cleared[at] |= ones & own;
        }
    }

    /// Writes a run of bytes to the device: `data` where the writes are handed
    /// on as they are, what the guest has now where it is shared. Other bits
    /// stay.
    fn write_device(
        &self,
        backend: &dyn DeviceBackend,
        run: Range<usize>,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        let offset = run.start as u64;
        let mut bytes = vec![0; run.len()];
        if run
            .clone()
            .any(|at| self.writable[at] | self.shared[at] != 0xff)
        {
            backend.region_read(REGION, offset, &mut bytes)?;
        }
        for ((byte, at), new) in bytes.iter_mut().zip(run.clone()).zip(data) {
            let (writable, shared) = (self.writable[at], self.shared[at]);
            let ours = self.space.u8(at as u16) & shared;
            *byte = *byte & !(writable | shared) | new & writable | ours;
        }
        // Broken devices have them read as ones.
        for order in &self.book.resets {
            let at = usize::from(order.offset);
            if run.contains(&at) && self.writable[at] & order.mask == 0 {
                bytes[at - run.start] &= !order.mask;
            }
        }
        backend.region_write(REGION, offset, &bytes)
    }

    /// Back to the state after reset (PCIe 6.0 §6.6).
    pub(crate) fn reset(&mut self, scope: Scope) {
        let mut fresh = self.initial.clone();
        for at in 0..CONFIG_SPACE_SIZE as u16 {
            let kept = self.kept[usize::from(at)];
            if scope == Scope::Function && kept != 0 {
                let (old, new) = (self.space.u8(at), fresh.u8(at));
                fresh.set(at, &[old & kept | new & !kept]);
            }
        }
        self.space = fresh;
    }

    /// Gives the device the values that the shared bits have, after it was
    /// reset: the kernel has given it older ones.
    ///
    /// # Errors
    /// The device's; some may be missing then.
    pub(crate) fn hand_on(&self, backend: &dyn DeviceBackend) -> Result<(), DeviceError> {
        let mut at = 0;
        while let Some(start) = (at..CONFIG_SPACE_SIZE).find(|at| self.shared[*at] != 0) {
            let rest = start..CONFIG_SPACE_SIZE;
            let end = rest.clone().find(|at| self.shared[*at] == 0);
            at = end.unwrap_or(rest.end);
            self.write_device(backend, start..at, &vec![0; at - start])?;
        }
        Ok(())
    }

    /// What a guest reads at first, all 4 KiB of it.
    pub(crate) fn at_first(&self, snapshot: &ConfigSpace) -> Vec<u8> {
        let byte = |at: u16| {
            let device = self.device[usize::from(at)];
            self.initial.u8(at) & !device | snapshot.u8(at) & device
        };
        (0..CONFIG_SPACE_SIZE as u16).map(byte).collect()
    }

    /// The bits of a byte that the guest clears by ones.
    #[cfg(test)]
    pub(super) fn clears(&self, at: u16) -> u8 {
        self.clearable[usize::from(at)]
    }

    /// The registers that are answered here.
    pub(crate) fn space(&self) -> &ConfigSpace {
        &self.space
    }

    /// As [`Self::space`], to change what the guest reads.
    pub(crate) fn space_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }
}

/// From the first to the last byte of an access that has bits in `mask`.
fn span(mask: &Mask, offset: u16, size: usize) -> Option<Range<usize>> {
    let start = usize::from(offset);
    let end = start.saturating_add(size).min(CONFIG_SPACE_SIZE);
    let mut bytes = start..end;
    let first = bytes.find(|at| mask[*at] != 0)?;
    let last = (first..end).rfind(|at| mask[*at] != 0).unwrap_or(first);
    Some(first..last + 1)
}

/// Reads bytes of the device; nothing when it does not answer.
fn ask(backend: &dyn DeviceBackend, run: Range<usize>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; run.len()];
    match backend.region_read(REGION, run.start as u64, &mut bytes) {
        Ok(()) => Some(bytes),
        Err(error) => {
            log::debug!("{error}");
            None
        }
    }
}

/// A rule's masks as they apply to the byte at `shift` bits.
fn shifted(access: Access, shift: u16) -> Access {
    match access {
        Access::Constant(shown) => Access::Constant(shown >> shift),
        Access::Value(value) => Access::Value(value >> shift),
        Access::Guest { value, writable } => Access::Guest {
            value: value >> shift,
            writable: writable >> shift,
        },
        Access::Kept { value, writable } => Access::Kept {
            value: value >> shift,
            writable: writable >> shift,
        },
        Access::Shared { writable } => Access::Shared {
            writable: writable >> shift,
        },
        Access::Device {
            readable,
            writable,
            clearable,
        } => Access::Device {
            readable: readable >> shift,
            writable: writable >> shift,
            clearable: clearable >> shift,
        },
    }
}

#[cfg(test)]
#[path = "view_test.rs"]
mod tests;
